"""Bootstrap intervals of scores that are, to first order, a mean over rows; paired between sources.

Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979; the correction for small
samples is Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 2015, section 4.
The same resampled rows serve every score and every source: differences between sources are paired for free, and
a thousand replicates of a score cost one matrix-vector product.
Left out: BCa and resampling that recomputes the score (a thousand times the work).
Checked in tests/select/test_intervals.py: coverage of known means and of every score on synthetic data.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from ontarget.select._contract import RowScores
from ontarget.values import Array

REPLICATES = 1000  # (choice): the ends of a 95% interval move by about 3% of its width between seeds


def bootstrap_counts(rows: int, replicates: int = REPLICATES, seed: int = 0) -> Array:
    """(replicates, rows) float32: how often each row is drawn when ``rows`` rows are drawn with replacement."""
    draws = np.random.default_rng(seed).integers(0, rows, size=(replicates, rows), dtype=np.int32)
    draws += np.arange(replicates, dtype=np.int32)[:, None] * rows
    return np.bincount(draws.ravel(), minlength=replicates * rows).reshape(replicates, rows).astype(np.float32)


def interval(score: RowScores, counts: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Expanded percentile interval of the score. counts: from `bootstrap_counts`, for the same number of rows.

    A proportion's interval is widened to Wilson's where that is wider (choice): 16 right out of 16 does not mean
    that all would be right, which is what resampling alone says.
    """
    low, high = _percentiles(score.rows - score.value, counts, confidence)
    low, high = score.value + low, score.value + high
    if score.proportion:
        wilson = stats.binomtest(round(float(score.rows.sum())), len(score.rows)).proportion_ci(confidence, "wilson")
        low, high = max(min(low, float(wilson.low)), 0.0), min(max(high, float(wilson.high)), 1.0)
    return min(low, score.value), max(high, score.value)


def difference_interval(
    better: RowScores, other: RowScores, counts: Array, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of ``better`` minus ``other``, both scored on the same rows: paired, so shared noise cancels.

    Of proportions, it holds 0 where the exact sign test of the rows that differ (McNemar) finds nothing (choice):
    3 rows that are all right here and all wrong there would resample to a certain difference.
    """
    difference = better.value - other.value
    by_row = better.rows - other.rows
    low, high = _percentiles(by_row - difference, counts, confidence)
    low, high = difference + low, difference + high
    if better.proportion and other.proportion:
        wins, differ = int(np.sum(by_row > 0)), int(np.sum(by_row != 0))
        if differ == 0 or stats.binomtest(wins, differ).pvalue > 1 - confidence:
            low, high = min(low, 0.0), max(high, 0.0)
    return low, high


def _percentiles(deviations: Array, counts: Array, confidence: float) -> tuple[float, float]:
    n = len(deviations)
    replicates = counts @ deviations.astype(np.float32) / n
    # Percentiles of the plug-in distribution are too narrow by sqrt((n-1)/n) and by normal against Student's t.
    tail = (1 - confidence) / 2
    widen = np.sqrt(n / (n - 1)) * stats.t.ppf(1 - tail, n - 1) / stats.norm.ppf(1 - tail)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low * widen), float(high * widen)
