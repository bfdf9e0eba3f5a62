"""Do intervals hold what they are supposed to hold?"""

import numpy as np
import pytest

from ontarget.select._contract import RowScores
from ontarget.select.h_score import h_score_rows
from ontarget.select.intervals import bootstrap_counts, difference_interval, interval
from ontarget.select.linear_probe import linear_probe_rows
from ontarget.select.logme import logme_rows
from ontarget.select.nearest_neighbours import nearest_neighbours_rows
from ontarget.select.parc import parc_rows
from ontarget.select.tmi import tmi_rows, tmi_scaled_rows
from ontarget.select.transrate import transrate_rows


def test_counts_are_resamples():
    counts = bootstrap_counts(50, 200)
    assert counts.shape == (200, 50)
    assert np.all(counts.sum(axis=1) == 50)
    assert counts.var() == pytest.approx(0.98, abs=0.05)
    np.testing.assert_array_equal(counts, bootstrap_counts(50, 200))


def test_interval_of_a_mean_is_students():
    rows = np.random.default_rng(0).normal(size=400)
    low, high = interval(RowScores(rows.mean(), rows), bootstrap_counts(400))
    assert (high - low) / 2 == pytest.approx(1.966 * rows.std(ddof=1) / 20, rel=0.06)


@pytest.mark.parametrize("rows", [12, 100])
def test_coverage_of_a_mean(rows):
    random = np.random.default_rng(0)
    counts, hits = bootstrap_counts(rows), 0
    for _ in range(300):
        sample = random.normal(3, 2, rows)
        low, high = interval(RowScores(sample.mean(), sample), counts)
        hits += low <= 3 <= high
    assert 0.91 <= hits / 300 <= 0.985


def test_all_right_is_not_certain():
    low, high = interval(RowScores(1.0, np.ones(16), proportion=True), bootstrap_counts(16))
    assert high == 1.0
    assert low == pytest.approx(0.806, abs=1e-3)


def test_pairing_cancels_what_sources_share():
    random = np.random.default_rng(0)
    shared = random.normal(size=300)
    first, second = (
        RowScores(float(rows.mean()), rows) for rows in (shared + 0.1, shared + random.normal(0, 0.05, 300))
    )
    counts = bootstrap_counts(300)
    assert interval(first, counts)[0] < interval(second, counts)[1]  # apart they overlap
    assert difference_interval(first, second, counts)[0] > 0.05


@pytest.mark.parametrize(("differ", "decided"), [(3, False), (5, False), (6, True), (0, False)])
def test_few_rows_that_differ_decide_nothing(differ, decided):
    # Sign test: 2 * 0.5^5 = 0.0625, 2 * 0.5^6 = 0.031.
    first, second = np.ones(8), np.where(np.arange(8) < differ, 0.0, 1.0)
    scores = [RowScores(float(rows.mean()), rows, proportion=True) for rows in (first, second)]
    assert (difference_interval(*scores, bootstrap_counts(8))[0] > 0) == decided


SCORES = {
    # score -> allowed ratio of the interval's standard error to the score's true spread over fresh samples
    "logme": (lambda f, y: logme_rows(f, y), 0.8, 1.5),
    "h_score": (lambda f, y: h_score_rows(f, y), 0.7, 1.4),
    "linear_probe": (lambda f, y: linear_probe_rows(f, y), 0.7, 1.4),
    "knn": (lambda f, y: nearest_neighbours_rows(f, y), 0.55, 1.3),  # rows share neighbours: rather narrow
    "tmi": (lambda f, y: tmi_rows(f, y, min_distance=0.01), 0.8, 1.8),  # rather wide
    "tmi_scaled": (lambda f, y: tmi_scaled_rows(f, y), 0.8, 2.2),
    "parc": (lambda f, y: parc_rows(f, y), 0.7, 1.4),
    "transrate": (lambda f, y: transrate_rows(f, y), 0.7, 1.5),
}


@pytest.mark.parametrize("name", sorted(SCORES))
def test_spread_over_fresh_samples(name):
    score, least, most = SCORES[name]
    random = np.random.default_rng(3)
    means, mix = random.normal(size=(3, 40)) / 4, random.normal(size=(40, 40)) / 6
    targets = np.arange(300) % 3
    values, errors = [], []
    for _ in range(60):
        rows = score((random.normal(size=(300, 40)) + means[targets]) @ mix, targets)
        values.append(rows.value)
        errors.append(rows.rows.std() / np.sqrt(300))
    assert least < np.mean(errors) / np.std(values) < most
