"""Fine-tuning on a tiny encoder where equalities are exact, and on MiniLM where learning is shown."""

import numpy as np
import pytest
import torch

from ontarget.adapt.predict import predict_scores
from ontarget.adapt.tune.finetune import build, estimate, finetune, network_from_state
from ontarget.adapt.tune.lora import add_lora, merge_lora
from ontarget.errors import RunError, SettingError
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Examples, Loaded


class TinyEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 16), torch.nn.Linear(16, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(features)))


def tiny() -> Loaded:
    torch.manual_seed(3)
    return Loaded("control:array-6", Preprocess("array", {"dim": 6}), TinyEncoder().eval(), 8)


def examples(rows: int = 48, *, kind: str = "classification", seed: int = 0) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 6)).astype(np.float32)
    values = np.sin(2 * inputs[:, 0]) * inputs[:, 1] if kind == "classification" else inputs[:, 0] - inputs[:, 1]
    targets = (values > 0).astype(np.int64) if kind == "classification" else (100 + 25 * values).astype(np.float64)
    return Examples(inputs, targets, np.arange(rows))


def run(mode: str = "full", **settings: object):  # type: ignore[no-untyped-def]
    given = {"outputs": 2, "kind": "classification", "metric": "accuracy", "learning_rate": 1e-2, "total_epochs": 4,
             "probe": False, "batch_size": 16, **settings}  # fmt: skip
    return finetune(tiny(), examples(), examples(24, seed=1), mode=mode, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_resumed_training_equals_an_undisturbed_one(mode: str, optimizer: str) -> None:
    whole = run(mode, optimizer=optimizer)
    first = run(mode, optimizer=optimizer, stop_epoch=1)
    second = run(mode, optimizer=optimizer, stop_epoch=3, resume_from=first.checkpoint)
    third = run(mode, optimizer=optimizer, resume_from=second.checkpoint)
    assert [point["epoch"] for point in third.curve] == [1, 2, 3, 4]
    assert whole.curve == third.curve
    for name, value in whole.state.items():
        assert torch.equal(value, third.state[name]), name


def test_accumulated_batches_equal_one_large_batch() -> None:
    large = run(batch_size=48, total_epochs=2)
    small = run(batch_size=8, gradient_accumulation=6, total_epochs=2)
    for name, value in large.state.items():
        torch.testing.assert_close(value, small.state[name], rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_the_best_epoch_is_kept() -> None:
    result = run(total_epochs=30, early_stopping=False, learning_rate=3e-2)
    assert result.curve[-1]["train_loss"] < 0.8 * result.curve[0]["train_loss"]
    assert result.validation_metric == max(point["validation"] for point in result.curve)
    scores = predict_scores(result.network, tiny().preprocess, examples(24, seed=1).inputs)
    np.testing.assert_allclose(scores, result.validation_scores, atol=1e-5)


def test_the_network_is_rebuilt_from_its_state() -> None:
    for mode in ("full", "lora"):
        result = run(mode)
        again = network_from_state(tiny(), result.state, outputs=2)
        expected = predict_scores(result.network, tiny().preprocess, examples().inputs)
        np.testing.assert_allclose(predict_scores(again, tiny().preprocess, examples().inputs), expected, atol=1e-5)


def test_merged_adapters_equal_unmerged_ones_and_only_adapters_train() -> None:
    loaded = tiny()
    network = build(loaded, examples(), outputs=2, kind="classification", mode="lora", probe=False)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    inputs = torch.from_numpy(examples().inputs)
    before = network(inputs)
    torch.testing.assert_close(merge_lora(network)(inputs), before, rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name in network.state_dict())


def test_lora_needs_a_linear_layer() -> None:
    with pytest.raises(SettingError, match="no linear layer"):
        add_lora(torch.nn.Embedding(3, 2))


def test_regression_learns_in_the_target_s_units() -> None:
    result = finetune(
        tiny(), examples(96, kind="regression"), examples(48, kind="regression", seed=1), outputs=1,
        kind="regression", metric="r2", learning_rate=2e-2, total_epochs=40, probe=False, early_stopping=False,
    )  # fmt: skip
    assert result.validation_metric > 0.5
    assert 60 < result.validation_scores.mean() < 140


def test_balanced_classes_raise_the_rare_class() -> None:
    data = examples(80)
    rare = np.flatnonzero(data.targets == 1)[:5]
    kept = np.concatenate([np.flatnonzero(data.targets == 0), rare])
    shares = {}
    for weight in ("none", "balanced"):
        result = finetune(
            tiny(), data.take(kept), None, outputs=2, kind="classification", metric="accuracy", probe=False,
            class_weight=weight, learning_rate=1e-2, total_epochs=15,
        )  # fmt: skip
        scores = predict_scores(result.network, tiny().preprocess, examples(200, seed=2).inputs)
        shares[weight] = (scores.argmax(axis=1) == 1).mean()
    assert shares["balanced"] > shares["none"]


def test_a_loss_that_is_not_finite_names_its_place() -> None:
    data = examples(kind="regression")
    data.targets[:] = 1e38 * np.sign(data.inputs[:, 0])
    with pytest.raises(RunError, match=r"The loss is (nan|inf) in epoch 1, batch \d of"):
        finetune(tiny(), data, None, outputs=1, kind="regression", metric="r2", learning_rate=1e30, probe=False)


def test_a_deadline_ends_training_with_the_best_so_far() -> None:
    import time

    from ontarget.values import Context

    result = finetune(
        tiny(), examples(), examples(24, seed=1), outputs=2, kind="classification", metric="accuracy", probe=False,
        total_epochs=500, context=Context(deadline=time.monotonic() + 0.3), early_stopping=False, batch_size=4,
    )  # fmt: skip
    assert "the time was up" in result.stopped_reason
    assert result.validation_scores.shape == (24, 2)


@pytest.mark.parametrize(
    "wrong", [{"mode": "all"}, {"total_epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"optimizer": "sgd"}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        run(**{"mode": "full", **wrong})


def test_minilm_learns_a_word_and_is_estimated() -> None:
    from ontarget.pool import load, resolve

    texts = [f"{'good' if row % 2 else 'bad'} thing number {row}" for row in range(24)]
    data = Examples(texts, np.arange(24) % 2, np.arange(24))
    source = resolve("zoo:minilm")
    result = finetune(
        load(source), data.take(np.arange(16)), data.take(np.arange(16, 24)), outputs=2, kind="classification",
        metric="accuracy", total_epochs=2, learning_rate=1e-4,
    )  # fmt: skip
    assert result.validation_metric == 1.0
    assert not any("word_embeddings" in name for name in result.state)
    seconds, memory_mb = estimate(
        load(source), data, outputs=2, kind="classification", mode="full", batch_size=8, epochs=2
    )
    assert seconds > 0
    assert memory_mb > 100
