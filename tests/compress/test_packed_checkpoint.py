"""Packed folders: the round trip is exact, tied weights are there once, bytes by hand, damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ontarget.compress.gwq import QuantizedMatrix, gwq
from ontarget.compress.packed_checkpoint import (
    MANIFEST,
    WEIGHTS,
    load_dequantized,
    packed_model,
    read_packed,
    sizes,
    stored_as,
    write_packed,
)
from ontarget.errors import DataError, RunError

WORDS = 40


def compressed(
    word_model: Callable[..., Path], tmp_path: Path, *, bits: int = 3, **more: Any
) -> tuple[Any, dict[str, QuantizedMatrix], Path]:
    """The quantised model in memory, its matrices, and the folder that was written."""
    from transformers import AutoModelForCausalLM

    source = word_model(tmp_path / "model", **more)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.arange(2, WORDS)[None]
    matrices = gwq(model, lambda: model(ids, labels=ids).loss, bits=bits, group=16, share=0.03)
    folder = write_packed(packed_model(model, matrices, share=0.03), tmp_path / "small", copy_from=source)
    return model, matrices, folder


@pytest.mark.parametrize(("bits", "tied"), [(2, True), (3, False), (5, True), (8, False)])
def test_the_round_trip_is_exact(word_model: Callable[..., Path], tmp_path: Path, bits: int, tied: bool) -> None:
    # bfloat16 weights: nothing that is not quantised is rounded
    model, matrices, folder = compressed(word_model, tmp_path, bits=bits, tied=tied, dtype="bfloat16")
    read = read_packed(folder)
    assert list(read.matrices) == list(matrices) and len(matrices) == 2 * 7
    for name, one in matrices.items():
        for part in ("codes", "scale", "low", "starts", "columns", "values"):
            assert torch.equal(getattr(read.matrices[name], part), getattr(one, part)), (name, part)
    loaded = load_dequantized(folder)
    state = model.state_dict()
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ids = torch.arange(2, 30)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    # A head that is tied is stored once, and is one parameter again.
    assert ("lm_head.weight" in load_file(folder / WEIGHTS)) is not tied
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert {"config.json", "tokenizer.json", MANIFEST, WEIGHTS} <= {path.name for path in folder.iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bytes_are_those_on_disk(word_model: Callable[..., Path], tmp_path: Path) -> None:
    _, matrices, folder = compressed(word_model, tmp_path, bits=3)
    told = sizes(folder)
    # Two layers: q, o (32, 32), k, v (16, 32), gate, up (40, 32), down (32, 40); a tied embedding; five norms of 32.
    shapes = [(32, 32)] * 2 + [(16, 32)] * 2 + [(40, 32)] * 2 + [(32, 40)]
    numbers = 2 * sum(m * n for m, n in shapes) + WORDS * 32 + 5 * 32
    each = [m * (n * 3 // 8) + m * -(-n // 16) * 4 + (m + 1) * 4 + int(0.03 * m * n) * 4 for m, n in shapes]
    content = 2 * sum(each) + 2 * (WORDS * 32 + 5 * 32)
    header = 8 + int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    assert told.weights_bytes == (folder / WEIGHTS).stat().st_size == content + header
    assert told.bytes_per_weight == pytest.approx((content + header) / numbers)
    assert told.bfloat16_bytes == 2 * numbers
    assert told.matrix_bits == pytest.approx(8 * sum(each) / sum(m * n for m, n in shapes))
    assert told.folder_bytes > told.weights_bytes
    assert len(matrices) == 14


def test_types_of_what_is_not_quantised() -> None:
    third = torch.tensor([1 / 3, 2.0])
    assert stored_as(third.half().float()).dtype == torch.float16
    assert stored_as(third.bfloat16().float() * 2.0**100).dtype == torch.bfloat16  # too large for float16
    assert torch.equal(stored_as(third), third.half())
    assert torch.equal(stored_as(torch.tensor([1e6 + 1, 1 / 3])), torch.tensor([1e6 + 1, 1 / 3]))
    assert stored_as(torch.tensor([3])).dtype == torch.int64


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())
        change(told)
        (folder / MANIFEST).write_text(json.dumps(told))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return apply


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(lambda told: told.update(version=2)), "has version 2"),
        (changed(lambda told: told.update(format="gptq")), "not of the format"),
        (changed(lambda told: told.update(bits=9)), "does not tell bits"),
        (changed(lambda told: told["matrices"].update({Q: [32, 48]})), r"codes' .* is torch.uint8 \(32, 12"),
        (changed(lambda told: told["tied"].update({"lm_head.weight": "gone"})), "ties 'lm_head.weight' to 'gone'"),
        (lambda folder: (folder / MANIFEST).unlink(), "is no packed model"),
        (lambda folder: (folder / WEIGHTS).unlink(), "missing, cut off or damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "cut off or damaged"),
        (lambda folder: (folder / "config.json").unlink(), "no config of a causal language model"),
        (tensors(lambda found: found.pop(f"{Q}.weight.scale")), f"lacks the tensor '{Q}.weight.scale'"),
        (tensors(lambda found: found.pop("model.norm.weight")), "lacks the tensor 'model.norm.weight' of the model"),
        (tensors(lambda found: found.update(more=torch.ones(2))), "'more', which the model has not"),
        (tensors(lambda found: found.update({"model.norm.weight": torch.ones(31)})), r"has shape \(31,\)"),
        (tensors(lambda found: found[f"{Q}.weight.columns"].view(torch.int16).fill_(32)), "outside of their matrix"),
        (tensors(lambda found: found[f"{Q}.weight.starts"][1].fill_(999)), "outside of their matrix"),
    ],
)  # fmt: skip
def test_damage_is_named(
    word_model: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    _, _, folder = compressed(word_model, tmp_path)
    damage(folder)
    with pytest.raises(RunError, match=message):
        load_dequantized(folder)


def test_nothing_is_left_behind_and_nothing_overwritten(word_model: Callable[..., Path], tmp_path: Path) -> None:
    model, matrices, folder = compressed(word_model, tmp_path)
    packed = packed_model(model, matrices, share=0.03)
    with pytest.raises(RunError, match="small' exists"):
        write_packed(packed, folder, copy_from=tmp_path / "model")
    full = dict(packed.others) | {"x": torch.ones(2, 2).t()[:, :1]}
    broken = type(packed)(packed.matrices, {**full, "y": object()}, {}, 3, 16, 0.03)  # type: ignore[dict-item]
    with pytest.raises(Exception, match="object"):
        write_packed(broken, tmp_path / "other", copy_from=tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]
    with pytest.raises(DataError, match="no matrix 'gone"):
        packed_model(model, {"gone": matrices[Q]}, share=0.03)
    with pytest.raises(DataError, match="0 matrices"):
        packed_model(model, {}, share=0.03)
