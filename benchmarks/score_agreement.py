"""How well does each transferability score rank ten backbones by their fine-tuned accuracy?

    OMP_NUM_THREADS=1 python benchmarks/score_agreement.py --work WORK [--seeds 3] [--jobs 2] [--device cuda]

Pool and truth are those of claims/20_tmi.py: EfficientNet-Lite0, 1, 2, each cut at three depths, and a random one;
500 training images at 64 x 64, full fine-tuning for 60 steps, 1,000 test images. Two sets of targets: on those of that
claim (Fashion-MNIST, the same rotated and inverted, MNIST digits; truth from its recorded result) the score that
decides in `rank` is chosen; on four others (CIFAR-10, emoji of two vendors, 8 x 8 digits) every score is reported.

Measure: weighted Kendall tau of score and accuracy over the nine pretrained backbones, mean over targets and seeds, and
over all ten. Intervals: 1,000 bootstrap draws of the training rows, by which every score moves, and of the test rows,
by which the truth moves, the same rows for all backbones; they hold the fine-tuning of a seed fixed. Classes of fewer
than four training rows are left out of the scores. Finished trainings are kept in WORK, so that they may be done on a
machine with a GPU (--train-only) and scored elsewhere. About an hour a seed on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.device import describe
from ontarget.plan.run_folder import write_atomic
from ontarget.values import Array, Context, Examples
from record import record

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("claim_20", ROOT / "claims" / "20_tmi.py")
assert _spec is not None and _spec.loader is not None
claim = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(claim)

REPLICATES = 1000
LEAST_A_CLASS = (
    4  # training rows that a class needs for TMI's three neighbours; smaller ones are left out of all scores
)
REPORTED = ("cifar10", "emoji, Google", "emoji, Twitter", "digits, 8 x 8")
CHOSEN_ON = ("fashion", "fashion rotated, inverted", "digits")


def reported(seed: int) -> dict[str, tuple[Any, ...]]:
    """Name -> (train images, train labels, test images, test labels) of the targets that are reported."""
    from sklearn.datasets import load_digits

    from ontarget.data.samples import cifar10, emoji

    small = load_digits()
    whole = {"cifar10": cifar10()[:2], "digits, 8 x 8": ((small.images * 15.9).astype(np.uint8), small.target)}
    for vendor in ("google", "twitter"):
        images, categories, _ = emoji(vendor)  # type: ignore[arg-type]
        whole[f"emoji, {vendor.title()}"] = images, np.unique(categories, return_inverse=True)[1]
    found = {}
    for name in REPORTED:
        images, labels = whole[name]
        order = np.random.default_rng(seed).permutation(len(labels))
        first, second = order[: claim.TRAIN], order[claim.TRAIN : claim.TRAIN + claim.TEST]
        found[name] = images[first], labels[first], images[second], labels[second]
    return found


def title(locator: str, stages: int) -> str:
    return locator if stages == 7 else f"{locator} cut at {stages}"


def correct_rows(loaded: Any, target: tuple[Any, ...], device: str) -> Array:
    """(test rows,) bool: right after fine-tuning, as in the claim."""
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune

    images, labels, test_images, test_labels = target
    train = Examples(list(images), labels.astype(np.int64), np.arange(len(labels)))
    tuned = finetune(
        loaded, train, None, outputs=int(labels.max()) + 1, kind="classification", metric="accuracy",
        total_epochs=round(claim.STEPS * claim.BATCH / len(labels)), batch_size=claim.BATCH, learning_rate=1e-3,
        probe=False, mixed_precision="off", context=Context(device=device),
    )  # fmt: skip
    context = Context(device=device)
    found: Array = predict_scores(tuned.network, loaded.preprocess, list(test_images), context=context).argmax(1)
    right: Array = found == test_labels
    return right


def cell(work: Path, name: str, seed: int, source: tuple[str, int], device: str) -> Path:
    """One source on one reported target: what the fine-tuned network gets right, and where it was trained, on disk."""
    import torch

    torch.set_num_threads(1)
    path = work / f"{name} {seed} {title(*source).replace('/', '-').replace(':', '-')}.npz"
    if not path.exists():
        right = correct_rows(claim.cut_source(*source), reported(seed)[name], device)
        trained_on = torch.cuda.get_device_name(device) if device.startswith("cuda") else describe()["cpu"]
        np.savez(path.with_suffix(".tmp.npz"), right=right, trained_on=np.array(trained_on))
        path.with_suffix(".tmp.npz").rename(path)
    return path


def score_rows(features: Array, labels: Array) -> dict[str, Any]:
    """Score -> `RowScores`, of every score that `rank` has."""
    from ontarget.select.h_score import h_score_rows
    from ontarget.select.linear_probe import linear_probe_rows
    from ontarget.select.logme import logme_rows
    from ontarget.select.nearest_neighbours import nearest_neighbours_rows
    from ontarget.select.nleep import nleep_rows
    from ontarget.select.parc import parc_rows
    from ontarget.select.tmi import tmi_rows, tmi_scaled_rows
    from ontarget.select.transrate import transrate_rows

    return {
        "linear_probe": linear_probe_rows(features, labels, kind="classification"),
        "logme": logme_rows(features, labels), "h_score": h_score_rows(features, labels),
        "knn": nearest_neighbours_rows(features, labels), "tmi": tmi_rows(features, labels),
        "tmi_scaled": tmi_scaled_rows(features, labels), "parc": parc_rows(features, labels),
        "transrate": transrate_rows(features, labels), "nleep": nleep_rows(features, labels),
    }  # fmt: skip


def tau(scores: Any, truth: Any) -> float:
    from scipy.stats import weightedtau

    return float(weightedtau(scores, truth).statistic)


def chosen_score() -> dict[str, float]:
    """Score -> mean tau over the claim's targets and seeds, nine pretrained backbones, its recorded accuracies."""
    from ontarget.pool.features import extract

    recorded = json.loads((ROOT / "claims" / "results" / "20_tmi.json").read_text())["rows"]
    found: dict[str, list[float]] = {}
    for seed, row in enumerate(recorded):
        for name, (images, labels, _, _) in claim.targets(seed).items():
            truth = row["tmi"]["truth"][name]
            values: dict[str, list[float]] = {}
            for source in pretrained():
                features = extract(claim.cut_source(*source), list(images), context=Context())
                for score, rows in score_rows(features, labels.astype(np.int64)).items():
                    values.setdefault(score, []).append(rows.value)
                values.setdefault("dimension", []).append(features.shape[1])
            for score, listed in values.items():
                found.setdefault(score, []).append(tau(listed, [truth[title(*source)] for source in pretrained()]))
            print("chosen on", name, seed, {score: round(listed[-1], 2) for score, listed in found.items()}, flush=True)
    return {score: float(np.mean(listed)) for score, listed in found.items()}


def pretrained() -> list[tuple[str, int]]:
    return [source for source in claim.pool() if not source[0].startswith("control:")]


def draws_of(found: dict[str, Any], labels: Array, seed: int) -> dict[str, Array]:
    """Score -> (1 + REPLICATES,) taus on one target: of the rows as they are, then of resampled ones."""
    sources = list(found)
    kept = np.bincount(labels)[labels] >= LEAST_A_CLASS
    labels = np.unique(labels[kept], return_inverse=True)[1]
    right = np.array([found[source][1] for source in sources], dtype=np.float64)
    generator = np.random.default_rng(seed)
    test = generator.multinomial(right.shape[1], np.full(right.shape[1], 1 / right.shape[1]), REPLICATES)
    train = generator.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), REPLICATES)
    truths = np.vstack([right.mean(axis=1), test @ right.T / right.shape[1]])
    values: dict[str, list[Any]] = {}
    for source in sources:
        for score, rows in score_rows(found[source][0][kept], labels).items():
            values.setdefault(score, []).append(np.append(rows.value, train @ rows.rows / len(labels)))
        values.setdefault("dimension", []).append(np.full(1 + REPLICATES, float(found[source][0].shape[1])))
    return {
        score: np.array([tau(scores, truth) for scores, truth in zip(np.transpose(listed), truths, strict=True)])
        for score, listed in values.items()
    }


def main() -> None:
    from ontarget.pool.features import extract

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="Where fine-tuning runs: cpu, cuda")
    parser.add_argument("--train-only", action="store_true", help="Stop after the trainings")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sources = claim.pool()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as executor:
        futures = [
            executor.submit(cell, options.work, name, seed, source, options.device)
            for seed in range(options.seeds) for name in REPORTED for source in sources
        ]  # fmt: skip
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done} of {len(futures)}: {future.result().name}", flush=True)
    if options.train_only:
        return
    stored = options.work / "chosen.json"
    if not stored.exists():
        write_atomic(stored, json.dumps(chosen_score()).encode())
    chosen_on = json.loads(stored.read_text())
    rows, draws, machines = [], {}, set()
    for seed in range(options.seeds):
        targets = reported(seed)
        for name in REPORTED:
            found = {}
            for source in sources:
                with np.load(cell(options.work, name, seed, source, options.device), allow_pickle=False) as arrays:
                    right = arrays["right"]
                    machines.add(str(arrays["trained_on"]))
                features = extract(claim.cut_source(*source), list(targets[name][0]), context=Context())
                found[title(*source)] = features, right
            labels = targets[name][1].astype(np.int64)
            nine = {source: entry for source, entry in found.items() if not source.startswith("control:")}
            draws[seed, name] = draws_of(nine, labels, seed)
            ten = draws_of(found, labels, seed)
            rows.append({
                "seed": seed, "target": name,
                "accuracy": {source: float(right.mean()) for source, (_, right) in found.items()},
                "tau": {score: float(listed[0]) for score, listed in draws[seed, name].items()},
                "tau_with_random": {score: float(listed[0]) for score, listed in ten.items()},
            })  # fmt: skip
            print(rows[-1], flush=True)
    scores = list(rows[0]["tau"])
    table = {}
    for score in scores:
        every = np.mean([found[score] for found in draws.values()], axis=0)
        low, high = np.quantile(every[1:], [0.025, 0.975])
        table[score] = {
            "chosen_on": chosen_on[score], "tau": float(every[0]), "low": float(low), "high": float(high),
            "tau_with_random": float(np.mean([row["tau_with_random"][score] for row in rows])),
        }  # fmt: skip
    best = max((score for score in scores if score != "dimension"), key=lambda score: table[score]["chosen_on"])
    said = ", ".join(f"{score} {table[score]['tau']:.2f}" for score in sorted(scores, key=lambda s: -table[s]["tau"]))
    record(
        "score_agreement",
        headline=f"chosen on other targets: {best}; weighted Kendall tau on four targets: {said}",
        command="OMP_NUM_THREADS=1 python benchmarks/score_agreement.py --work WORK --device cuda",
        best_on_others=best, table=table, rows=rows, trained_on=sorted(machines),
        pool=[title(*source) for source in sources],
    )  # fmt: skip


if __name__ == "__main__":
    main()
