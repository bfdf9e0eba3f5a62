"""Intruder dimensions by hand; a planted one found and scaled away; the command from adapter to repaired model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.errors import DataError, RunError, SettingError
from ontarget.judge.audit_intruders import audit_intruders, choose_factor, losses, matrix, write_repaired
from ontarget.judge.intruder_dimensions import counts, intruder_dimensions, scaled_down
from ontarget.merge.checkpoint import Checkpoint
from ontarget.merge.merge_models import open_weights


def test_a_planted_direction_is_the_only_intruder_and_goes() -> None:
    generator = np.random.default_rng(0)
    base = np.diag([5.0, 4.0, 3.0, 2.0])
    base = np.vstack([base, np.zeros((4, 4))]).astype(np.float32)  # its left vectors span the first four axes
    new = np.zeros((8, 1), dtype=np.float32)
    new[6] = 1.0
    planted = base + 10 * new @ np.array([[0.0, 0.0, 0.0, 1.0]], dtype=np.float32)
    found = intruder_dimensions(base, planted, top=4)
    assert found.nearest[0] < 0.3 and found.intruders().tolist() == [0]
    assert found.nearest[1:].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    gone = scaled_down(planted, found, 0.0)
    np.testing.assert_allclose(gone, base * [1, 1, 1, 0], atol=1e-5)  # the planted direction took the last axis along
    np.testing.assert_allclose(scaled_down(planted, found, 1.0), planted, atol=1e-6)
    # Another order and other signs of the same directions are no intruders.
    shuffled = intruder_dimensions(base, -base[:, [2, 0, 3, 1]])
    assert shuffled.nearest == pytest.approx(np.ones(4), abs=1e-5)
    small = base + 0.01 * generator.normal(size=base.shape).astype(np.float32)
    assert not len(intruder_dimensions(base, small).intruders())
    assert counts([found.nearest, shuffled.nearest], [0.1, 0.5, 1.1]) == [int(found.nearest[0] < 0.1), 1, 8]


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"shapes \(3, 2\) and \(2, 3\)"):
        intruder_dimensions(np.ones((3, 2)), np.ones((2, 3)))
    with pytest.raises(DataError, match="not finite"):
        intruder_dimensions(np.ones((2, 2)), np.array([[1, np.nan], [0, 1]]))
    found = intruder_dimensions(np.eye(3), np.eye(3))
    with pytest.raises(SettingError, match=r"The factor is 2"):
        scaled_down(np.eye(3), found, 2.0)


def test_a_factor_is_taken_only_where_it_helps() -> None:
    rows = [{"factor": f, "proxy_loss": p, "target_loss": t}
            for f, p, t in ((1.0, 3.0, 2.0), (0.5, 2.5, 2.01), (0.0, 2.0, 2.2))]  # fmt: skip
    assert choose_factor(rows) == 0.5
    assert choose_factor([rows[0], rows[2]]) is None


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """base/ and adapter/, a LoRA of rank 1 with a large product; two files of texts."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=2, intermediate_size=48, max_position_embeddings=32)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer = Tokenizer(models.WordLevel({f"w{at}": at for at in range(30)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "base")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"),
                           LoraConfig(r=1, lora_alpha=2, target_modules=["down_proj"]))  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=1.0)
    model.save_pretrained(tmp_path / "adapter")
    generator = np.random.default_rng(0)
    for name in ("proxy", "target"):
        lines = [" ".join(f"w{at}" for at in generator.integers(0, 30, 8)) for _ in range(4)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_from_an_adapter_to_a_repaired_model(models: Path) -> None:
    command = ["judge", "intruders", str(models / "adapter"), "--base", str(models / "base"), "-q",
               "-o", str(models / "audit")]  # fmt: skip
    found = CliRunner().invoke(app, [*command, "--proxy", str(models / "proxy.txt"), "--target",
                                     str(models / "target.txt"), "--factor", "0"])  # fmt: skip
    assert found.exit_code == 0, found.output
    told = json.loads((models / "audit" / "audit.json").read_text())
    assert [row["module"] for row in told["matrices"]] == ["mlp.down_proj"] * 2  # the others did not change
    assert all(row["intruders"] == 1 for row in told["matrices"])
    assert [row["factor"] for row in told["repairs"]] == [1.0, 0.75, 0.5, 0.25, 0.0]
    base, repaired = Checkpoint(models / "base"), Checkpoint(models / "audit" / "repaired")
    name = told["matrices"][0]["name"]
    left = np.linalg.svd(matrix(repaired, name))[0][:, 0]
    assert np.abs(left @ np.linalg.svd(matrix(base, name), full_matrices=False)[0]).max() > 0.5
    assert losses(models / "audit" / "repaired", ["w1 w2 w3"]) > 0
    page = (models / "audit" / "audit.html").read_text()
    assert "<script" not in page and "mlp.down_proj" in page and "Repair" in page
    assert not (models / "audit" / "tried").exists()


def test_a_repair_is_what_scaling_each_matrix_gives(models: Path) -> None:
    base = Checkpoint(models / "base")
    tuned = open_weights(str(models / "adapter"), base)
    audit = audit_intruders(base, tuned)
    assert len(audit.directions) == 2 and "directions" not in audit.told()
    for factor in (1.0, 0.5, 0.0):
        folder = write_repaired(tuned, audit, factor, models / f"repaired-{factor}", copy_from=models / "base")
        repaired = Checkpoint(folder)
        for name in base.entries:
            after = matrix(tuned, name)
            if "down_proj" in name:
                after = scaled_down(after, intruder_dimensions(matrix(base, name), after), factor)
            np.testing.assert_array_equal(matrix(repaired, name), after)
    with pytest.raises(RunError, match="exists"):
        write_repaired(tuned, audit, 0.0, folder, copy_from=models / "base")


def test_wrong_models_and_options(models: Path, tmp_path: Path) -> None:
    base = Checkpoint(models / "base")
    assert audit_intruders(base, base).matrices == ()
    with pytest.raises(SettingError, match="epsilon is 0"):
        audit_intruders(base, base, epsilon=0.0)
    for more, message in ((["--proxy", str(models / "proxy.txt")], "One of --proxy and --target"),
                          (["--proxy", "none.txt", "--target", "none.txt"], "'none.txt' cannot be read")):  # fmt: skip
        found = CliRunner().invoke(app, ["judge", "intruders", str(models / "adapter"), "--base", str(models / "base"),
                                         "-o", str(tmp_path / "a"), *more])  # fmt: skip
        assert message in str(found.exception)
