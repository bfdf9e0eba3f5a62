"""A blend from two stored trials: its files are whole, its network is the sum, training again reaches both parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.adapt.predict import predict_scores
from ontarget.compress.export import export_onnx
from ontarget.plan.blend import blend, parts_of
from ontarget.plan.executors import LocalExecutor
from ontarget.plan.refit import REFIT, refit_trial
from ontarget.plan.run_folder import RunFolder
from ontarget.plan.trial import TrialJob, assemble, run_trial
from ontarget.runtime.session import make_session
from ontarget.values import Examples, Recipe, TargetData


@pytest.fixture(scope="module")
def data() -> TargetData:
    """Half of the rows say their class by a word, the other half by an invented code that no encoder knows."""
    generator = np.random.default_rng(0)
    words = {0: ["cat", "dog", "horse"], 1: ["hammer", "saw", "drill"]}
    targets = generator.integers(0, 2, 200)
    texts = [
        f"about a {generator.choice(words[int(target)])}" if row % 2 else f"about {('qzx', 'qzw')[int(target)]}"
        for row, target in enumerate(targets)
    ]
    part = [slice(0, 100), slice(100, 180), slice(180, 200)]
    train, validation, test = (Examples(texts[at], targets[at], np.arange(200)[at]) for at in part)
    empty = Examples([], targets[:0], np.arange(0))
    return TargetData("text", "classification", "accuracy", ("a", "b"), train, validation, test, empty, "f")


def make_job(number: int, recipe: Recipe) -> TrialJob:
    return TrialJob(number, recipe, 0)


def stored(folder: Path, data: TargetData, recipes: list[Recipe]) -> RunFolder:
    run = RunFolder(folder)
    for number, recipe in enumerate(recipes):
        outcome = run_trial(make_job(number, recipe), data)
        record = {
            "number": number, "source": recipe.source, "method": recipe.method, "settings": dict(recipe.settings),
            "state": outcome.state, "metric": outcome.metric, "notes": dict(outcome.notes), "seconds": outcome.seconds,
        }  # fmt: skip
        run.write_trial(record, outcome.scores, outcome.files)
    return run


RECIPES = [Recipe("control:tfidf", "tfidf_linear"), Recipe("zoo:wordllama", "linear_head")]


def test_a_blend_is_the_sum_of_its_parts_and_is_trained_again_with_them(tmp_path: Path, data: TargetData) -> None:
    run = stored(tmp_path / "run", data, RECIPES)
    parts = parts_of(run, data)
    assert [trial["number"] for trial in parts] == [1, 0]
    found = blend(run, parts, data, number=2, seed=0)
    assert not isinstance(found, str)
    recipe, outcome = found
    assert (recipe.source, recipe.method) == ("zoo:wordllama", "tfidf_blend")
    record: dict[str, Any] = {
        "number": 2,
        "source": recipe.source,
        "method": recipe.method,
        "settings": dict(recipe.settings),
        "state": "complete",
        "metric": outcome.metric,
    }
    run.write_trial(record, outcome.scores, outcome.files)

    preprocess, network = assemble(recipe, run.trial_folder(2), data, max_length=None)
    scores = predict_scores(network, preprocess, data.validation.inputs)
    first, second = recipe.settings["weights"]
    np.testing.assert_allclose(scores, first * run.trial_scores(1) + second * run.trial_scores(0), atol=1e-4)
    path = export_onnx(network, preprocess, data.train.inputs[:7], tmp_path / "blend.onnx")
    sample = data.validation.inputs[:9]
    onnx = make_session(path).run(["scores"], preprocess(sample))[0]
    np.testing.assert_allclose(onnx, scores[:9], atol=1e-4)

    assert refit_trial(run, record, data, LocalExecutor(), make_job, left_s=60) == ""
    _, again = assemble(recipe, run.trial_folder(2) / REFIT, data, max_length=None)
    assert not np.allclose(predict_scores(again, preprocess, sample), scores[:9], atol=1e-3)


def test_there_is_none_without_both_kinds_of_model(tmp_path: Path, data: TargetData) -> None:
    assert parts_of(stored(tmp_path / "run", data, RECIPES[:1]), data) == []


def test_a_part_that_adds_nothing_is_named(tmp_path: Path, data: TargetData) -> None:
    run = stored(tmp_path / "run", data, RECIPES)
    clue, noise = np.eye(2)[data.validation.targets], np.random.default_rng(0).normal(size=(80, 2))
    for number, sign in ((0, -1), (1, 1)):
        np.save(run.trial_folder(number) / "scores.npy", (sign * clue + noise).astype(np.float32))
    found = blend(run, parts_of(run, data), data, number=2, seed=0)
    assert isinstance(found, str) and found.startswith("tfidf_linear on control:tfidf adds nothing")
