"""DP4TL: prune source classes for transfer by label mapping or feature mapping.

Yihua Zhang, Yimeng Zhang, Aochuan Chen, Jinghan Jia, Jiancheng Liu, Gaowen Liu, Mingyi Hong, Shiyu Chang, Sijia Liu,
"Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning", NeurIPS 2023, arXiv
2310.08782. Official code: github.com/OPTML-Group/DP4TL.
Claim: 40 to 80% of the source classes can be pruned without loss on the target, which makes pre-training 2 to 5 times
faster; better than random, gradient-norm and moderate pruning, with small surrogates as guides.
Left out: training the surrogate (any classifier of the source will do) and the pre-training itself.
Checked in tests/select/test_dp4tl.py (hand-worked votes, brute-force nearest centroids) and claims/50_dp4tl.py.

Label mapping (supervised source): every target training row votes for the source class that the surrogate gives it.
Feature mapping (unlabelled source): the source's features are clustered by k-means; every target row votes for the
nearest centroid. The K classes (clusters) with the most votes are kept, with all their rows.

The released script of feature mapping writes each distance to the place of the row instead of the class; here votes go
to the nearest of all centroids, as the paper says.

>>> import numpy as np
>>> found = dp4tl(np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]]))
>>> found.order.tolist(), found.votes.tolist()
([0, 1, 2], [2, 1, 0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array

KEPT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of the classes that `retention` reports (choice)


@dataclass(frozen=True)
class ClassRanking:
    """order: (Z,) classes, the most useful to the target first. votes: (Z,) int, by class index. support: (Z,) float,
    by class index, what settles ties (choice): summed probability, or minus the summed distance to the centroid.
    """

    order: Array
    votes: Array
    support: Array

    def kept(self, count: int) -> Array:
        """The ``count`` best classes, in ascending order. Raises SettingError."""
        if not 1 <= count <= len(self.order):
            raise SettingError(f"count is {count}.", allowed=f"1 to {len(self.order)}", option="count")
        return np.sort(self.order[:count])

    def rows(self, labels: Array, count: int) -> Array:
        """Positions of the source rows whose class is kept. labels: (S,) int class (or cluster) of each source row."""
        return np.flatnonzero(np.isin(np.asarray(labels), self.kept(count)))

    def retention(self, labels: Array | None = None, shares: Sequence[float] = KEPT) -> list[dict[str, float]]:
        """For each share of classes kept: classes, share of the votes and, with labels, of the source rows."""
        table = []
        for share in shares:
            count = max(1, round(share * len(self.order)))
            kept = self.kept(count)
            entry = {"classes": float(count), "votes": float(self.votes[kept].sum() / max(1, self.votes.sum()))}
            if labels is not None:
                entry["rows"] = float(np.isin(np.asarray(labels), kept).mean())
            table.append(entry)
        return table


def dp4tl(probabilities: Array) -> ClassRanking:
    """Label mapping: source classes by the votes of target rows.

    probabilities: (N, Z) the surrogate's source-class probabilities (or logits) for the target's TRAINING rows, in
    evaluation mode, without augmentation. Ties go to the higher summed probability, then to the lower index.
    Raises DataError: NaN, fewer than two classes.
    Source: arXiv 2310.08782, section 4.
    """
    scores = _finite(probabilities, "probabilities")
    if scores.shape[1] < 2:
        raise DataError(f"probabilities have shape {scores.shape}.", allowed="(N, Z) with Z >= 2")
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    is_distribution = scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3)
    support = (scores if is_distribution else shifted / shifted.sum(axis=1, keepdims=True)).sum(axis=0)
    votes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    return _ranked(votes, support)


def feature_mapping(
    target_features: Array, source_features: Array, *, clusters: int = 1000, seed: int = 0
) -> tuple[ClassRanking, Array]:
    """Feature mapping: (ranking of clusters, (S,) cluster of each source row), for sources without labels.

    target_features: (N, D) of the target's training rows. source_features: (S, D). clusters: near the number of classes
    where it is known, else 1,000 (choice); at most S. Ties go to the smaller mean distance, then to the lower index.
    Raises DataError: NaN, widths that differ. Source: arXiv 2310.08782, section 4 (self-supervised).
    """
    from sklearn.cluster import MiniBatchKMeans

    target, source = _finite(target_features, "target features"), _finite(source_features, "source features")
    if target.shape[1] != source.shape[1]:
        raise DataError(f"Target features have {target.shape[1]} columns, the source's {source.shape[1]}.")
    count = min(clusters, len(source))
    model = MiniBatchKMeans(count, random_state=seed, batch_size=max(1024, count), n_init=3).fit(source)
    labels: Array = model.labels_.astype(np.int64)
    centroids = np.stack([
        source[labels == cluster].mean(axis=0) if (labels == cluster).any() else model.cluster_centers_[cluster]
        for cluster in range(count)
    ])  # fmt: skip
    return centroid_votes(target, centroids), labels


def centroid_votes(target_features: Array, centroids: Array) -> ClassRanking:
    """Source classes or clusters by how many target rows have their centroid (Z, D) as the nearest."""
    from scipy.spatial.distance import cdist

    target = _finite(target_features, "target features")
    distances = cdist(target, _finite(centroids, "centroids"))
    votes = np.bincount(distances.argmin(axis=1), minlength=len(centroids))
    return _ranked(votes, -distances.sum(axis=0))


def _ranked(votes: Array, support: Array) -> ClassRanking:
    order = np.lexsort((np.arange(len(votes)), -support, -votes))
    return ClassRanking(order, votes, support)


def _finite(values: Array, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise DataError(f"{name}: the array has shape {found.shape}.", allowed="(N, D) with at least one row")
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise DataError(f"{name}: row {row}, column {column} is NaN or infinite.", allowed="finite numbers")
    return found
