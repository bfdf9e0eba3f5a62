"""Forms of a language model: which is deployed under which limits, and that few bits go through bundle and server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.data.generation_data import load_generation
from ontarget.plan import language_variants
from ontarget.plan.language_trials import answer_as_tried, validation_part
from ontarget.plan.language_variants import FEW_BITS, least_mb, variants
from ontarget.pool.language_models import load_language_model
from ontarget.serve.lay_out_to_answer import lay_out_to_answer
from ontarget.task import Limits, Task
from ontarget.values import Array, Context, GenerationData


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> GenerationData:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"asked": f"{letter} plus {number}", "said": f"{number} {letter}"}
            for letter in "abcdefgh" for number in range(8)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_generation(
        Task(data=str(path), kind="generation", input="asked", target="said", metric="neg_perplexity")
    )


@pytest.fixture(scope="module")
def scores(data: GenerationData, tiny_language_model: Path) -> Array:
    source = load_language_model(str(tiny_language_model))
    return answer_as_tried(source, validation_part(data), data, {}).rows


def told(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["dtype"]: row for row in rows}


def test_a_size_that_only_few_bits_have(
    data: GenerationData, scores: Array, tiny_language_model: Path, tmp_path: Path
) -> None:
    source = load_language_model(str(tiny_language_model))
    assert least_mb(source, "cpu") < 0.028 < least_mb(source, "cuda")
    limits = Limits(size_mb=0.028)
    rows = variants(tiny_language_model, data, scores, {"settings": {}}, limits, tmp_path, context=Context())
    forms = told(rows)
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", FEW_BITS]
    assert "size_mb is" in forms["float32"]["reason"] and "size_mb is" in forms["bfloat16"]["reason"]
    few = forms[FEW_BITS]
    assert few["kept"] and not few["over"] and few["memory_mb"] > 0
    assert few["size_mb"] == (Path(few["path"]) / "gwq.safetensors").stat().st_size / 2**20
    # Scored as it is deployed: in few bits.
    loaded = load_language_model(few["path"], dtype=None)
    lay_out_to_answer(loaded.model)
    again = answer_as_tried(loaded, validation_part(data), data, {}).rows
    assert few["validation"] == pytest.approx(-np.exp(-again.mean()))
    # A second call, as after a kill, quantises nothing again.
    before = (Path(few["path"]) / "gwq.safetensors").stat().st_mtime_ns
    variants(tiny_language_model, data, scores, {"settings": {}}, limits, tmp_path, context=Context())
    assert (Path(few["path"]) / "gwq.safetensors").stat().st_mtime_ns == before


def test_nothing_fits(data: GenerationData, scores: Array, tiny_language_model: Path, tmp_path: Path) -> None:
    rows = variants(tiny_language_model, data, scores, {"settings": {}}, Limits(size_mb=0.001), tmp_path)
    assert not any(row["kept"] for row in rows)
    assert all("size_mb is" in row["reason"] and row["validation"] is None for row in rows[1:])


def test_a_form_that_is_worse_is_not_taken(
    data: GenerationData, scores: Array, tiny_language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are the machine's, so slowness is not counted here; scores of the first form are raised."""
    monkeypatch.setattr(language_variants, "SLOWER", float("inf"))
    given = (tiny_language_model, data)
    same = told(variants(*given, scores, {"settings": {}}, Limits(), tmp_path / "same"))
    assert [name for name, row in same.items() if row["kept"]] in (["bfloat16"], [FEW_BITS])
    better = told(variants(*given, scores + 1.0, {"settings": {}}, Limits(), tmp_path / "better"))
    assert better["float32"]["kept"] and not better["float32"]["reason"]
    assert all("worse by" in better[name]["reason"] for name in ("bfloat16", FEW_BITS))
    # The only ones within a limit are taken in spite of that, and tell it.
    limits = Limits(size_mb=1.1 * same["bfloat16"]["size_mb"])
    only = told(variants(*given, scores + 1.0, {"settings": {}}, limits, tmp_path / "only"))
    kept = next(row for row in only.values() if row["kept"])
    assert kept["dtype"] != "float32" and "worse by" in kept["reason"]
    assert kept["validation"] == max(only[name]["validation"] for name in ("bfloat16", FEW_BITS))


def test_an_architecture_without_linear_layers_says_so(
    data: GenerationData, tiny_language_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, eos_token_id=0,
                   bos_token_id=0)
    ).save_pretrained(tmp_path / "gpt2")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "gpt2")
    scores = answer_as_tried(load_language_model(str(tmp_path / "gpt2")), validation_part(data), data, {}).rows
    rows = told(variants(tmp_path / "gpt2", data, scores, {"settings": {}}, Limits(), tmp_path / "forms"))
    assert "no linear layers but its head" in rows[FEW_BITS]["reason"] and not rows[FEW_BITS]["kept"]
    assert any(row["kept"] for row in rows.values())
