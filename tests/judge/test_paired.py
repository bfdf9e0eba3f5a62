from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, permutation_test

from ontarget.adapt.metric import metric_value, row_scores
from ontarget.judge.paired import Comparison, compare, holm, mcnemar, sign_flip_test, swap_test_macro_f1


def scores_for(predicted: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def noisy(targets: np.ndarray, right: float, generator: np.random.Generator) -> np.ndarray:
    return scores_for(np.where(generator.random(len(targets)) < right, targets, (targets + 1) % 3))


def test_mcnemar_by_its_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(1, 9) == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(9, 1) == mcnemar(1, 9)


def test_accuracy_is_compared_by_the_rows_that_one_model_alone_has_right() -> None:
    targets = np.zeros(20, dtype=np.int64)
    model, baseline = np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64)
    model[:2], baseline[2:11] = 1, 1  # 9 that the model alone has right, 2 that the baseline alone has right
    found = compare("b", "accuracy", scores_for(model), scores_for(baseline), targets)
    assert found.p_value == pytest.approx(binomtest(9, 11).pvalue)
    assert found.difference == pytest.approx(7 / 20)
    assert (found.value, found.test) == (pytest.approx(11 / 20), "mcnemar")


def test_holm_by_hand() -> None:
    """p = .01, .04, .03 over three tests: .03, then max(.03, .06) = .06, then max(.06, .04) = .06."""
    rows = [Comparison(str(p), 0, 0, 0, 0, 0, 0, p, "mcnemar") for p in (0.01, 0.04, 0.03)]
    assert [row.p_value for row in holm(rows)] == pytest.approx([0.03, 0.06, 0.06])
    assert [row.name for row in holm(rows)] == ["0.01", "0.04", "0.03"]
    assert holm([]) == []


def test_few_rows_are_enumerated() -> None:
    """Differences 1, 2, 3: of 8 sign patterns, two reach |6|."""
    assert sign_flip_test(np.array([1.0, 2, 3])) == 0.25
    assert sign_flip_test(np.array([0.0, 0, 0])) == 1
    assert sign_flip_test(np.array([0.1, 0.2, -0.3])) == 1  # rounding is no evidence


@pytest.mark.parametrize("rows", [10, 60])
def test_sign_flips_agree_with_scipy(rows: int) -> None:
    differences = np.random.default_rng(0).normal(0.25, 1, rows)
    theirs = permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert sign_flip_test(differences) == pytest.approx(theirs.pvalue, abs=0.012 if rows > 13 else 1e-12)


def test_macro_f1_swaps_agree_with_all_swaps() -> None:
    generator = np.random.default_rng(4)
    targets = generator.integers(0, 3, 12)
    first, second = noisy(targets, 0.9, generator).argmax(axis=1), noisy(targets, 0.3, generator).argmax(axis=1)
    differ = np.flatnonzero(first != second)
    assert 5 <= len(differ) <= 11

    def difference(swap: tuple[int, ...]) -> float:
        a, b = first.copy(), second.copy()
        chosen = differ[np.array(swap, dtype=bool)]
        a[chosen], b[chosen] = second[chosen], first[chosen]
        return metric_value("macro_f1", scores_for(a), targets) - metric_value("macro_f1", scores_for(b), targets)

    found = np.array([difference(swap) for swap in product((0, 1), repeat=len(differ))])
    exact = float(np.mean(np.abs(found) >= abs(found[0]) - 1e-12))
    assert swap_test_macro_f1(scores_for(first), scores_for(second), targets) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_equal_models_do_not_differ_and_better_ones_do(metric: str) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 300)
    good, poor = noisy(targets, 0.9, generator), noisy(targets, 0.6, generator)
    same = compare("same", metric, good, good, targets)
    assert (same.difference, same.p_value, same.difference_low, same.difference_high) == (0, 1, 0, 0)
    better = compare("poor", metric, good, poor, targets)
    worse = compare("good", metric, poor, good, targets)
    assert better.difference_low > 0.1
    assert better.p_value <= 2e-4
    assert worse.difference == pytest.approx(-better.difference)
    assert worse.difference_high < -0.1


@pytest.mark.parametrize("metric", ["r2", "neg_mae", "neg_rmse", "spearman"])
def test_regression_is_compared_by_permutation(metric: str) -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=200)
    near, far = ((targets + spread * generator.normal(size=200))[:, None] for spread in (0.1, 1.0))
    found = compare("far", metric, near, far, targets)
    assert (found.test, found.p_value) == ("permutation", 1e-4)
    assert found.difference_low > 0
    assert found.low < found.value == metric_value(metric, far, targets) < found.high


def test_rmse_and_r2_have_the_p_value_of_squared_errors() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=40)
    a, b = ((targets + spread * generator.normal(size=40))[:, None] for spread in (0.8, 1.0))
    p_values = {metric: compare("b", metric, a, b, targets).p_value for metric in ("r2", "neg_rmse")}
    squares = row_scores("neg_rmse", a, targets) - row_scores("neg_rmse", b, targets)
    assert p_values["neg_rmse"] == sign_flip_test(squares)
    assert p_values["r2"] == pytest.approx(p_values["neg_rmse"], abs=1e-3)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "neg_mae"])
def test_models_that_are_alike_seldom_seem_to_differ(metric: str) -> None:
    alarms = 0
    for seed in range(120):
        generator = np.random.default_rng(seed)
        if metric == "neg_mae":
            targets = generator.normal(size=50)
            first, second = ((targets + generator.normal(size=50)) for _ in range(2))
            p_value = sign_flip_test(np.abs(first - targets) - np.abs(second - targets), swaps=999)
        else:
            targets = generator.integers(0, 3, 50)
            first, second = noisy(targets, 0.7, generator), noisy(targets, 0.7, generator)
            if metric == "macro_f1":
                p_value = swap_test_macro_f1(first, second, targets, swaps=999)
            else:
                p_value = compare("", metric, first, second, targets).p_value
        alarms += p_value < 0.05
    assert alarms / 120 <= 0.11
