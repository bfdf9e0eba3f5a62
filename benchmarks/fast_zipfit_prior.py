"""Fits PRIOR of fast_zipfit.py to development pools, and shows what it is worth on kinds of text it has not seen.

    OMP_NUM_THREADS=1 python benchmarks/fast_zipfit_prior.py

Nine pools of 1,000 documents with 32 targets each, of four kinds: pieces of about 1 kB of this system's modules,
licences and changelogs (draws that benchmarks/data_selection.py does not use), the mixture of claim 22 (300 to 1,500
bytes; draws that the claim does not use), package descriptions in three languages, quotations. Features and exact
scores are centred within a pool, so that only differences between documents count. Reported for each pool: Spearman of
the prior alone, and after the usual correction on a few documents of the pool (mean of 5 draws), with a prior fitted to
the other kinds only; the prior that is shipped is fitted to all. Paste the printed PRIOR into fast_zipfit.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import data_selection
from ontarget.select import fast_zipfit
from ontarget.select.zipfit import compress_targets, zipfit
from ontarget.values import Array
from record import record

TARGETS, PENALTY, DRAWS = 32, 10.0, 5


def pools() -> dict[str, tuple[str, list[str], list[str]]]:
    """Name -> (kind, documents, targets)."""
    from ontarget.data import samples

    found = {}
    for seed in range(10, 14):
        random = np.random.default_rng(seed)
        texts = data_selection.files()
        order = random.permutation(len(texts))
        halves = [[texts[at] for at in part] for part in np.array_split(order, 2)]
        documents = data_selection.chunks(halves[0], 1000, random)
        found[f"files, {seed}"] = "files", documents, data_selection.chunks(halves[1], TARGETS, random)
    spec = importlib.util.spec_from_file_location(
        "claim_22", Path(__file__).parent.parent / "claims" / "22_zipfit.py"
    )  # fmt: skip
    assert spec is not None and spec.loader is not None
    claim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claim)
    for seed in (50, 51):
        documents, _, targets, _ = claim.data(seed)
        found[f"mixture, {seed}"] = "mixture", documents[:1000], targets[:TARGETS]
    described = {language: samples.package_sections(language, full=True)["text"] for language in ("en", "fr", "de")}
    for language in ("fr", "en"):
        documents, targets = [], []
        for other, texts in described.items():
            listed = texts[texts.str.len().between(300, 1500)].sample(360, random_state=0).tolist()
            targets += listed[:TARGETS] if other == language else []
            documents += listed[TARGETS:]
        found[f"descriptions, {language}"] = "descriptions", documents, targets
    quotations = samples.fortunes("en")["text"]
    listed = quotations[quotations.str.len().between(100, 1500)].sample(1000, random_state=0).tolist()
    found["quotations"] = "quotations", listed[TARGETS:], listed[:TARGETS]
    return found


def fitted(features: list[Array], scores: list[Array]) -> Array:
    """Ridge regression on features scaled to their spread over all pools, centred within each pool."""
    spread = np.concatenate(features).std(axis=0)
    design = np.concatenate([(part - part.mean(axis=0)) / spread for part in features])
    values = np.concatenate([part - part.mean() for part in scores])
    weights: Array = np.linalg.solve(design.T @ design + PENALTY * np.eye(len(spread)), design.T @ values) / spread
    return weights


def corrected(documents: list[str], exact: Array, targets: Any, prior: Array) -> float:
    """Spearman of corrected estimates for the documents that the correction has not seen, mean over draws."""
    found = []
    fast_zipfit.PRIOR = tuple(prior)
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(documents))
        chosen, others = order[: fast_zipfit.CALIBRATION], order[fast_zipfit.CALIBRATION :]
        model = fast_zipfit.calibrate([documents[at] for at in chosen], targets)
        found.append(spearmanr(model([documents[at] for at in others]), exact[others]).statistic)
    return float(np.mean(found))


def main() -> None:
    given = pools()
    features, exact, compressed = {}, {}, {}
    for name, (_, documents, targets) in given.items():
        exact[name] = zipfit(documents, targets)
        compressed[name] = compress_targets(targets)
        profile = fast_zipfit.target_profile([target.encode() for target in targets])
        features[name] = fast_zipfit.text_features([text.encode() for text in documents], profile)
    rows = []
    for name, (kind, documents, _) in given.items():
        others = [other for other in given if given[other][0] != kind]
        prior = fitted([features[other] for other in others], [exact[other] for other in others])
        rows.append({
            "pool": name, "documents": len(documents),
            "prior_of_other_kinds": float(spearmanr(features[name] @ prior, exact[name]).statistic),
            "corrected": corrected(documents, exact[name], compressed[name], prior),
        })  # fmt: skip
        print(rows[-1], flush=True)
    prior = fitted(list(features.values()), list(exact.values()))
    listed = [float(f"{weight:.5g}") for weight in prior]
    print("PRIOR = (" + ", ".join(map(repr, listed)) + ")")
    lowest, middle = (function([row["corrected"] for row in rows]) for function in (np.min, np.median))
    headline = f"Spearman with exact scores on kinds of text the prior has not seen: median {middle:.3f}"
    record("fast_zipfit_prior", headline=f"{headline}, lowest {lowest:.3f}", prior=listed, rows=rows)


if __name__ == "__main__":
    main()
