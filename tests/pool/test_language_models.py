"""Causal language models: what is refused before any work, each with a sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ontarget.errors import DataError, SettingError
from ontarget.pool.language_models import is_language_model, load_language_model


def config(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, **fields}))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickled, "pickled weights alone"),
        (truncated, "model.safetensors"),
        (without_tokenizer, "no tokenizer"),
        (config(model_type="t5"), "'t5', which is no causal language model"),
        (config(model_type="mine", auto_map={"AutoConfig": "code.Config"}), "brings its own code, which is not run"),
        (config(num_hidden_layers=3), "lacks"),
        (config(intermediate_size=50), "intermediate|mismatch|size|lacks"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "0 safetensors files"),
    ],
)
def test_folders_that_cannot_be_served(
    language_folder: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(language_folder, folder)
    change(folder)
    with pytest.raises(DataError, match=words):
        load_language_model(str(folder))


def test_options_that_cannot_be(language_folder: Path) -> None:
    for option in ({"window": 5000}, {"window": 1}, {"dtype": "int3"}, {"device": "meat"}):
        with pytest.raises(SettingError, match=next(iter(option)) if "window" in option else "meat|int3"):
            load_language_model(str(language_folder), **option)  # type: ignore[arg-type]
    assert load_language_model(str(language_folder), window=100).window == 100


def test_bundles_and_models_are_told_apart(language_folder: Path, tmp_path: Path) -> None:
    assert is_language_model(str(language_folder))
    assert is_language_model("zoo:smollm2-135m")
    (tmp_path / "bundle.json").write_text("{}")
    assert not is_language_model(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["BUNDLE", "--slots", "2"], "a bundle has no slots"),
        (["BUNDLE", "--api-key", "x"], "a bundle has no api key"),
        (["MODEL", "--max-rows", "3"], "has no rows"),
        (["MODEL", "--slots", "0"], "slots is 0"),
        (["MODEL", "--api-key", ""], "empty"),
        (["MODEL", "--timeout-s", "0"], "timeout_s is 0"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(
    language_folder: Path, tmp_path: Path, given: list[str], words: str
) -> None:
    from ontarget.cli import app

    (tmp_path / "bundle.json").write_text("{}")
    names = {"BUNDLE": str(tmp_path), "MODEL": str(language_folder)}
    error = CliRunner().invoke(app, ["serve", *(names.get(word, word) for word in given)]).exception
    assert isinstance(error, SettingError)
    assert words in str(error)


def test_a_model_in_few_bits_is_loaded_in_them_or_written_out(tmp_path: Path) -> None:
    import torch

    from ontarget.compress.gwq_linear import GwqLinear
    from ontarget.compress.packed_checkpoint import load_dequantized, write_packed
    from ontarget.compress.quantise_language_model import packed_mb, quantise_language_model
    from ontarget.testing.tiny_llama import byte_tokenizer, write_tiny_llama

    # Sides that the kernel takes.
    source = load_language_model(str(write_tiny_llama(tmp_path / "whole", byte_tokenizer(), hidden_size=64,
                                                      intermediate_size=128, dtype="bfloat16")))  # fmt: skip
    expected = packed_mb(source.model, 4)
    ids = torch.arange(200).numpy()
    packed = quantise_language_model(source.model, ids, bits=4, window=64)
    folder = write_packed(packed, tmp_path / "small", copy_from=source.folder)
    # The file also has a header, which does not count beside weights of a real size.
    on_disk = (folder / "gwq.safetensors").stat().st_size
    header = int.from_bytes((folder / "gwq.safetensors").read_bytes()[:8], "little") + 8
    assert on_disk - header == pytest.approx(2**20 * expected, rel=0.01)

    few = load_language_model(str(folder), dtype=None)
    assert sum(isinstance(layer, GwqLinear) for layer in few.model.modules()) == 14
    assert (few.window, few.stop_ids) == (source.window, source.stop_ids)
    whole = load_language_model(str(folder))
    given = torch.arange(60)[None]
    with torch.inference_mode():
        assert torch.equal(whole.model(given).logits, source.model(given).logits)
        assert torch.equal(whole.model(given).logits, load_dequantized(folder)(given).logits)
        close = few.model(given).logits.float() - whole.model(given).logits
    # bfloat16 through two blocks of large weights.
    assert float(close.abs().mean()) < 0.03 * float(whole.model(given).logits.abs().mean())


@pytest.mark.parametrize(("width", "bits"), [(64, 8), (32, 4)])
def test_few_bits_without_a_kernel_are_written_out(tmp_path: Path, width: int, bits: int) -> None:
    import torch

    from ontarget.compress.packed_checkpoint import load_packed, write_packed
    from ontarget.compress.quantise_language_model import quantise_language_model
    from ontarget.testing.tiny_llama import byte_tokenizer, write_tiny_llama

    whole = write_tiny_llama(tmp_path / "whole", byte_tokenizer(), hidden_size=width, intermediate_size=128)
    source = load_language_model(str(whole))
    packed = quantise_language_model(source.model, torch.arange(64).numpy(), bits=bits)
    folder = write_packed(packed, tmp_path / "small", copy_from=source.folder)
    model = load_language_model(str(folder), dtype=None).model
    assert not packed.matrices.keys() - {name for name, layer in model.named_modules()
                                         if type(layer) is torch.nn.Linear}  # fmt: skip
    given = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(model(given).logits, load_packed(folder, path="dequantize")(given).logits)


def test_few_bits_that_are_cut_off_are_refused(language_folder: Path, tmp_path: Path) -> None:
    import torch

    from ontarget.compress.packed_checkpoint import write_packed
    from ontarget.compress.quantise_language_model import quantise_language_model
    from ontarget.errors import RunError

    source = load_language_model(str(language_folder))
    packed = quantise_language_model(source.model, torch.arange(64).numpy(), bits=3)
    folder = write_packed(packed, tmp_path / "small", copy_from=source.folder)
    weights = folder / "gwq.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for dtype in (None, "float32"):
        with pytest.raises(RunError, match=r"gwq\.safetensors.*cut off"):
            load_language_model(str(folder), dtype=dtype)
