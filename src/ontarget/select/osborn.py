"""OSBORN: choose an ensemble of source models by optimal transport, label mismatch and mutual agreement.

Vimal K B, Saketh Bachu, Tanmay Garg, Niveditha Lakshmi Narasimhan, Raghavan Konuru, Vineeth N Balasubramanian,
"Building a Winning Team: Selecting Source Model Ensembles using a Submodular Transferability Estimation Approach",
ICCV 2023, arXiv 2309.02429. Official code: none.
Claim: on 11 sources and 5 targets its score correlates better with the accuracy of fine-tuned ensembles than MS-LEEP
and E-LEEP (weighted Kendall 96% better, relative), and greedy choice reaches 95.6% of the best ensemble's accuracy.
Left out: the paper's study of other set functions.
Checked in tests/select/test_osborn.py (hand-worked entropies, POT, diminishing gains) and claims/15_osborn.py.

For a model i: W_D, the entropic optimal-transport cost between target and source features (unit length, squared
Euclidean distance, uniform weights); W_T = H(source label | target label) under the joint distribution that the
transport plan gives; for an ensemble M

    OSBORN(M) = sum_{i in M} [W_D(i) + W_T(i)] + sum_{i != j in M} H(yhat_i | yhat_j),     lower is better

where yhat_i are i's own class predictions on the target rows. -OSBORN has diminishing gains and is not monotone, so
the size is given, and models are added greedily.

>>> import numpy as np
>>> def source(name, cost):
...     return Terms(name, cost, 0.0, np.array([0, 1, 0, 1]))
>>> osborn([source("a", 0.3), source("b", 0.1), source("c", 0.2)], size=2).chosen
('b', 'c')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ontarget.errors import DataError, SettingError, require_extra
from ontarget.values import Array

REGULARISATION = 0.1  # of the transport, in units of the cost, which lies between 0 and 4 (choice)


@dataclass(frozen=True)
class Terms:
    """What one source model adds to a score of a set.

    domain: W_D, 0 to 4; 0 where the source's data is not at hand (choice). task: W_T, nats.
    predictions: (N,) int, the source's own classes (or any other labels it gives) for the target rows.
    """

    name: str
    domain: float
    task: float
    predictions: Array
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ensemble:
    """chosen: names in the order in which they were added. score: OSBORN of the set, lower is better.

    gains: what adding each brought to -OSBORN. cohesion: (M, M) H(yhat_i | yhat_j) over all sources, nats.
    """

    chosen: tuple[str, ...]
    score: float
    gains: tuple[float, ...]
    cohesion: Array


def osborn(sources: Sequence[Terms], *, size: int = 3, normalised: bool = False) -> Ensemble:
    """The ensemble of ``size`` sources with the greedily best OSBORN score.

    sources: from `terms`, or with figures of your own. size: 1 to the number of sources (3 in the paper).
    normalised: for sources of unlike widths or numbers of classes, whose terms are on different scales and favour few
    classes (choice; the paper has nothing of the kind): W_D becomes its rank in the pool, 0 to 1, and entropies of a
    source's labels are divided by the logarithm of how many it predicts.
    Ties go to the source that comes first. Raises SettingError: a size out of range, names that occur twice;
    DataError: predictions of different lengths.
    Source: arXiv 2309.02429, sections 3.3 and 3.4.
    """
    if not 1 <= size <= len(sources):
        raise SettingError(f"size is {size}.", allowed=f"1 to {len(sources)}", option="size")
    if len({source.name for source in sources}) < len(sources):
        raise SettingError("Two sources have the same name.", option="sources")
    own, cohesion = _costs(sources, normalised)
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < size:
        left = [at for at in range(len(sources)) if at not in chosen]
        added = [-_cost(own, cohesion, [*chosen, at]) + _cost(own, cohesion, chosen) for at in left]
        best = int(np.argmax(np.round(added, 12)))
        chosen.append(left[best])
        gains.append(added[best])
    names = tuple(sources[at].name for at in chosen)
    return Ensemble(names, _cost(own, cohesion, chosen), tuple(gains), cohesion)


def score(sources: Sequence[Terms], names: Sequence[str], *, normalised: bool = False) -> float:
    """OSBORN of the set ``names`` of the sources: lower is better."""
    places: Mapping[str, int] = {source.name: at for at, source in enumerate(sources)}
    return _cost(*_costs(sources, normalised), [places[name] for name in names])


def terms(
    name: str,
    target_features: Array,
    targets: Array,
    predictions: Array,
    *,
    source_features: Array | None = None,
    source_labels: Array | None = None,
    regularisation: float = REGULARISATION,
) -> Terms:
    """One source's terms.

    target_features: (N, D) float and source_features: (S, D) float, of this source, 500 to 1,000 rows of each (choice).
    targets: (N,) and source_labels: (S,) int. predictions: (N,) int, the source's class for every target row.
    Without source rows W_D is 0 and W_T is counted from predictions and targets (choice; a note says so).
    Raises DataError: shapes that do not fit, NaN, a row of zeros; MissingExtra: POT is not installed.
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if targets.shape != predictions.shape or targets.ndim != 1 or not len(targets):
        raise DataError(f"{name}: targets have shape {targets.shape}, predictions {predictions.shape}.")
    if source_features is None or source_labels is None:
        counts = _joint(predictions, targets, np.ones(len(targets)))
        return Terms(name, 0.0, conditional_entropy(counts), predictions, (f"{name}: no source rows, so W_D is 0",))
    cost, plan = transport(target_features, source_features, regularisation=regularisation, name=name)
    labels = np.asarray(source_labels)
    if plan.shape != (len(targets), len(labels)):
        raise DataError(f"{name}: {plan.shape} features for {len(targets)} targets and {len(labels)} source labels.")
    rows, columns = np.indices(plan.shape)
    joint = _joint(labels[columns.ravel()], targets[rows.ravel()], plan.ravel())
    return Terms(name, cost, conditional_entropy(joint), predictions)


def transport(
    target: Array, source: Array, *, regularisation: float = REGULARISATION, name: str = "source"
) -> tuple[float, Array]:
    """(W_D, plan (N, S)): the entropic transport between rows scaled to unit length, and its cost.

    Source: arXiv 2309.02429, eq. for W_D; Cuturi, NIPS 2013 (by POT's stabilised Sinkhorn).
    """
    require_extra("ot", "select", "OSBORN with source rows")
    import ot

    if target.ndim != 2 or source.ndim != 2 or target.shape[1] != source.shape[1]:
        raise DataError(f"{name}: target features {target.shape} and source features {source.shape} do not fit.")
    if regularisation <= 0:
        raise SettingError(f"regularisation is {regularisation}.", allowed="more than 0", option="regularisation")
    rows = [_unit(np.asarray(features, dtype=np.float64), name) for features in (target, source)]
    cost = np.maximum(2 - 2 * rows[0] @ rows[1].T, 0.0)
    shares = [np.full(len(part), 1 / len(part)) for part in rows]
    plan: Array = ot.sinkhorn(*shares, cost, regularisation, method="sinkhorn_log", numItermax=2000, stopThr=1e-9)
    return float(np.sum(plan * cost)), plan


def cohesions(predictions: Sequence[Array]) -> Array:
    """(M, M) H(yhat_i | yhat_j) in nats over the target rows; the diagonal is 0."""
    lengths = {len(part) for part in predictions}
    if len(lengths) > 1:
        raise DataError(f"The sources have predictions for different numbers of rows: {sorted(lengths)}.")
    size = len(predictions)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if i != j:
                found[i, j] = conditional_entropy(_joint(predictions[i], predictions[j], np.ones(len(predictions[i]))))
    return found


def conditional_entropy(joint: Array) -> float:
    """H(row | column) in nats of a (R, C) table of non-negative masses, which need not sum to 1."""
    shares = joint / joint.sum()
    columns = shares.sum(axis=0, keepdims=True)
    ratio = np.divide(shares, columns, out=np.ones_like(shares), where=(shares > 0) & (columns > 0))
    return float(-np.sum(shares * np.log(ratio))) + 0.0


def _joint(rows: Array, columns: Array, masses: Array) -> Array:
    row_names, row_codes = np.unique(rows, return_inverse=True)
    column_names, column_codes = np.unique(columns, return_inverse=True)
    flat = np.bincount(row_codes * len(column_names) + column_codes, masses, len(row_names) * len(column_names))
    return flat.reshape(len(row_names), len(column_names))


def _costs(sources: Sequence[Terms], normalised: bool) -> tuple[Array, Array]:
    """(M,) W_D + W_T of each source, and (M, M) cohesions."""
    domain, task = (np.array([getattr(source, name) for source in sources]) for name in ("domain", "task"))
    cohesion = cohesions([source.predictions for source in sources])
    if normalised:
        from scipy.stats import rankdata

        labels = np.log([max(2, len(np.unique(source.predictions))) for source in sources])
        domain = (rankdata(domain) - 1) / max(1, len(sources) - 1)
        task, cohesion = task / labels, cohesion / labels[:, None]
    return domain + task, cohesion


def _cost(own: Array, cohesion: Array, members: Sequence[int]) -> float:
    return float(own[list(members)].sum()) + float(cohesion[np.ix_(members, members)].sum())


def _unit(features: Array, name: str) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        row = int(np.argmax(~(np.isfinite(norms) & (norms > 0))))
        raise DataError(f"{name}: features of row {row} are zero, NaN or infinite.")
    unit: Array = features / norms
    return unit
