"""A fit that spends a share of its budget on a search: found networks take part with their own head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ontarget
from ontarget.data import load
from ontarget.errors import DataError, SettingError
from ontarget.plan.admission import admit
from ontarget.plan.search_share import search_share
from ontarget.plan.trial import TrialJob, assemble, run_trial
from ontarget.task import Limits, load_task
from ontarget.values import Context, Recipe

pytest.importorskip("pymoo")


@pytest.fixture(scope="module")
def images() -> tuple[list[Any], list[str]]:
    """Crosses and squares anywhere in noise, half of them inverted: no linear model of pixels tells them apart."""
    generator = np.random.default_rng(0)
    pictures, labels = [], []
    for at in range(600):
        pixels = generator.normal(128, 45, (16, 16))
        row, column = generator.integers(0, 9, 2)
        shape = np.zeros((7, 7), bool)
        if at % 2:
            shape[3, :] = shape[:, 3] = True
        else:
            shape[[0, -1], :] = shape[:, [0, -1]] = True
        pixels[row : row + 7, column : column + 7][shape] += 110 if at % 4 < 2 else -110
        pictures.append(np.clip(pixels, 0, 255).astype(np.uint8))
        labels.append("cross" if at % 2 else "square")
    return pictures, labels


@pytest.fixture(scope="module")
def run(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ontarget.fit(
        images, pool=["control:pixels"], search=0.6, budget_s=20, latency_ms=20, threads=1,
        run=tmp_path_factory.mktemp("run") / "run",
    )  # fmt: skip


def test_the_found_network_wins_where_nothing_else_can_and_is_bundled(run: Any, images: Any) -> None:
    report = run.report
    assert report["search"]["networks"] and not report["search"]["reason"]
    chosen = next(trial for trial in report["trials"] if trial["number"] == report["decision"]["number"])
    assert chosen["method"] == "found_network" and chosen["metric"] > 0.8
    best = report["search"]["networks"][0]
    assert chosen["metric"] <= best["quality"] + 1e-9  # the front's qualities were measured on the same rows
    assert not any("search/found" in entry["source"] for entry in report["ranking"]["entries"])
    assert report["bundle"]["latency_p50_ms"] <= 20 and report["bundle"]["self_test"]["passed"]
    assert [prediction["label"] for prediction in run.predict(images[0][:4])] == images[1][:4]
    assert "Networks found by the search" in run.report_html.read_text()


def test_it_is_trained_again_with_the_validation_rows(run: Any, images: Any) -> None:
    data = load(load_task(images).task)
    recipe = Recipe(f"file:{run.path / 'search' / 'found' / '1'}", "found_network")
    first, again = (run_trial(TrialJob(0, recipe, seed=0, refit=refit), data) for refit in (False, True))
    assert again.state == "complete" and again.metric >= first.metric - 0.05
    assert again.files["network.safetensors"] != first.files["network.safetensors"]
    assert again.files["preprocess/preprocess.json"] == first.files["preprocess/preprocess.json"]


def test_a_resumed_run_does_not_search_again(run: Any) -> None:
    before = (run.path / "stages" / "search.json").read_bytes()
    assert ontarget.fitting.resume(run.path).report["decision"]["number"] == run.report["decision"]["number"]
    assert (run.path / "stages" / "search.json").read_bytes() == before


def test_a_found_network_of_an_earlier_search_keeps_its_head_and_its_files(
    run: Any, images: Any, tmp_path: Path
) -> None:
    data = load(load_task(images).task)
    source = f"file:{run.path / 'search' / 'found' / '1'}"
    admitted = admit([source], data, Limits(), batch_size=1, max_length=None, progress=None)[source]
    assert admitted["admitted"] and admitted["as_found"]
    outcome = run_trial(TrialJob(0, Recipe(source, "found_network"), seed=0), data)
    assert outcome.state == "complete" and outcome.metric == pytest.approx(
        run.report["search"]["networks"][0]["quality"]
    )
    for name, content in outcome.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    preprocess, network = assemble(Recipe(source, "found_network"), tmp_path, data, max_length=None)
    import torch

    with torch.inference_mode():
        scores = network(torch.from_numpy(preprocess(data.validation.inputs)["pixels"])).numpy()
    np.testing.assert_allclose(scores, outcome.scores, atol=1e-5)
    # For other classes of the same pictures it is a source of features like any other.
    other = load(load_task((images[0], ["yes" if label == "cross" else "no" for label in images[1]])).task)
    admitted = admit([source], other, Limits(), batch_size=1, max_length=None, progress=None)[source]
    assert admitted["admitted"] and not admitted["as_found"]


def test_an_unreachable_limit_leaves_the_task_to_the_others(images: Any, tmp_path: Path) -> None:
    request = load_task(images, {"search": 0.5, "budget_s": 20, "latency_ms": 1e-4, "threads": 1})
    found = search_share(tmp_path / "search", request, load(request.task), Context())
    assert found["networks"] == [] and "cannot be reached" in found["reason"]
    assert not (tmp_path / "search" / "supernetwork.safetensors").exists()


def test_what_cannot_be_searched_is_refused_before_a_folder_is_made(images: Any, tmp_path: Path) -> None:
    table = {"a": list(range(300)), "y": [at % 2 for at in range(300)]}
    with pytest.raises(DataError, match="not yet"):
        ontarget.fit(table, input=("a",), target="y", modality="features", search=0.5, run=tmp_path / "run")
    with pytest.raises(SettingError, match="search"):
        ontarget.fit(images, search=0.95, run=tmp_path / "run")
    with pytest.raises(SettingError, match="budget"):
        ontarget.fit(images, search=0.1, budget_s=20, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
