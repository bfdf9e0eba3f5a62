"""PARC: do images that share a label lie close together in a source's features?

Daniel Bolya, Rohit Mittapalli, Judy Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning",
NeurIPS 2021, arXiv 2111.06977. Official code: github.com/dbolya/parc (class PARC in methods.py).
Claim: on a diverse pool it correlates better with fine-tuned accuracy than LEEP, NCE, H-score and RSA. It is the
similarity that DistillWeighted (arXiv 2304.12314) weights its sources by.
Left out: targets with several labels a row; the paper's addition for a source's capacity (number of layers).
Checked in tests/select/test_parc.py (the official formulas, hand-worked values) and claims/04_distill_weighted.py.

With features standardised by column, over all pairs i < j of N rows:

    D1_ij = 1 - corr(f_i, f_j),    D2_ij = 1 - corr(onehot(y_i), onehot(y_j)),    PARC = Spearman(D1, D2)

D2 takes two values only, same class or not, so only the ranks of D1 matter. The official code leaves rounding errors in
D2, which break its ties (with 7 classes 43 for 61, times 100), and scales columns of spread 1e-33 up to 1; here ties
stay ties, and such columns constant (benchmarks/official_scores.py has both).

>>> import numpy as np
>>> parc(np.array([[0.0, 1], [0, 2], [1, 0], [2, 0]]), np.array([0, 0, 1, 1]))  # both same-class pairs are closest
0.8...
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, check
from ontarget.values import Array

PROBE_ROWS = 500  # as published: pairs grow with the square of the rows


def parc(features: Array, targets: Array, *, dimensions: int | None = None, seed: int = 0) -> float:
    """Rank correlation, -1 to 1, of distances between features with distances between labels: higher is better.

    features: (N, D) float, D >= 2. targets: (N,) int class indices. dimensions: reduce the features to so many
    principal components first (32 in some of the paper's tables); None leaves them as they are, as does a number
    that is not below min(N, D). More than PROBE_ROWS rows: a seeded stratified sample of so many is scored.
    Constant features, or a single column (every correlation is then 1 or -1), say nothing: 0.
    Raises DataError: NaN features, a single class; SettingError: dimensions below 2.
    Source: arXiv 2111.06977, section 4 (times 100 in the official code).
    """
    return parc_rows(features, targets, dimensions=dimensions, seed=seed).value


def parc_rows(features: Array, targets: Array, *, dimensions: int | None = None, seed: int = 0) -> RowScores:
    """`parc` with each row's influence, for the rows that are scored; the others count as the mean (influence 0).

    A correlation over pairs is a U-statistic: to first order, a row adds twice the mean influence of its pairs, whose
    ranks are held (Hoeffding 1948).
    """
    features, targets = check(features, targets, "classification")
    if dimensions is not None and dimensions < 2:
        raise SettingError(f"dimensions is {dimensions}.", allowed="2 or more, or None", option="dimensions")
    chosen = _probe(targets, seed)
    spread = features[chosen].std(axis=0)
    if not (spread > 1e-12 * np.maximum(1.0, np.abs(features[chosen]).max(axis=0))).any() or features.shape[1] < 2:
        return RowScores(0.0, np.zeros(len(targets)), notes=("parc: the features say nothing",))
    rows = _reduced(features[chosen], dimensions)
    centred = rows - rows.mean(axis=0)
    # Constant columns stay 0, as scikit-learn's StandardScaler leaves them.
    spread = centred.std(axis=0)
    standardised = centred / np.where(spread > 1e-12 * np.maximum(1.0, np.abs(rows).max(axis=0)), spread, 1.0)
    upper = np.triu_indices(len(rows), 1)
    near = _ranks(_correlations(standardised)[upper])  # rank of -D1: closest last
    same = (targets[chosen][:, None] == targets[chosen][None, :])[upper].astype(np.float64)
    near -= near.mean()
    same -= same.mean()
    if not near.any() or not same.any():
        return RowScores(0.0, np.zeros(len(targets)), notes=("parc: all pairs are alike",))
    near /= np.sqrt(np.mean(near**2))
    same /= np.sqrt(np.mean(same**2))
    value = float(np.mean(near * same))
    pairs = near * same - value / 2 * (near**2 + same**2)
    of_rows = np.bincount(upper[0], pairs, len(rows)) + np.bincount(upper[1], pairs, len(rows))
    influence = 2 * of_rows / (len(rows) - 1)
    shares = np.full(len(targets), value)
    # A sample of n of N rows: its rows stand for all, so that the interval is that of n rows.
    shares[chosen] += (influence - influence.mean()) * np.sqrt(len(targets) / len(chosen))
    return RowScores(value, shares + (value - shares.mean()))


def _ranks(values: Array) -> Array:
    ranks: Array = rankdata(values)
    return ranks


def _correlations(rows: Array) -> Array:
    """(N, N) Pearson correlations between rows; a row without spread correlates with nothing (0)."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norms > 0, norms, 1.0)
    product: Array = unit @ unit.T
    return np.round(product, 12)  # equal distances must tie, whatever the rounding


def _reduced(features: Array, dimensions: int | None) -> Array:
    if dimensions is None or dimensions >= min(features.shape):
        return features
    from sklearn.decomposition import PCA

    found: Array = PCA(dimensions, svd_solver="full").fit_transform(features)
    return found


def _probe(targets: Array, seed: int) -> Array:
    """Sorted positions of at most PROBE_ROWS rows, in the classes' shares."""
    rows = len(targets)
    if rows <= PROBE_ROWS:
        return np.arange(rows)
    order = np.random.default_rng(seed).permutation(rows)
    order = order[np.argsort(targets[order], kind="stable")]
    # Every (N / PROBE_ROWS)-th of the rows in the order of their classes.
    return np.sort(order[np.floor(np.arange(PROBE_ROWS) * rows / PROBE_ROWS).astype(np.int64)])
