"""The run's evidence: the bundle and the baselines on the test split, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ontarget.plan.run_folder import RunFolder
from ontarget.task import Task
from ontarget.values import Array, Context, TargetData

HEAD_ROWS = 1024  # rows that go through a head at once


def collect_evidence(
    run: RunFolder, data: TargetData, assemble: Callable[[int], tuple[Any, Any]], context: Context, task: Task
) -> dict[str, Any]:
    """Score the bundle and the baselines on the test rows, once, and compare them; see `judge.evidence`."""
    from ontarget.judge.evidence import judge
    from ontarget.judge.once import model_digest, score_once, touches
    from ontarget.runtime import load_bundle

    bundle = load_bundle(run.path / "bundle")
    baselines = baseline_trials(run)

    def score() -> dict[str, Array]:
        scores = {"bundle": bundle.scores(data.test.inputs)}
        for name, number in baselines.items():
            if name == "majority":  # the same scores for every row, as on validation rows
                scores[name] = np.repeat(run.trial_scores(number)[:1], len(data.test), axis=0)
            else:
                scores[name] = _test_scores(run, number, data, assemble, context, task)
        unlabelled = _zero_shot(run, data, task, context)
        return scores if unlabelled is None else {**scores, "zero-shot": unlabelled}

    scores = score_once(run.path, model_digest(bundle.info["files"]), score)
    final = scores.pop("bundle")
    chosen = run.read("decision")["number"]
    same = {name for name, number in baselines.items() if number == chosen}
    evidence = judge(data, final, scores, stages=_stages(run, data), same=same, seed=task.seed)
    for row in evidence["baselines"]:
        row["trial"] = baselines.get(row["name"])
    evidence["touches"] = [
        {name: touch[name] for name in ("when", "model", "rows", "forced")} for touch in touches(run.path)
    ]
    return evidence


def _test_scores(
    run: RunFolder,
    number: int,
    data: TargetData,
    assemble: Callable[[int], tuple[Any, Any]],
    context: Context,
    task: Task,
) -> Array:
    """A trial's scores on the test rows; heads on one frozen source share its features."""
    from ontarget.adapt.predict import predict_scores

    preprocess, network = assemble(number)
    trial = next(trial for trial in run.trials() if trial["number"] == number)
    if trial["method"] not in ("linear_head", "self_training", "nearest_neighbours"):
        return predict_scores(network, preprocess, data.test.inputs, context=context)
    import torch

    features = _test_features(trial["source"], data.test.inputs, context, task)
    with torch.inference_mode():
        parts = [
            network.head(torch.from_numpy(np.array(features[at : at + HEAD_ROWS]))).float().numpy()
            for at in range(0, len(features), HEAD_ROWS)
        ]
    return np.concatenate(parts)


def _test_features(locator: str, inputs: Any, context: Context, task: Task) -> Array:
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    source = resolve(locator)
    return cached_features(source, load(source, max_length=task.max_length), inputs, context=context)[0]


def baseline_trials(run: RunFolder) -> dict[str, int]:
    """Name of a baseline -> the trial that stands for it: what a user could have had without tuning."""
    complete = [trial for trial in run.trials() if trial["state"] == "complete"]
    names: dict[str, int] = {}

    def add(name: str, trials: list[dict[str, Any]]) -> None:
        if trials:
            names[name] = max(trials, key=lambda trial: (trial["metric"], -trial["number"]))["number"]

    add("majority", [trial for trial in complete if trial["method"] == "majority"])
    add("TF-IDF + linear", [trial for trial in complete if trial["method"] == "tfidf_linear"])
    add(
        "pixels + linear",
        [t for t in complete if t["method"] == "linear_head" and t["source"] == "control:pixels"],
    )
    add("nearest neighbours", [trial for trial in complete if trial["method"] == "nearest_neighbours"])
    add(
        "linear probe on the best source",
        [t for t in complete if t["method"] == "linear_head" and not t["source"].startswith("control:")],
    )
    return names


def _zero_shot(run: RunFolder, data: TargetData, task: Task, context: Context) -> Array | None:
    """Class names against texts by the best text encoder, where classes have names that say something."""
    if data.modality != "text" or data.kind != "classification" or not run.has("ranking"):
        return None
    sources = [
        entry["source"] for entry in run.read("ranking")["entries"] if not entry["source"].startswith("control:")
    ]
    from ontarget.judge.zero_shot import class_sentences, nameable, zero_shot

    if not sources or not nameable(data.classes):
        return None
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract
    from ontarget.pool.source import FIELDS_APART

    locator = sources[0].removesuffix(FIELDS_APART)
    loaded = load(resolve(locator), max_length=task.max_length)
    texts = [text if isinstance(text, str) else " ".join(text) for text in data.test.inputs]
    names = extract(loaded, class_sentences(data.classes), context=context)
    return zero_shot(
        _test_features(locator, texts, context, task), names.reshape(-1, len(data.classes), names.shape[1])
    )


def _stages(run: RunFolder, data: TargetData) -> list[dict[str, Any]]:
    """What each stage was given and what it gave, as validation scores."""
    from ontarget.plan.decision import order

    decision = run.read("decision")
    complete = [trial for trial in run.trials() if trial["state"] == "complete"]
    chosen = next(trial for trial in complete if trial["number"] == decision["number"])

    def best(methods: tuple[str, ...]) -> Mapping[str, Any] | None:
        found = [trial for trial in complete if trial["method"] in methods]
        return order(found, data, run.trial_scores)[0] if found else None

    cheap = best(("majority", "tfidf_linear", "nearest_neighbours"))
    probe = best(("linear_head",))
    tuned = best(("finetune", "contrastive", "self_training"))
    steps = []
    last = cheap
    for name, trial in (("select", probe), ("adapt", tuned), ("blend", best(("tfidf_blend",)))):
        if trial is None or last is None:
            last = last or trial
            continue
        kept = order([last, trial], data, run.trial_scores)[0] is trial
        steps.append(
            {
                "stage": name,
                "what": f"{trial['method']} on {trial['source']}",
                "before": run.trial_scores(last["number"]),
                "after": run.trial_scores(trial["number"]),
                "kept": kept,
                "reason": "" if kept else "not better on validation rows: dropped",
            }
        )
        last = trial if kept else last
    forms = {row["form"]: row for row in decision["variants"]}
    used = next(row for row in decision["variants"] if row["kept"])
    steps.append(
        {
            "stage": "compress",
            "what": used["form"],
            # Both on the same rows. Where nothing was held out these are rows that the model has seen.
            "before_value": forms["pytorch"]["validation_metric"] if "pytorch" in forms else chosen["metric"],
            "after_value": used["validation_metric"],
            **{name: used.get("against_pytorch", {}).get(name) for name in ("low", "high")},
            "kept": True,
            "reason": f"{forms['pytorch']['latency_p50_ms']:.2f} ms in PyTorch, {used['latency_p50_ms']:.2f} ms as "
            f"{used['form']}"
            if "pytorch" in forms
            else "",
        }
    )
    return steps
