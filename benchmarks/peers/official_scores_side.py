"""Official implementations of transferability scores on arrays, in a process of their own: their modules have names
like `datasets` and `utils` that would hide other packages.

    python official_scores_side.py CHECKOUTS INPUT.npz OUTPUT.json

INPUT: features (N, D) float64, labels (N,) int64, probabilities (N, Z) float64.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def module(path: Path) -> ModuleType:
    """The module in one file, without its package."""
    spec = importlib.util.spec_from_file_location(path.stem + "_official", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def scores(root: Path, features: Any, labels: Any, probabilities: Any) -> dict[str, float]:
    """Name of score and implementation -> value."""
    tllib = root / "Transfer-Learning-Library" / "tllib" / "ranking"
    found = {
        "tllib h_score": module(tllib / "hscore.py").h_score(features, labels),
        "tllib regularized_h_score": module(tllib / "hscore.py").regularized_h_score(features, labels),
        "tllib leep": module(tllib / "leep.py").log_expected_empirical_prediction(probabilities, labels),
        "tllib logme": module(tllib / "logme.py").log_maximum_evidence(features, labels),
        "tllib transrate": module(tllib / "transrate.py").transrate(features, labels),
        "thuml/LogME LogME": module(root / "LogME" / "LogME.py").LogME().fit(features, labels),
        "thuml/LogME LEEP": module(root / "LogME" / "LEEP.py").LEEP(probabilities, labels),
        "snudatalab/TMI TMI": module(root / "TMI" / "src" / "trf_measurement.py").TMI(features, labels),
    }
    sys.path.insert(0, str(root / "parc"))
    import constants  # type: ignore[import-not-found]
    import methods  # type: ignore[import-not-found]

    class RoundedParc(methods.PARC):  # type: ignore[misc]
        """Equal distances between labels are left equal, which rounding errors of corrcoef tell apart otherwise;
        columns whose spread is below 1e-12 are constant, which StandardScaler scales up to 1 otherwise."""

        def get_parc_correlation(self, feats1: Any, labels2: Any) -> float:
            from scipy.stats import spearmanr
            from sklearn.preprocessing import StandardScaler

            feats1 = np.where(feats1.std(axis=0) > 1e-12, feats1, 0.0)
            distances = [1 - np.corrcoef(rows) for rows in (StandardScaler().fit_transform(feats1), labels2)]
            listed = [self.get_lowertri(np.round(found, 12)) for found in distances]
            return float(100 * spearmanr(*listed)[0])

    constants.num_classes["target"] = int(labels.max()) + 1
    for name, method in (
        ("PARC", methods.PARC()), ("PARC, rounding mended", RoundedParc()), ("LEEP", methods.LEEP()),
        ("HScore, published", methods.HScore(use_published_implementation=True)), ("kNN, k=1", methods.kNN(k=1)),
    ):  # fmt: skip
        found[f"dbolya/parc {name}"] = method(
            features.copy(), probabilities, labels, "source", "target", "network", None
        )
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    root, given, out = (Path(argument) for argument in sys.argv[1:4])
    arrays = np.load(given, allow_pickle=False)
    found = scores(root, arrays["features"], arrays["labels"], arrays["probabilities"])
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
