from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ontarget.adapt.align.supervised_fine_tuning import loss_sum, padded_batches, supervised_fine_tuning
from ontarget.adapt.answers import answer_losses, generate_answers
from ontarget.errors import DataError, RunError, SettingError
from ontarget.pool.language_models import load_language_model
from ontarget.values import Context

PROMPTS = [f"say {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")]
ANSWERS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_loss_is_that_of_the_answers_alone(tiny_language_model: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    rows = [(source.prompt_ids(p), source.answer_ids(a)) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    total = sum(loss_sum(source.model, *batch).item() for batch in padded_batches(rows))
    sums, counts = answer_losses(source, PROMPTS, ANSWERS)
    assert total == pytest.approx(float(sums.sum()), rel=1e-5)
    assert counts.tolist() == [len(answer) + 1 for answer in ANSWERS]  # its end is a token too
    for (prompt, answer), expected in zip(rows, sums, strict=True):  # one by one, by transformers' own loss
        ids = torch.tensor([[*prompt, *answer]])
        wanted = torch.tensor([[*[-100] * len(prompt), *answer]])
        assert source.model(ids, labels=wanted).loss.item() * len(answer) == pytest.approx(expected, rel=1e-4)


def test_it_learns_its_answers(tiny_language_model: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    tuned = supervised_fine_tuning(source, PROMPTS, ANSWERS, mode="full", rate=1e-2, epochs=120)
    assert tuned.curve[-1] < 0.1 < tuned.curve[0]
    assert tuned.tokens == 120 * sum(len(answer) + 1 for answer in ANSWERS)
    assert generate_answers(source, PROMPTS, max_new_tokens=4) == ANSWERS


@pytest.mark.parametrize(
    ("mode", "changes"),
    [("lora", "self_attn.q_proj"), ("full", "embed_tokens"), ("last", "layers.1.")],
)
def test_what_each_mode_changes(tiny_language_model: Path, mode: Any, changes: str) -> None:
    source = load_language_model(str(tiny_language_model))
    before = weights(source.model)
    tuned = supervised_fine_tuning(source, PROMPTS, ANSWERS, mode=mode, last_blocks=1, epochs=1, rate=1e-2)
    after = weights(source.model)
    assert after.keys() == before.keys()  # adapters are added into the weights
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(changes in name for name in changed)
    if mode != "full":
        assert not any("embed_tokens" in name or "lm_head" in name for name in changed)
    if mode == "last":
        assert all("layers.1." in name for name in changed)
    assert (tuned.adapter is not None) == (mode == "lora")
    assert not any(parameter.requires_grad for parameter in source.model.parameters())


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_stopped_run_ends_as_an_undisturbed_one(tiny_language_model: Path, tmp_path: Path, mode: Any) -> None:
    def tuned(state: Path | None, stop_at: int = 10**9) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            if done >= stop_at:
                raise KeyboardInterrupt

        source = load_language_model(str(tiny_language_model))
        context = Context(seed=3, progress=progress)
        supervised_fine_tuning(
            source, PROMPTS, ANSWERS, mode=mode, epochs=3, rate=1e-3, state=state, context=context
        )  # fmt: skip
        return source

    whole = tuned(None)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "state", stop_at=2 * len(PROMPTS))
    went_on = tuned(tmp_path / "state")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(went_on.model.state_dict()[name], value, rtol=0, atol=1e-7)


def test_batched_answers_are_those_of_one_prompt_at_a_time(tiny_language_model: Path, tmp_path: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    prompts = ["a", "what is 1+1?", "b" * 60, "say one, then two", ""]
    kept = tmp_path / "answers.jsonl"
    together = generate_answers(source, prompts, max_new_tokens=8, kept=kept)
    assert together == [generate_answers(source, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    ids = torch.tensor([source.prompt_ids(prompts[1])])
    made: list[int] = []
    for _ in range(8):
        made.append(
            int(source.model(torch.cat([ids, torch.tensor([made], dtype=torch.int64)], 1)).logits[0, -1].argmax())
        )
        if made[-1] in source.stop_ids:
            break
    assert together[1] == source.text(made)
    kept.write_text(kept.read_text() + '{"prompt": "half a li')  # killed while it wrote
    assert generate_answers(replace(source, model=None), prompts, max_new_tokens=8, kept=kept) == together


def test_wrong_input(tiny_language_model: Path, tmp_path: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    with pytest.raises(DataError, match="Row 1 has"):
        supervised_fine_tuning(source, ["a", "b" * 100], ["c", "d" * 100])
    with pytest.raises(DataError, match="128"):
        generate_answers(source, ["a" * 100], max_new_tokens=60)
    with pytest.raises(DataError, match="window"):
        generate_answers(source, ["a" * 200], max_new_tokens=1)
    with pytest.raises(SettingError, match="lora, full, last"):
        supervised_fine_tuning(source, ["a"], ["b"], mode="half")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="not finite"):
        supervised_fine_tuning(source, PROMPTS, ANSWERS, mode="full", rate=1e30, epochs=9)
