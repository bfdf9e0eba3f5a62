"""A whole fit of a generation task through the command line, on a tiny model with random weights."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.fitting import fit, resume

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 prompts: the answer is a number that the prompt names."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    found = [{"asked": f"{place} say {word}", "said": [f"{number}", f"number {number}"]}
             for place in "abcdefghij" for word, number in NUMBERS.items()]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, found)))
    return path


@pytest.fixture(scope="module")
def run(rows: Path, tiny_language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    result = CliRunner().invoke(app, [
        "fit", str(rows), "--kind", "generation", "-i", "asked", "-t", "said", "--pool", str(tiny_language_model),
        "--max-new-tokens", "4", "--budget", "200s", "--threads", "1", "--run", str(folder), "-q",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "exact_match" in result.output
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_everything_is_tried_and_the_best_is_taken(run: Path) -> None:
    trials = {trial["method"] + str(trial["settings"].get("mode", "")): trial
              for trial in map(read, sorted(run.glob("trials/*/trial.json")))}  # fmt: skip
    assert {"constant_answer", "nearest_answer", "as_is", "few_shot", "supervised_fine_tuninglora",
            "supervised_fine_tuningfull"} <= trials.keys()  # fmt: skip
    assert all(trial["state"] == "complete" for trial in trials.values())
    report = read(run / "report.json")
    chosen = report["decision"]["number"]
    best = max(trial["metric"] for trial in trials.values())
    assert next(trial for trial in trials.values() if trial["number"] == chosen)["metric"] == best
    # Prompts that differ in a letter have the same answer: looking the nearest one up is hard to beat.
    assert trials["nearest_answer"]["metric"] > trials["constant_answer"]["metric"]
    assert report["evidence"]["rows"] == report["data"]["rows"]["test"] == 16
    assert len(report["evidence"]["touches"]) == 1
    assert "no merge of" in report["merge"]["says"] or report["merge"]["taken"]
    page = (run / "report.html").read_text()
    assert "nearest_answer" in page and "<script" not in page


def test_a_tuned_model_is_one_for_transformers_and_its_adapter_one_for_peft(
    run: Path, tiny_language_model: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = next(path.parent for path in sorted(run.glob("trials/*/adapter")))
    tuned = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_language_model), folder / "adapter")
    ids = torch.arange(8)[None]
    torch.testing.assert_close(adapted(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_bundle_answers_and_tests_itself(run: Path, rows: Path, tmp_path: Path) -> None:
    checked = CliRunner().invoke(app, ["doctor", str(run / "bundle"), "--json"])
    assert checked.exit_code == 0, checked.output
    assert {check["name"]: check["state"] for check in json.loads(checked.output)} == {"files": "ok", "answers": "ok"}
    made = CliRunner().invoke(app, ["predict", str(run / "bundle"), str(rows), "-o", str(tmp_path / "out.csv")])
    assert made.exit_code == 0, made.output
    with open(tmp_path / "out.csv", newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    assert len(answers) == 80
    one = tmp_path / "one.csv"
    one.write_text("asked\na say one\n")
    again = CliRunner().invoke(app, ["predict", str(run / "bundle"), str(one), "--threads", "1"])
    assert again.stdout.splitlines()[:2] == ["row,answer", f"0,{answers[0]}"]
    with open(run / "bundle" / "selftest.json", "a") as file:
        file.write(" ")
    broken = CliRunner().invoke(app, ["doctor", str(run / "bundle")])
    assert broken.exit_code == 1


def test_a_size_limit_that_few_bits_alone_keep(rows: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    """GWQ's form through the bundle, its self-test, predictions, and the page."""
    found = fit(rows, kind="generation", input="asked", target="said", pool=[str(tiny_language_model)],
                metric="neg_perplexity", max_new_tokens=3, size_mb=0.028, budget_s=100, threads=1,
                run=tmp_path / "run")  # fmt: skip
    kept = next(row for row in found.report["decision"]["variants"] if row["kept"])
    assert kept["dtype"] == "4 bits (GWQ)"
    bundle = tmp_path / "run" / "bundle"
    assert (bundle / "gwq.safetensors").exists() and not (bundle / "model.safetensors").exists()
    assert "few bits" in (bundle / "README.md").read_text()
    checked = CliRunner().invoke(app, ["doctor", str(bundle), "--json"])
    assert {check["name"]: check["state"] for check in json.loads(checked.output)} == {"files": "ok", "answers": "ok"}
    assert len(found.predict(["a say one"])) == 1
    assert "4 bits (GWQ)" in (tmp_path / "run" / "report.html").read_text()


def test_a_pool_of_few_bits(rows: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    """Tuned, judged and bundled from its weights written out."""
    import torch

    from ontarget.compress.packed_checkpoint import write_packed
    from ontarget.compress.quantise_language_model import quantise_language_model
    from ontarget.pool.language_models import load_language_model

    source = load_language_model(str(tiny_language_model))
    packed = quantise_language_model(source.model, torch.arange(40).numpy(), bits=3)
    few = write_packed(packed, tmp_path / "few", copy_from=source.folder)
    found = fit(rows, kind="generation", input="asked", target="said", pool=[str(few)], metric="neg_perplexity",
                max_new_tokens=3, budget_s=100, threads=1, run=tmp_path / "run")  # fmt: skip
    assert {"complete"} == {trial["state"] for trial in found.report["trials"]}
    assert "in few bits" in found.report["merge"]["says"]
    assert CliRunner().invoke(app, ["doctor", str(tmp_path / "run" / "bundle")]).exit_code == 0


def test_a_killed_run_ends_as_an_undisturbed_one(rows: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    """Stopped three times: while a model is tuned, while merges are tried, while test rows are answered."""
    given: dict[str, Any] = {
        "kind": "generation", "input": "asked", "target": "said", "pool": [str(tiny_language_model)],
        "max_new_tokens": 2, "budget_s": 300, "threads": 1,
    }  # fmt: skip
    whole = fit(rows, run=tmp_path / "whole", **given)
    stops = iter(["fine-tuning", "tuning the merge's weights", "measuring bfloat16"])
    waiting = [next(stops)]

    def progress(done: int, total: int, what: str) -> None:
        if waiting and what == waiting[0] and done:
            waiting[:] = [following] if (following := next(stops, None)) else []
            raise KeyboardInterrupt

    folder, stopped = tmp_path / "stopped", 0
    for _ in range(6):
        try:
            found = resume(folder, progress=progress) if folder.exists() else fit(
                rows, run=folder, progress=progress, **given)  # fmt: skip
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 2
    for name in ("trials", "decision"):
        ours, theirs = found.report[name], whole.report[name]
        if name == "trials":
            assert [trial["method"] for trial in ours] == [trial["method"] for trial in theirs]
            np.testing.assert_allclose([t["metric"] for t in ours], [t["metric"] for t in theirs])
        else:
            assert ours["number"] == theirs["number"]
    assert found.report["evidence"]["test"] == whole.report["evidence"]["test"]


def test_a_checker_judges_where_there_is_no_reference(rows: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    checker = tmp_path / "checker.py"
    checker.write_text("def check(prompt, answer, references):\n    return (1 + len(answer)) / 8\n")
    table = tmp_path / "prompts.csv"
    table.write_text("asked\n" + "\n".join(json.loads(line)["asked"] for line in rows.read_text().split("\n")))
    found = fit(table, checker=checker, pool=[str(tiny_language_model)], max_new_tokens=3, budget_s=100, threads=1,
                run=tmp_path / "run")  # fmt: skip
    assert found.report["data"]["metric"] == "checker"
    assert {trial["method"] for trial in found.report["trials"]} == {"as_is"}  # nothing to learn from
    assert 0 < found.report["evidence"]["test"]["value"] <= 1
    assert len(found.predict(["a say one"])[0]["answer"]) <= 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--metric", "rouge"], "rouge_l"),
        (["--metric", "accuracy"], "does not fit a generation"),
        (["-t", "sad"], "did you mean 'said'"),
        (["--pool", "nowhere"], "There is no 'nowhere'"),
        (["--size-mb", "0.001"], "within the limits"),
        (["--search", "0.5"], "no search of networks"),
        (["--checker", "nowhere.py"], "nowhere.py"),
        (["--max-new-tokens", "120"], "window"),
        (["--modality", "image"], "Generation of image"),
    ],
)
def test_wrong_input(rows: Path, tiny_language_model: Path, tmp_path: Path, more: list[str], says: str) -> None:
    from ontarget.errors import OnTargetError

    arguments = ["fit", str(rows), "--kind", "generation", "-i", "asked", "--threads", "1", "-q",
                 "--run", str(tmp_path / "run")]  # fmt: skip
    for name, value in (("-t", "said"), ("--pool", str(tiny_language_model))):
        if name not in more:
            arguments += [name, value]
    result = CliRunner().invoke(app, arguments + more)
    assert isinstance(result.exception, OnTargetError), result.output
    assert says in str(result.exception)


def test_s3ft_takes_part_where_some_answers_are_right(rows: Path, language_folder: Path, tmp_path: Path) -> None:
    checker = tmp_path / "checker.py"
    checker.write_text("def check(prompt, answer, references):\n    return len(prompt) % 2 or answer in references\n")
    found = fit(rows, input="asked", target="said", checker=checker, pool=[str(language_folder)], max_new_tokens=12,
                budget_s=300, threads=1, run=tmp_path / "run")  # fmt: skip
    made = next(trial for trial in found.report["trials"] if trial["method"] == "s3ft")
    assert made["state"] == "complete", made["reason"]
    notes = made["notes"]
    assert sum(notes["shares"].values()) == pytest.approx(1) and notes["shares"]["own"] > 0
    # What the untuned model says itself it finds likelier than what it is told.
    assert 0 < notes["untuned_loss"] < notes["untuned_loss_of_references"]
    assert "own" in (tmp_path / "run" / "report.html").read_text()
