"""A language model that GWQ has quantised, as a folder: config, tokenizer, gwq.safetensors, gwq.json.

The file has, for each quantised matrix of shape (m, n), six tensors NAME.weight.PART: codes uint8
(m, ceil(n bits / 8)), scale and low float16 (m, groups), and the outliers by rows: starts int32 (m + 1,), columns
uint16 (int32 where n is above 65,536), values float16. All other tensors are there once, tied ones too: as 16-bit
numbers where that loses nothing, otherwise rounded to float16, float32 where they do not fit. Checked:
tests/compress/test_packed_checkpoint.py.

The file is not called model.safetensors, so that no other tool takes it for weights as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ontarget.compress.gwq import QuantizedMatrix, pack, unpack
from ontarget.errors import DataError, RunError
from ontarget.merge.merge_checkpoints import copy_files
from ontarget.plan.run_folder import new_folder

FORMAT, VERSION = "ontarget-gwq", 1
MANIFEST, WEIGHTS = "gwq.json", "gwq.safetensors"
AGAIN = "compress the model again, or fetch the folder again"


@dataclass(frozen=True)
class PackedModel:
    """What a folder holds. matrices: layer's name -> its weight. others: name -> tensor, as stored; tied ones once.

    tied: name in the model's state -> name in ``others``. share: of the weights that are outliers.
    """

    matrices: Mapping[str, QuantizedMatrix]
    others: Mapping[str, Tensor]
    tied: Mapping[str, str]
    bits: int
    group: int
    share: float

    @property
    def weights(self) -> int:
        """Numbers of the model, tied ones counted once."""
        return self.quantised_weights + sum(one.numel() for one in self.others.values())

    @property
    def quantised_weights(self) -> int:
        return sum(one.codes.numel() for one in self.matrices.values())


def packed_model(model: nn.Module, matrices: Mapping[str, QuantizedMatrix], *, share: float) -> PackedModel:
    """What is to be stored of a model whose linear layers ``matrices`` (of `gwq`) are quantised.

    Raises DataError: no matrices, several bits or groups, a matrix that is not the model's.
    """
    kinds = {(one.bits, one.group) for one in matrices.values()}
    if len(kinds) != 1:
        raise DataError(f"{len(matrices)} matrices of {len(kinds)} kinds of bits and group.", allowed="one kind")
    ((bits, group),) = kinds
    state = model.state_dict()
    for name, one in matrices.items():
        if f"{name}.weight" not in state or state[f"{name}.weight"].shape != one.codes.shape:
            raise DataError(f"The model has no matrix '{name}.weight' of shape {tuple(one.codes.shape)}.")
    others: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, Any], str] = {}
    for name, value in state.items():
        if name.removesuffix(".weight") in matrices and name.endswith(".weight"):
            continue
        place = (value.untyped_storage().data_ptr(), (value.storage_offset(), value.shape, value.stride()))
        if value.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            others[name] = stored_as(value)
    return PackedModel(dict(matrices), others, tied, bits, group, share)


def stored_as(value: Tensor) -> Tensor:
    """The tensor in 16 bits: exactly where a 16-bit type holds it, else rounded to float16; too large: as it is."""
    value = value.detach().cpu().contiguous()
    if value.dtype not in (torch.float32, torch.float64):
        return value
    for kind in (torch.float16, torch.bfloat16):
        if torch.equal(value.to(kind).to(value.dtype), value):
            return value.to(kind)
    return value.half() if bool(torch.isfinite(value.half()).all()) else value.float()


def write_packed(packed: PackedModel, output: Path, *, copy_from: Path) -> Path:
    """Write the new folder ``output``; it appears when it is whole. copy_from: folder of config and tokenizer.

    Raises RunError where ``output`` exists.
    """
    with new_folder(output) as partial:
        fill_folder(packed, partial, copy_from=copy_from)
    return output


def fill_folder(packed: PackedModel, folder: Path, *, copy_from: Path) -> None:
    """Write all files of a packed model into a folder that is there."""
    from safetensors.torch import save_file

    tensors = dict(packed.others)
    for name, one in packed.matrices.items():
        # uint16 where all columns fit; the library writes it, few operations of torch know it.
        columns = one.columns.to(torch.uint16) if one.codes.shape[1] <= 1 << 16 else one.columns
        parts = {"codes": pack(one.codes, one.bits), "scale": one.scale, "low": one.low, "starts": one.starts,
                 "columns": columns, "values": one.values}  # fmt: skip
        tensors |= {f"{name}.weight.{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": FORMAT})
    told = {
        "format": FORMAT, "version": VERSION, "bits": packed.bits, "group": packed.group, "share": packed.share,
        "matrices": {name: list(one.codes.shape) for name, one in packed.matrices.items()}, "tied": dict(packed.tied),
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    copy_files(copy_from, folder, None)


def is_packed(folder: Path) -> bool:
    """Whether a folder says that it holds a packed model."""
    return (folder / MANIFEST).is_file()


def read_packed(folder: Path) -> PackedModel:
    """Read a folder and check all of it.

    Raises RunError: no such folder, another version, a file that is cut off, a tensor that is missing, too much, of
    another shape or type, or an outlier outside of its matrix.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    told = _manifest(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"'{folder / WEIGHTS}' is missing, cut off or damaged ({error}).", next_step=AGAIN) from error
    matrices = {name: _matrix(folder, told, name, tensors) for name in told["matrices"]}
    for name, other in told["tied"].items():
        if other not in tensors:
            raise RunError(f"'{folder}' ties '{name}' to '{other}', which is missing.", next_step=AGAIN)
    return PackedModel(matrices, tensors, told["tied"], told["bits"], told["group"], told["share"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{folder}' is no packed model: {MANIFEST} cannot be read ({error}).",
                       next_step="give a folder that ontarget compress wrote") from error  # fmt: skip
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise RunError(f"'{path}' is not of the format {FORMAT}.", next_step="give a folder of ontarget compress")
    if told.get("version") != VERSION:
        raise RunError(f"'{path}' has version {told.get('version')!r}.", allowed=str(VERSION),
                       next_step="read it with the release that wrote it, or compress the model again")  # fmt: skip
    sizes = told.get("matrices")
    right = (
        _whole(told.get("bits"), 2) and told["bits"] <= 8 and _whole(told.get("group"), 8)
        and isinstance(told.get("share"), int | float) and isinstance(told.get("tied"), dict)
        and isinstance(sizes, dict) and bool(sizes)
        and all(isinstance(size, list) and len(size) == 2 and all(_whole(side, 1) for side in size)
                for size in sizes.values())
    )  # fmt: skip
    if not right:
        raise RunError(f"'{path}' does not tell bits, group, share, matrices and tied as it should.", next_step=AGAIN)
    return told


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _matrix(folder: Path, told: Mapping[str, Any], name: str, tensors: dict[str, Tensor]) -> QuantizedMatrix:
    """One matrix, taken out of ``tensors``."""
    (rows, inputs), bits = told["matrices"][name], told["bits"]
    groups = -(-inputs // told["group"])
    wide = torch.uint16 if inputs <= 1 << 16 else torch.int32
    values = tensors.get(f"{name}.weight.values")
    count = len(values) if values is not None and values.ndim == 1 else 0
    wanted = {
        "codes": (torch.uint8, (rows, -(-inputs * bits // 8))), "scale": (torch.float16, (rows, groups)),
        "low": (torch.float16, (rows, groups)), "starts": (torch.int32, (rows + 1,)), "columns": (wide, (count,)),
        "values": (torch.float16, (count,)),
    }  # fmt: skip
    parts: dict[str, Tensor] = {}
    for part, (kind, shape) in wanted.items():
        value = tensors.pop(f"{name}.weight.{part}", None)
        if value is None:
            raise RunError(f"'{folder / WEIGHTS}' lacks the tensor '{name}.weight.{part}'.", next_step=AGAIN)
        if value.dtype != kind or tuple(value.shape) != shape:
            raise RunError(f"'{name}.weight.{part}' of '{folder / WEIGHTS}' is {value.dtype} {tuple(value.shape)}.",
                           allowed=f"{kind} {shape}", next_step=AGAIN)  # fmt: skip
        parts[part] = value
    starts, columns = parts["starts"], parts["columns"].int()
    steady = int(starts[0]) == 0 and int(starts[-1]) == count and bool((starts[1:] >= starts[:-1]).all())
    if not steady or (count and not 0 <= int(columns.min()) <= int(columns.max()) < inputs):
        raise RunError(f"The outliers of '{name}' in '{folder}' lie outside of their matrix.", next_step=AGAIN)
    codes = unpack(parts["codes"], bits, inputs)
    return QuantizedMatrix(codes, parts["scale"], parts["low"], starts, columns, parts["values"], bits, told["group"])


def load_dequantized(folder: Path, *, dtype: str = "float32") -> Any:
    """The causal language model with its weights written out, in evaluation mode.

    Raises RunError: see `read_packed`.
    """
    kind = getattr(torch, dtype)
    return _built(folder, read_packed(folder), lambda name, one: one.dequantized().to(kind), kind)


def load_to_answer(folder: Path) -> Any:
    """The model as it answers fastest on a CPU: in few bits where PyTorch's kernel takes all of its matrices (4 bits or
    fewer), otherwise with its weights written out in bfloat16. In evaluation mode. Raises RunError: see `read_packed`.
    """
    from ontarget.compress.gwq_linear import kernel_takes

    packed = read_packed(folder)
    if all(kernel_takes(one, torch.bfloat16) for one in packed.matrices.values()):
        return _in_few_bits(folder, packed, torch.bfloat16, "auto")
    return _built(folder, packed, lambda name, one: one.dequantized().bfloat16(), torch.bfloat16)


def load_packed(folder: Path, *, dtype: str = "bfloat16", path: str = "auto") -> Any:
    """The causal language model with `GwqLinear` layers, whose weights stay in few bits; in evaluation mode.

    dtype: of all else and of the results. path: see `GwqLinear`.
    Raises RunError: see `read_packed`; SettingError: a path that is not there.
    """
    return _in_few_bits(folder, read_packed(folder), getattr(torch, dtype), path)


def _in_few_bits(folder: Path, packed: PackedModel, kind: torch.dtype, path: str) -> Any:
    """``packed``, as `read_packed` gave it, is emptied: unpacked codes are a byte a weight, and go one by one."""
    from ontarget.compress.gwq_linear import use_packed_layers

    model = _built(folder, packed, None, kind)
    matrices: Any = packed.matrices
    for name in list(matrices):
        use_packed_layers(model, {name: matrices.pop(name)}, dtype=kind, path=path)
    return model


def _built(
    folder: Path, packed: PackedModel, weight: Callable[[str, QuantizedMatrix], Tensor] | None, kind: torch.dtype
) -> Any:
    """The model of a folder's config with the stored tensors; without ``weight``, quantised layers have none yet."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before version 5
        from transformers.modeling_utils import no_init_weights
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with no_init_weights():  # nothing is touched that is overwritten: memory is not taken for it
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise RunError(f"'{folder}' has no config of a causal language model ({error}).", next_step=AGAIN) from error
    state = model.state_dict()
    found = {name: value.to(kind) if value.is_floating_point() else value for name, value in packed.others.items()}
    found |= {name: found[other] for name, other in packed.tied.items()}
    for name, one in packed.matrices.items():
        found[f"{name}.weight"] = torch.empty(one.codes.shape, device="meta") if weight is None else weight(name, one)
    for name, value in state.items():
        if name not in found:
            raise RunError(f"'{folder / WEIGHTS}' lacks the tensor '{name}' of the model.", next_step=AGAIN)
        if found[name].shape != value.shape:
            raise RunError(f"'{name}' of '{folder / WEIGHTS}' has shape {tuple(found[name].shape)}, not "
                           f"{tuple(value.shape)} as in the config.", next_step=AGAIN)  # fmt: skip
    extra = sorted(set(found) - set(state))
    if extra:
        raise RunError(f"'{folder / WEIGHTS}' has the tensor '{extra[0]}', which the model has not.", next_step=AGAIN)
    model.load_state_dict(found, assign=True)
    model.tie_weights()
    for buffer_name, buffer in model.named_buffers():
        if buffer_name not in state and buffer.is_meta:
            raise RunError(f"The buffer '{buffer_name}' cannot be made anew.", next_step="use load_dequantized")
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk of the weights' file, of all files, and of the same weights in bfloat16; bytes a weight."""

    weights_bytes: int
    folder_bytes: int
    bfloat16_bytes: int
    bytes_per_weight: float
    matrix_bits: float


def sizes(folder: Path) -> Sizes:
    """Everything counted: scales, outliers, row starts, embeddings, the file's header. Raises RunError."""
    from ontarget.compress.gwq import average_bits

    packed = read_packed(folder)
    on_disk = (folder / WEIGHTS).stat().st_size
    every = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Sizes(on_disk, every, 2 * packed.weights, on_disk / packed.weights, average_bits(packed.matrices))
