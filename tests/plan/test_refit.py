"""Training again on training and validation rows: what is held fast, what is dropped, and that more rows are used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import ontarget
from ontarget.plan.refit import can_be_refitted, dropped_because, refit_job, refit_trial
from ontarget.plan.run_folder import RunFolder
from ontarget.plan.trial import TrialJob, TrialOutcome, run_trial
from ontarget.values import Examples, Recipe, TargetData


def feature_data(rows: int = 90, held: int = 60) -> TargetData:
    generator = np.random.default_rng(0)
    targets = np.arange(rows + held + 40) % 2
    inputs = (generator.normal(size=(len(targets), 5)) + 1.2 * targets[:, None]).astype(np.float32)
    part = [slice(0, rows), slice(rows, rows + held), slice(rows + held, None)]
    train, validation, test = (Examples(inputs[at], targets[at], np.arange(len(targets))[at]) for at in part)
    empty = Examples(inputs[:0], targets[:0], np.arange(0))
    return TargetData("features", "classification", "accuracy", ("a", "b"), train, validation, test, empty, "f")


def test_only_rows_that_were_held_out_here_are_trained_on() -> None:
    data = feature_data()
    assert can_be_refitted(data)
    assert not can_be_refitted(replace(data, validation_made=False))
    assert not can_be_refitted(replace(data, folds=np.arange(len(data.train)) % 5))


def test_the_penalty_stays_and_all_rows_are_used() -> None:
    data, source = feature_data(), "control:array-5"
    job = TrialJob(1, Recipe(source, "linear_head"), seed=0)
    first = run_trial(job, data)
    trial = {"method": "linear_head", "notes": dict(first.notes), "metric": first.metric}
    again = run_trial(refit_job(job, trial, 4), data)
    assert again.notes["l2"] == first.notes["l2"]
    assert again.files != first.files
    # The same head as one fitted on the joined rows with that penalty alone.
    from ontarget.adapt.tune.linear_head import linear_head
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract

    joined = data.train.join(data.validation)
    features = extract(load(resolve(source)), joined.inputs)
    head = linear_head(
        features, joined.targets, outputs=2, kind="classification", metric="accuracy", l2_grid=(first.notes["l2"],),
        validation=(features[-60:], data.validation.targets),
    )  # fmt: skip
    np.testing.assert_allclose(again.scores, head.scores, atol=1e-6)


def test_a_model_that_does_worse_on_rows_it_has_seen_is_dropped() -> None:
    assert "worse on the rows" in dropped_because(TrialOutcome(0, "complete", metric=0.6), {"metric": 0.7})
    assert dropped_because(TrialOutcome(0, "failed", "loss is nan"), {"metric": 0.7}) == "loss is nan"
    assert dropped_because(TrialOutcome(0, "complete", metric=0.7), {"metric": 0.7}) == ""


def test_a_fit_bundles_the_refitted_model_and_says_so(tmp_path: Path) -> None:
    """400 texts: enough for a held-out validation split; the self-test of the bundle passes with the new weights."""
    generator = np.random.default_rng(2)
    words = {"animal": ["cat", "dog", "horse", "sheep"], "tool": ["hammer", "saw", "drill", "plane"]}
    lines = ["text,label"]
    for row in range(400):
        label = str(generator.choice(list(words)))
        lines.append(f"a {generator.choice(words[label])} of number {row},{label if row % 12 else 'tool'}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    run = ontarget.fit(
        tmp_path / "rows.csv", input="text", target="label", budget_s=20, threads=1, run=tmp_path / "run",
        pool=["zoo:wordllama"],
    )  # fmt: skip
    refit = json.loads((run.path / "stages" / "refit.json").read_text())["value"]
    rows = run.report["data"]["rows"]
    assert refit["kept"] and refit["rows"] == rows["train"] + rows["validation"]
    assert f"trained again on all {refit['rows']}" in run.report["decision"]["reason"]
    assert run.report["bundle"]["self_test"]
    assert "before it was trained again" in (run.bundle / "README.md").read_text()
    assert (run.bundle / "model.onnx").read_bytes() == Path(refit["path"]).read_bytes()


def test_a_fine_tuned_model_is_trained_for_as_many_epochs_on_all_rows() -> None:
    targets = np.arange(60) % 2
    every = Examples([f"{('cat', 'saw')[row % 2]} number {row}" for row in range(60)], targets, np.arange(60))
    train, validation = every.take(np.arange(40)), every.take(np.arange(40, 60))
    data = TargetData("text", "classification", "accuracy", ("a", "b"), train, validation, train, train, "f")
    recipe = Recipe("zoo:wordllama", "finetune", {"mode": "full", "learning_rate": 1e-3, "batch_size": 16})
    job = TrialJob(3, recipe, seed=0, total_epochs=4)
    first = run_trial(job, data)
    trial = {"method": "finetune", "notes": {}, "metric": first.metric, "curve": first.curve}
    again = run_trial(refit_job(job, trial, 4), data)
    assert again.state == "complete", again.reason
    assert again.scores.shape == (20, 2)
    assert again.files["state.safetensors"] != first.files["state.safetensors"]
    assert dropped_because(again, trial) == ""


def test_a_training_again_that_takes_too_long_is_not_begun(tmp_path: Path) -> None:
    """100 s for 4 epochs of 90 rows: 1.1 x 150 / 90 x 100 = 183.3 s."""
    curve = [{"epoch": float(epoch), "validation": value} for epoch, value in ((1, 0.5), (2, 0.7), (3, 0.6), (4, 0.7))]
    trial = {"number": 4, "source": "zoo:wordllama", "method": "finetune", "settings": {}, "curve": curve,
             "seconds": 100.0}  # fmt: skip
    reason = refit_trial(RunFolder(tmp_path), trial, feature_data(), None, lambda *_: None, left_s=180)  # type: ignore
    assert reason == "training again needs about 183 s, and 180 s of the budget are left"
