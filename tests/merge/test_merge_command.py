"""`ontarget merge` as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.errors import OnTargetError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base, one, two: four tiny layers and what is around them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    names = ["model.embed_tokens.weight", *(f"model.layers.{at}.mlp.weight" for at in range(4)), "lm_head.weight"]
    base = {name: torch.randn(6, 8, generator=generator) for name in names}
    for model, step in (("base", 0.0), ("one", 0.1), ("two", 0.3)):
        (tmp_path / model).mkdir()
        tuned = {name: value + step * torch.randn(6, 8, generator=generator) for name, value in base.items()}
        save_file(tuned, tmp_path / model / "model.safetensors")
    return tmp_path


def run(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["merge", *arguments, "-q"])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def test_models_are_merged_and_the_plan_does_it_again(folder: Path) -> None:
    assert "1 file(s)" in run("one", "two", "--base", "base", "-m", "ties", "--density", "0.5", "-o", "merged")
    run("merged/mergekit_config.yml", "-o", "again")
    first, second = (load_file(folder / name / "model.safetensors") for name in ("merged", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    run("one", "two", "-w", "0.25", "-w", "0.75", "-o", "mean")
    one, two, mean = (load_file(folder / name / "model.safetensors") for name in ("one", "two", "mean"))
    name = "lm_head.weight"
    torch.testing.assert_close(mean[name], 0.25 * one[name] + 0.75 * two[name])
    run("one", "two", "-m", "layer_swapping", "--bottom", "1", "--top", "1", "--transition", "0", "-o", "swapped")
    swapped = load_file(folder / "swapped" / "model.safetensors")
    assert torch.equal(swapped["model.layers.1.mlp.weight"], one["model.layers.1.mlp.weight"])
    assert torch.equal(swapped["model.layers.3.mlp.weight"], two["model.layers.3.mlp.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "two", "-m", "tise"], "(?s)'tise' is no method.*did you mean 'ties'"),
        (["one", "two", "-m", "ties"], "needs the base"),
        (["one", "two", "-w", "1"], "2 models and 1 weights"),
        (["one", "three"], "There is no 'three'"),
        (["one", "one"], "'one' is named twice"),
        (["one", "two", "--base", "base", "-m", "ties", "--density", "1.5"], "(?s)density is 1.5.*above 0 to 1"),
        (["one", "two", "--base", "base", "-m", "ties", "--gamma", "0.1"], "ties has no parameter 'gamma'"),
        (["one", "-m", "layer_swapping"], "the task expert and the language expert"),
        (["one", "two", "-o", "base"], "'base' exists"),
        (["one", "two", "--as-adapter"], "has no adapter_config.json"),
        (["one", "two", "--dtype", "float8"], "(?s)'float8' is no type.*bfloat16"),
    ],
)
def test_wrong_input_says_what_to_do_and_writes_nothing(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OnTargetError, match=message):
        run(*arguments)
    assert sorted(path.name for path in folder.iterdir()) == before
