"""Every kind of network that a trial can give, exported, quantised, measured and judged on this machine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ontarget.adapt.tune.assembled import Assembled
from ontarget.compress.choose import _worse, choose
from ontarget.compress.export import export_onnx, torch_scores
from ontarget.device import describe, measure_latency, measure_side_by_side
from ontarget.pool import load, resolve
from ontarget.runtime.preprocess import Preprocess
from ontarget.runtime.session import make_session
from ontarget.task import Limits
from ontarget.values import Examples, Variant

TEXTS = [f"{'good' if row % 2 else 'bad'} " + "word " * (row % 9) + str(row) for row in range(40)]
IMAGES = [np.random.default_rng(row).integers(0, 256, (20, 30, 3), dtype=np.uint8) for row in range(8)]


def network_for(locator: str) -> tuple[Preprocess, torch.nn.Module]:
    torch.manual_seed(0)
    loaded = load(resolve(locator))
    return loaded.preprocess, Assembled(loaded.encoder, torch.nn.Linear(loaded.dim, 3)).eval()


@pytest.mark.parametrize(
    ("locator", "inputs"),
    [
        ("zoo:minilm", TEXTS),
        ("zoo:wordllama", TEXTS),
        ("zoo:efficientnet-lite0@64", IMAGES),
        ("control:pixels", IMAGES),
        ("control:array-5", np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)),
    ],
)
def test_export_equals_pytorch_for_any_number_of_rows(locator: str, inputs: object, tmp_path: Path) -> None:
    preprocess, network = network_for(locator)
    path = export_onnx(network, preprocess, inputs, tmp_path / "model.onnx")
    session = make_session(path, threads=1)
    for count in (1, 2, 7):
        tensors = preprocess(inputs[:count])  # type: ignore[index]
        np.testing.assert_allclose(session.run(["scores"], tensors)[0], torch_scores(network, tensors), atol=1e-4)


def test_long_texts_and_empty_ones_pass_the_exported_graph(tmp_path: Path) -> None:
    preprocess, network = network_for("zoo:minilm")
    session = make_session(export_onnx(network, preprocess, TEXTS, tmp_path / "m.onnx"), threads=1)
    for texts in ([""], ["word " * 400], ["", "word " * 400, "ü"]):
        tensors = preprocess(texts)
        np.testing.assert_allclose(session.run(["scores"], tensors)[0], torch_scores(network, tensors), atol=1e-4)


def forms(locator: str, inputs: object, folder: Path, limits: Limits) -> dict[str, Variant]:
    preprocess, network = network_for(locator)
    scores = np.concatenate([torch_scores(network, preprocess([row])) for row in inputs])  # type: ignore[attr-defined]
    rows = Examples(inputs, scores.argmax(axis=1), np.arange(len(scores)))  # type: ignore[arg-type]
    found = choose(
        network, preprocess, rows, rows, metric="accuracy", kind="classification", limits=limits, batch_size=1,
        threads=1, folder=folder,
    )  # fmt: skip
    return {variant.form: variant for variant in found}


def test_all_forms_are_measured_and_one_is_kept(tmp_path: Path) -> None:
    found = forms("zoo:minilm", TEXTS, tmp_path, Limits())
    assert set(found) == {"pytorch", "onnx-fp32", "onnx-int8-dynamic", "onnx-int8-static", "onnx-fp16"}
    kept = [variant for variant in found.values() if variant.kept]
    assert len(kept) == 1
    assert kept[0].form != "pytorch"
    assert Path(kept[0].path).exists()
    assert all(variant.reason for variant in found.values())
    fp32, int8 = found["onnx-fp32"].measurement, found["onnx-int8-dynamic"].measurement
    assert int8.size_mb < 0.3 * fp32.size_mb
    assert fp32.memory_mb > 40


def test_a_form_far_slower_than_fp32_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bar so low that every other form is "far slower"; a limit on size makes them candidates again."""
    from ontarget.compress import choose as module

    monkeypatch.setattr(module, "HOPELESS", 0.0)
    for limits, scored in ((Limits(), 0), (Limits(size_mb=100), len(TEXTS))):
        found = forms("zoo:wordllama", TEXTS, tmp_path, limits)
        for form in ("onnx-int8-dynamic", "onnx-fp16"):
            assert len(found[form].validation_scores) == scored
        assert len(found["onnx-fp32"].validation_scores) == len(TEXTS)
        assert ("scores were not computed" in found["onnx-fp16"].reason) == (scored == 0)
        assert len([variant for variant in found.values() if variant.kept]) == 1


def test_a_form_over_a_limit_is_not_kept(tmp_path: Path) -> None:
    found = forms("zoo:wordllama", TEXTS, tmp_path, Limits(size_mb=10))
    assert not found["onnx-fp32"].kept
    assert "over the limit of 10" in found["onnx-fp32"].reason
    kept = [variant for variant in found.values() if variant.kept]
    assert [variant.measurement.size_mb < 10 for variant in kept] == [True]
    none = forms("zoo:wordllama", TEXTS, tmp_path, Limits(size_mb=1))
    assert not any(variant.kept for variant in none.values())


def test_worse_needs_evidence() -> None:
    same, lost = np.ones(200), np.ones(200)
    assert _worse(same, same, seed=0) == 1.0
    lost[:1] = 0
    assert _worse(lost, same, seed=0) > 0.05
    lost[:12] = 0
    assert _worse(lost, same, seed=0) < 0.01
    assert _worse(same, lost, seed=0) > 0.95


def test_latency_is_in_milliseconds_and_alternates() -> None:
    import time

    p50, p95, repeats = measure_latency([lambda: time.sleep(0.01)], repeats=9)
    assert 9 < p50 < 40
    assert p95 >= p50
    assert repeats == 9
    order: list[str] = []
    measure_side_by_side({name: [lambda name=name: order.append(name)] for name in "ab"}, rounds=2, repeats=9)
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")


def test_the_device_describes_itself() -> None:
    found = describe()
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0
    assert found["onnxruntime"]
