"""DistillWeighted: hand-worked weights, the mixed teacher's loss, a student that learns from teachers alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ontarget.adapt.distil.distill_weighted import (
    distill_weighted,
    mixed_teachers,
    source_weights,
    teacher_probabilities,
)
from ontarget.errors import DataError, SettingError
from ontarget.values import Context


def test_weights():
    assert source_weights([0.5, 0.25, -0.1], power=1) == pytest.approx([2 / 3, 1 / 3, 0])
    assert source_weights([0.5, 0.25], power=2) == pytest.approx([0.8, 0.2])
    assert source_weights([0.5, 0.25, -0.1], power=0) == pytest.approx([1 / 3] * 3)
    assert source_weights([0.2, 0.5, 0.1], power=math.inf).tolist() == [0, 1, 0]
    assert source_weights([-0.2, -0.5]) == pytest.approx([0.5, 0.5])
    with pytest.raises(DataError, match="finite"):
        source_weights([0.1, math.nan])
    with pytest.raises(SettingError, match="power"):
        source_weights([0.1], power=-1)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0, 20))
def test_weights_sum_to_one(similarities, power):
    weights = source_weights(similarities, power=power)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()


def test_mixed_teacher_gives_the_weighted_loss():
    random = np.random.default_rng(0)
    parts = [random.dirichlet(np.ones(4), 6).astype(np.float32) for _ in range(3)]
    weights, logits = np.array([0.5, 0.3, 0.2]), torch.from_numpy(random.normal(size=(6, 4)).astype(np.float32))
    separate = sum(
        weight * torch.nn.functional.cross_entropy(logits, torch.from_numpy(part))
        for weight, part in zip(weights, parts, strict=True)
    )
    mixed = torch.nn.functional.cross_entropy(logits, torch.from_numpy(mixed_teachers(parts, weights)))
    assert float(mixed) == pytest.approx(float(separate), rel=1e-5)


def problem(seed=0):
    random = np.random.default_rng(seed)
    centres = 2.5 * random.normal(size=(3, 6))
    labels = np.arange(330) % 3
    rows = (centres[labels] + random.normal(size=(330, 6))).astype(np.float32)
    return rows, labels


def test_student_learns_from_teachers():
    rows, labels = problem()
    teacher = teacher_probabilities(rows[:30], labels[:30], rows[30:230], outputs=3)
    assert teacher.sum(axis=1) == pytest.approx(np.ones(200), rel=1e-5)
    inputs = torch.from_numpy(rows)
    torch.manual_seed(0)
    for balance in (0.0, 0.8):
        found = distill_weighted(
            torch.nn.Linear(6, 3), inputs[:30], torch.from_numpy(labels[:30]), inputs[30:230], teacher, steps=60,
            balance=balance, batch_size=32,
        )  # fmt: skip
        with torch.inference_mode():
            right = found.network(inputs[230:]).argmax(1).numpy() == labels[230:]
        assert right.mean() > 0.9
        assert found.curve[-1]["teachers"] < found.curve[0]["teachers"]
    assert not found.network.training


def test_same_seed_same_student():
    rows, labels = problem()
    teacher = teacher_probabilities(rows[:30], labels[:30], rows[30:90], outputs=3)
    inputs, results = torch.from_numpy(rows), []
    for _ in range(2):
        torch.manual_seed(5)
        student = torch.nn.Linear(6, 3)
        distill_weighted(student, inputs[:30], torch.from_numpy(labels[:30]), inputs[30:90], teacher, steps=5,
                         context=Context(seed=3))  # fmt: skip
        results.append(student.weight.detach().numpy().copy())
    assert (results[0] == results[1]).all()


def test_errors():
    rows, labels = problem()
    inputs, targets = torch.from_numpy(rows[:10]), torch.from_numpy(labels[:10])
    with pytest.raises(DataError, match="teacher"):
        distill_weighted(torch.nn.Linear(6, 3), inputs, targets, inputs, np.ones((4, 3)), steps=1)
    with pytest.raises(SettingError, match="balance"):
        distill_weighted(torch.nn.Linear(6, 3), inputs, targets, inputs, np.ones((10, 3)) / 3, steps=1, balance=2.0)
    with pytest.raises(DataError, match="weights"):
        mixed_teachers([np.ones((2, 3))], np.ones(2))
    with pytest.raises(DataError, match="not finite"):
        distill_weighted(torch.nn.Linear(6, 3), inputs * 1e30, targets, inputs, np.ones((10, 3)) / 3, steps=3,
                         learning_rate=1e20)  # fmt: skip
