"""All executable forms of a trained model, measured side by side on this device; what does not help is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.adapt.metric import metric_value, row_scores
from ontarget.compress import quantize
from ontarget.compress.export import export_onnx, torch_scores
from ontarget.device import measure_onnx_memory, measure_side_by_side
from ontarget.errors import OnTargetError
from ontarget.runtime.preprocess import Preprocess
from ontarget.runtime.session import make_session
from ontarget.task import Limits
from ontarget.values import Array, Context, Examples, Measurement, Variant

CALIBRATION_ROWS = 128  # rows that int8 ranges are taken from (choice)
QUALITY_ROWS = 1000  # validation rows on which forms are compared, at most (choice)
CHECKED_ROWS = 128  # rows on which a remade form is compared with its network (choice)
YARDSTICKS = ("pytorch", "onnx-fp32")  # what the other forms are compared with
LATENCY_CALLS = 12  # different calls that latency is measured on (choice)
MIN_COSINE = 0.99  # of a form's scores with those of PyTorch (choice)
SIGNIFICANCE = 0.05  # one-sided, that a form is worse (choice)
HOPELESS = 1.5  # times fp32's latency: a form that slow is not scored where speed is all that it could bring (choice)
MIN_GAIN = 0.95  # a form is kept for its speed if its latency is below this times that of what it replaces (choice)


def choose(
    network: torch.nn.Module,
    preprocess: Preprocess,
    calibration: Examples,
    validation: Examples,
    *,
    metric: str,
    kind: str,
    limits: Limits,
    batch_size: int,
    threads: int,
    folder: Path,
    context: Context = Context(),
) -> tuple[Variant, ...]:
    """Every form with its measurements, the kept one first.

    The forms are PyTorch eager, ONNX fp32, ONNX int8 (dynamic, static) and ONNX fp16. A form that loses quality
    significantly (paired, on validation rows), is unlike PyTorch's scores (cosine), or is neither faster nor smaller
    than fp32 is undone; ``reason`` says which. One that is far slower than fp32, with no limit on size or memory that
    it could serve, is not even scored. At most one form is kept: the fastest of those within the limits.
    Latency includes preprocessing. None is kept where no form meets the limits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sample = validation.take(quality_rows(len(validation), context.seed))
    calls = _calls(sample, batch_size)
    paths, failures = _make_forms(network, preprocess, calibration, folder, context)
    scorers: dict[str, Callable[[Any], Array]] = {"pytorch": lambda inputs: torch_scores(network, preprocess(inputs))}
    for form, path in paths.items():
        scorers[form] = _onnx_scorer(path, preprocess, threads)
    _progress(context, 2, "measuring forms")
    timing = measure_side_by_side({form: [_bind(scorer, rows) for rows in calls] for form, scorer in scorers.items()})
    nothing = np.zeros((0, 1), dtype=np.float32)
    bar_ms = HOPELESS * timing["onnx-fp32"][0] if _speed_alone(limits) else float("inf")
    scores = {
        form: _score_all(scorer, sample) if form in YARDSTICKS or timing[form][0] <= bar_ms else nothing
        for form, scorer in scorers.items()
    }
    longest = max(calls, key=lambda rows: sum(len(str(row)) for row in rows))
    feeds = preprocess(longest)
    fp32_mb = _size_mb(paths["onnx-fp32"]) if "onnx-fp32" in paths else 0.0
    variants = []
    for form in scorers:
        p50, p95, repeats = timing[form]
        memory = 0.0 if form == "pytorch" else measure_onnx_memory(paths[form], feeds, threads=threads)
        size = _weights_mb(network) if form == "pytorch" else _size_mb(paths[form])
        measurement = Measurement(p50, p95, memory, size, batch_size, repeats)
        value = metric_value(metric, scores[form], sample.targets) if len(scores[form]) else float("nan")
        file = "" if form == "pytorch" else str(paths[form])
        variants.append(Variant(form, file, measurement, scores[form], value, True, ""))
    by_form = {variant.form: variant for variant in variants}
    judged = [
        _judged(variant, by_form, sample, metric=metric, limits=limits, fp32_mb=fp32_mb, seed=context.seed)
        for variant in variants
    ]
    empty = Measurement(0.0, 0.0, 0.0, 0.0, batch_size, 0)
    judged += [Variant(form, "", empty, nothing, float("nan"), False, why) for form, why in failures.items()]
    return _keep_one(judged)


def quality_rows(count: int, seed: int, most: int = QUALITY_ROWS) -> Array:
    """Positions of the validation rows that forms are compared on: all, or a seeded sample."""
    positions: Array = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    return positions


def remake(
    form: str,
    network: torch.nn.Module,
    preprocess: Preprocess,
    calibration: Examples,
    *,
    threads: int,
    path: Path,
    context: Context = Context(),
) -> str:
    """Write ``network`` to ``path`` in a form chosen for earlier weights of it; why it cannot be used, or ""."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = export_onnx(network, preprocess, calibration.inputs[:7], path.with_name(f"{path.stem}-fp32.onnx"))
    maker = _makers(plain, preprocess, calibration, context).get(form)
    if maker is None:
        plain.replace(path)
    else:
        maker(path)
        plain.unlink()
    sample = calibration.take(quality_rows(len(calibration), context.seed, CHECKED_ROWS))
    expected = _score_all(lambda inputs: torch_scores(network, preprocess(inputs)), sample)
    found = _score_all(_onnx_scorer(path, preprocess, threads), sample)
    cosine = _cosine(expected, found) if np.isfinite(found).all() else 0.0
    return "" if cosine >= MIN_COSINE else f"its scores as {form} are unlike PyTorch's (cosine {cosine:.4f})"


def _makers(
    plain: Path, preprocess: Preprocess, calibration: Examples, context: Context
) -> dict[str, Callable[[Path], Path]]:
    """Form -> how it is made from the fp32 graph."""
    chosen = np.random.default_rng(context.seed).permutation(len(calibration))[:CALIBRATION_ROWS]
    rows: Any = calibration.take(np.sort(chosen)).inputs
    return {
        "onnx-int8-dynamic": lambda out: quantize.int8_dynamic(plain, out),
        "onnx-int8-static": lambda out: quantize.int8_static(plain, out, preprocess, rows),
        "onnx-fp16": lambda out: quantize.fp16(plain, out),
    }


def _make_forms(
    network: torch.nn.Module, preprocess: Preprocess, calibration: Examples, folder: Path, context: Context
) -> tuple[dict[str, Path], dict[str, str]]:
    paths: dict[str, Path] = {}
    failures: dict[str, str] = {}
    _progress(context, 0, "exporting to ONNX")
    paths["onnx-fp32"] = export_onnx(network, preprocess, calibration.inputs[:7], folder / "onnx-fp32.onnx")
    for form, make in _makers(paths["onnx-fp32"], preprocess, calibration, context).items():
        _progress(context, 1, f"making {form}")
        try:
            path = make(folder / f"{form}.onnx")
            make_session(path, threads=1)
            paths[form] = path
        except Exception as error:  # the quantizer raises many kinds; a form that cannot be made is no candidate
            if isinstance(error, OnTargetError):
                raise
            failures[form] = f"cannot be made: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return paths, failures


def _judged(
    variant: Variant,
    others: dict[str, Variant],
    sample: Examples,
    *,
    metric: str,
    limits: Limits,
    fp32_mb: float,
    seed: int,
) -> Variant:
    """``variant`` with its verdict. Bundles hold ONNX alone, so PyTorch is the yardstick and never kept."""
    from dataclasses import replace

    if variant.form == "pytorch":
        return replace(variant, kept=False, reason="the yardstick: bundles run without PyTorch")
    reference, measured = others["pytorch"], variant.measurement
    base = others["onnx-fp32"].measurement
    slower = f"slower than fp32 ({measured.latency_p50_ms:.2f} against {base.latency_p50_ms:.2f} ms)"
    if not len(variant.validation_scores):
        return replace(variant, kept=False, reason=f"{slower}; its scores were not computed")
    reasons = []
    if not np.isfinite(variant.validation_scores).all():
        return replace(variant, kept=False, reason="its scores are not finite")
    cosine = _cosine(reference.validation_scores, variant.validation_scores)
    if cosine < MIN_COSINE:
        reasons.append(f"its scores are unlike PyTorch's (cosine {cosine:.4f})")
    p_value = _worse(
        row_scores(metric, variant.validation_scores, sample.targets),
        row_scores(metric, reference.validation_scores, sample.targets),
        seed=seed,
    )
    if p_value < SIGNIFICANCE and variant.validation_metric < reference.validation_metric:
        lost = reference.validation_metric - variant.validation_metric
        reasons.append(f"significantly worse ({metric} {lost:.4f} lower, p = {p_value:.3f})")
    if variant.form != "onnx-fp32":
        if measured.latency_p50_ms > base.latency_p50_ms and _speed_alone(limits):
            reasons.append(slower)
        if measured.size_mb >= fp32_mb:
            reasons.append(f"not smaller than fp32 ({measured.size_mb:.1f} against {fp32_mb:.1f} MiB)")
    for name, limit, value, unit in (
        ("latency", limits.latency_ms, measured.latency_p50_ms, "ms"),
        ("memory", limits.memory_mb, measured.memory_mb, "MiB"),
        ("size", limits.size_mb, measured.size_mb, "MiB"),
    ):
        if limit is not None and value > limit:
            reasons.append(f"{name} {value:.2f} {unit} over the limit of {limit:g}")
    note = f"cosine {cosine:.4f}" if not reasons else "; ".join(reasons)
    return replace(variant, kept=not reasons, reason=note)


def _speed_alone(limits: Limits) -> bool:
    """Whether a form could be wanted for its speed only: being small serves no limit."""
    return limits.size_mb is None and limits.memory_mb is None


def _keep_one(variants: list[Variant]) -> tuple[Variant, ...]:
    from dataclasses import replace

    kept = [variant for variant in variants if variant.kept]
    if not kept:
        return tuple(variants)
    plain = next((variant for variant in kept if variant.form == "onnx-fp32"), None)
    best = min(kept, key=lambda variant: variant.measurement.latency_p50_ms)
    # What is not clearly faster is not worth leaving full precision for.
    if plain is not None and best.measurement.latency_p50_ms > MIN_GAIN * plain.measurement.latency_p50_ms:
        best = plain
    result = [best]
    for variant in variants:
        if variant is best:
            continue
        if variant.kept:
            fast = f"{best.measurement.latency_p50_ms:.2f} ms"
            variant = replace(variant, kept=False, reason=f"{best.form} is preferred ({fast}; {variant.reason})")
        result.append(variant)
    return tuple(result)


def _worse(form: Array, reference: Array, *, seed: int, draws: int = 2000) -> float:
    """One-sided p-value that ``form`` is worse: paired bootstrap of the mean difference of row scores."""
    difference = form.astype(np.float64) - reference.astype(np.float64)
    if not difference.any():
        return 1.0
    generator = np.random.default_rng(seed)
    changed = difference[difference != 0]
    # Rows without a difference add nothing to the sum: only how many changed rows a draw holds matters.
    counts = generator.binomial(len(difference), len(changed) / len(difference), size=draws)
    sums = np.array([generator.choice(changed, size=count).sum() for count in counts])
    return float((1 + np.count_nonzero(sums >= 0)) / (1 + draws))


def _cosine(first: Array, second: Array) -> float:
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    return float(a @ b / max(1e-30, float(np.linalg.norm(a) * np.linalg.norm(b))))


def _onnx_scorer(path: Path, preprocess: Preprocess, threads: int) -> Callable[[Any], Array]:
    session = make_session(path, threads=threads)
    return lambda inputs: session.run(["scores"], preprocess(inputs))[0]


def _calls(sample: Examples, batch_size: int) -> list[Any]:
    """Batches of different rows to time: spread over the lengths that the task has."""
    count = min(LATENCY_CALLS, max(1, len(sample)))
    order = np.arange(len(sample))
    if len(sample) and isinstance(sample.inputs[0], (str, tuple)):
        order = np.argsort([len(str(text)) for text in sample.inputs], kind="stable")
    starts = order[np.linspace(0, len(sample) - 1, count).astype(int)]
    return [sample.take((np.arange(start, start + batch_size)) % len(sample)).inputs for start in starts]


def _bind(scorer: Callable[[Any], Array], rows: Any) -> Callable[[], Array]:
    return lambda: scorer(rows)


def _score_all(scorer: Callable[[Any], Array], sample: Examples, batch_size: int = 32) -> Array:
    parts = [scorer(sample.inputs[at : at + batch_size]) for at in range(0, len(sample), batch_size)]
    return np.concatenate(parts).astype(np.float32)


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 2**20


def _weights_mb(network: torch.nn.Module) -> float:
    return float(sum(value.numel() * value.element_size() for value in network.state_dict().values())) / 2**20


def _progress(context: Context, done: int, what: str) -> None:
    if context.progress:
        context.progress(done, 3, what)
