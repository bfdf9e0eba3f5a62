"""Fine-tuning on a tiny encoder where equalities are exact, and on MiniLM where learning is shown."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from ontarget.adapt.predict import predict_scores
from ontarget.adapt.tune.finetune import FinetuneResult, build, estimate, finetune, network_from_state
from ontarget.adapt.tune.linear_head import linear_head
from ontarget.adapt.tune.objective import balanced_weights, loss_of, precision_of
from ontarget.adapt.tune.trainable import make_optimizer, trainable, warm_up_cosine
from ontarget.adapt.tune.tuned_network import Scaled
from ontarget.errors import DataError, RunError, SettingError
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Context, Examples, Loaded


class TinyEncoder(torch.nn.Module):
    """(N, 6) -> (N, 8), in three blocks."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
        self.norm = torch.nn.BatchNorm1d(16) if norm else torch.nn.LayerNorm(16)
        self.dropout = torch.nn.Dropout(dropout)
        self.last = torch.nn.Linear(16, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.last(self.dropout(self.norm(hidden)))


def tiny(**settings: Any) -> Loaded:
    torch.manual_seed(3)
    return Loaded("control:array-6", Preprocess("array", {"dim": 6}), TinyEncoder(**settings).eval(), 8)


def examples(rows: int = 48, *, kind: str = "classification", seed: int = 0) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 6)).astype(np.float32)
    values = np.sin(2 * inputs[:, 0]) * inputs[:, 1] if kind == "classification" else inputs[:, 0] - inputs[:, 1]
    targets = (values > 0).astype(np.int64) if kind == "classification" else (100 + 25 * values).astype(np.float64)
    return Examples(inputs, targets, np.arange(rows))


def run(mode: str = "full", *, loaded: Loaded | None = None, **settings: Any) -> FinetuneResult:
    given = {"outputs": 2, "kind": "classification", "metric": "accuracy", "learning_rate": 1e-2, "total_epochs": 4,
             "probe": False, "batch_size": 16, "early_stopping": False, **settings}  # fmt: skip
    return finetune(loaded or tiny(), examples(), examples(24, seed=1), mode=mode, **given)  # type: ignore[arg-type]


def assert_same_training(whole: FinetuneResult, parts: FinetuneResult) -> None:
    assert whole.curve == parts.curve
    assert whole.validation_metric == parts.validation_metric
    assert set(whole.state) == set(parts.state)
    for name, value in whole.state.items():
        assert torch.equal(value, parts.state[name]), name


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_resumed_training_equals_an_undisturbed_one(mode: str, optimizer: str) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "lora_dropout": 0.2}
    whole = run(mode, loaded=tiny(dropout=0.2), **settings)
    first = run(mode, loaded=tiny(dropout=0.2), stop_epoch=1, **settings)
    second = run(mode, loaded=tiny(dropout=0.2), stop_epoch=3, resume_from=first.checkpoint, **settings)
    third = run(mode, loaded=tiny(dropout=0.2), resume_from=second.checkpoint, **settings)
    assert [point["epoch"] for point in third.curve] == [1, 2, 3, 4]
    assert_same_training(whole, third)


def test_a_training_that_ran_out_of_time_mid_epoch_goes_on_as_if_it_had_not() -> None:
    """The first call ends after its first step, in the middle of epoch 1; statistics of BatchNorm are kept too."""
    settings: dict[str, Any] = {"batch_size": 4, "gradient_accumulation": 2, "freeze_statistics": False}
    whole = run(loaded=tiny(dropout=0.2, norm=True), **settings)
    late = Context(deadline=time.monotonic() - 1)
    part = run(loaded=tiny(dropout=0.2, norm=True), context=late, **settings)
    assert part.curve == ()
    assert "the time was up in epoch 1" in part.stopped_reason
    assert part.validation_scores.shape == (24, 2)
    rest = run(loaded=tiny(dropout=0.2, norm=True), resume_from=part.checkpoint, **settings)
    assert_same_training(whole, rest)


def test_what_is_resumed_stays_stopped_early() -> None:
    """Nothing is learnt at this rate: epoch 1 stays the best, and patience 2 ends the training after epoch 3."""
    settings: dict[str, Any] = {"learning_rate": 1e-12, "early_stopping": True, "patience": 2, "total_epochs": 9}
    whole = run(**settings)
    assert [point["epoch"] for point in whole.curve] == [1, 2, 3]
    assert whole.stopped_reason == "no better epoch for 2 epochs"
    assert_same_training(whole, run(resume_from=whole.checkpoint, **settings))


def test_checkpoints_of_other_settings_or_none_are_refused() -> None:
    made = run(stop_epoch=1).checkpoint
    with pytest.raises(RunError, match=r"made with learning_rate = 0\.01, not 0\.02"):
        run(resume_from=made, learning_rate=2e-2)
    for broken in (b"", b"\x08\0\0\0\0\0\0\0{}      ", made[:-100]):
        with pytest.raises(RunError, match="cannot be read"):
            run(resume_from=broken)


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = Loaded("control:array-6", Preprocess("array", {"dim": 6}), TinyEncoder().eval(), 8)
    torch.manual_seed(5)
    run("lora", loaded=loaded, total_epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_accumulated_batches_equal_one_large_batch(class_weight: str) -> None:
    shared: dict[str, Any] = {"total_epochs": 2, "class_weight": class_weight, "mixed_precision": "off"}
    large = run(batch_size=48, **shared)
    small = run(batch_size=8, gradient_accumulation=6, **shared)
    for name, value in large.state.items():
        torch.testing.assert_close(value, small.state[name], rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_the_last_or_the_best_epoch_is_kept() -> None:
    result = run(total_epochs=30, learning_rate=3e-2)
    assert result.curve[-1]["train_loss"] < 0.8 * result.curve[0]["train_loss"]
    assert result.validation_metric == result.curve[-1]["validation"]
    best = max(point["validation"] for point in result.curve)
    assert result.validation_metric < best
    chosen = run(total_epochs=30, learning_rate=3e-2, early_stopping=True, patience=30)
    assert chosen.curve == result.curve and chosen.validation_metric == best
    scores = predict_scores(result.network, tiny().preprocess, examples(24, seed=1).inputs)
    np.testing.assert_allclose(scores, result.validation_scores, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_the_network_is_rebuilt_from_its_state(mode: str) -> None:
    result = run(mode)
    again = network_from_state(tiny(), result.state, outputs=2)
    expected = predict_scores(result.network, tiny().preprocess, examples().inputs)
    np.testing.assert_array_equal(predict_scores(again, tiny().preprocess, examples().inputs), expected)
    with pytest.raises(RunError, match="does not fit"):
        network_from_state(tiny(), {**result.state, "encoder.other": torch.zeros(1)}, outputs=2)
    with pytest.raises(RunError, match="does not fit"):
        network_from_state(tiny(), result.state, outputs=3)


def test_last_trains_the_last_blocks_and_equals_a_full_pass_through_the_frozen_ones() -> None:
    result = run("last", last_blocks=2)
    changed = {name.removeprefix("encoder.") for name in result.state if name.startswith("encoder.")}
    expected = {f"{part}.{kind}" for part in ("blocks.1", "blocks.2", "norm", "last") for kind in ("weight", "bias")}
    assert changed == expected
    scores = predict_scores(result.network, tiny().preprocess, examples(24, seed=1).inputs)
    np.testing.assert_allclose(scores, result.validation_scores, atol=1e-6)
    for name, value in tiny().encoder.state_dict().items():
        assert torch.equal(value, result.network.encoder.state_dict()[name]) == (name not in expected), name


def test_the_frozen_part_is_run_once() -> None:
    rows_seen = []

    class Counting(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            rows_seen.append(len(input))
            return super().forward(input)

    loaded = tiny()
    loaded.encoder.blocks[0] = Counting(16, 16)
    run("last", loaded=loaded, last_blocks=2, total_epochs=3)
    assert sum(rows_seen) == 48 + 3 * 24  # training rows once, validation rows in every epoch


def test_regression_learns_in_the_target_s_units() -> None:
    result = finetune(
        tiny(), examples(96, kind="regression"), examples(48, kind="regression", seed=1), outputs=1,
        kind="regression", metric="r2", learning_rate=2e-2, total_epochs=20, probe=False, early_stopping=False,
    )  # fmt: skip
    assert result.validation_metric > 0.5
    assert 60 < result.validation_scores.mean() < 140


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_head_from_a_probe_scores_as_the_probe_before_training(kind: str) -> None:
    outputs = 2 if kind == "classification" else 1
    data, loaded = examples(kind=kind), tiny()
    features = predict_scores(loaded.encoder, loaded.preprocess, data.inputs)
    head = linear_head(features, data.targets, outputs=outputs, kind=kind, class_weight=None)  # type: ignore[arg-type]
    expected = features @ head.weight.T + head.bias
    for given in ({"head_init": head}, {"probe": True}):
        network = build(tiny(), data, outputs=outputs, kind=kind, mode="full", **given)  # type: ignore[arg-type]
        scores = predict_scores(network, loaded.preprocess, data.inputs)
        # Logits may be tamer by a factor; they rank the classes alike.
        factor = float(np.abs(scores).sum() / np.abs(expected).sum())
        np.testing.assert_allclose(scores, factor * expected, rtol=1e-3, atol=1e-3 * np.abs(scores).max())
        assert factor == pytest.approx(1.0, abs=1e-3) if kind == "regression" else factor <= 1.001
    with pytest.raises(DataError, match="weights are"):
        build(tiny(), data, outputs=outputs + 1, kind=kind, mode="full", head_init=head)


def test_balanced_classes_raise_the_rare_class() -> None:
    data = examples(80)
    rare = np.flatnonzero(data.targets == 1)[:5]
    kept = data.take(np.concatenate([np.flatnonzero(data.targets == 0), rare]))
    shares = {}
    for weight in ("none", "balanced"):
        result = finetune(
            tiny(), kept, None, outputs=2, kind="classification", metric="accuracy", probe=False,
            class_weight=weight, learning_rate=1e-2, total_epochs=15,
        )  # fmt: skip
        assert result.validation_scores.shape == (0, 2)
        scores = predict_scores(result.network, tiny().preprocess, examples(200, seed=2).inputs)
        shares[weight] = (scores.argmax(axis=1) == 1).mean()
    assert shares["balanced"] > shares["none"]


def test_losses_by_hand() -> None:
    """Two rows with even scores lose ln 2 each; class 1 of 1, 1, 1, 0 has 3 rows: weights 4/(2*1) and 4/(2*3)."""
    weights = balanced_weights(np.array([1, 1, 1, 0]), 3)
    np.testing.assert_allclose(weights, [2.0, 2 / 3, 0.0], rtol=1e-6)
    head = Scaled(1, 1, mean=10.0, spread=4.0)
    even, targets = torch.zeros(2, 3)[:, :2], np.array([1, 0])
    plain = loss_of(even, targets, kind="classification", head=head)
    assert plain.item() == pytest.approx(np.log(2))
    weighted = loss_of(even, targets, kind="classification", head=head, class_weights=weights[:2])
    assert weighted.item() == pytest.approx(np.log(2) * (2 / 3 + 2) / 2)
    # Scores 14 and 10 against 10 and 18: 1 and 2 spreads off.
    squared = loss_of(torch.tensor([[14.0], [10.0]]), np.array([10.0, 18.0]), kind="regression", head=head)
    assert squared.item() == pytest.approx((1 + 4) / 2)


def test_rate_goes_up_over_a_tenth_and_down_as_a_cosine() -> None:
    factor = warm_up_cosine(100)
    assert [factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)


def test_vectors_are_not_decayed_under_either_optimizer() -> None:
    network = build(tiny(), examples(), outputs=2, kind="classification", mode="full", probe=False)
    trained = trainable(network, "full")
    for name, rate, decay in (("adamw", 1e-3, 0.1), ("lion", 2e-4, 0.5)):
        engine = make_optimizer(trained, name, learning_rate=1e-3, weight_decay=0.1, head_factor=10)
        for group in engine.param_groups:
            matrices = all(parameter.ndim > 1 for parameter in group["params"])
            assert group["weight_decay"] == pytest.approx(decay if matrices else 0.0)
        assert sorted({group["lr"] for group in engine.param_groups}) == pytest.approx([rate, 10 * rate])
        assert sum(len(group["params"]) for group in engine.param_groups) == len(trained)


def test_a_loss_that_is_not_finite_names_its_place() -> None:
    data = examples(kind="regression")
    data.targets[:] = 1e38 * np.sign(data.inputs[:, 0])
    with pytest.raises(RunError, match=r"The loss is (nan|inf) in epoch 1, batch \d of 3 \(learning rate .*, rows \d"):
        finetune(tiny(), data, None, outputs=1, kind="regression", metric="r2", learning_rate=1e30, probe=False)


def test_statistics_of_small_data_are_the_source_s() -> None:
    kept = run(loaded=tiny(norm=True))
    assert not any("running" in name for name in kept.state)
    moved = run(loaded=tiny(norm=True), freeze_statistics=False)
    assert moved.state["encoder.norm.num_batches_tracked"].item() % 3 == 0
    assert not torch.equal(moved.state["encoder.norm.running_mean"], torch.zeros(16))
    again = network_from_state(tiny(norm=True), moved.state, outputs=2)
    scores = predict_scores(again, tiny().preprocess, examples(24, seed=1).inputs)
    np.testing.assert_allclose(scores, moved.validation_scores, atol=1e-5)


def test_bfloat16_learns_as_float32_does() -> None:
    assert precision_of("cpu", "off") is None
    full, half = run(mixed_precision="off", total_epochs=10), run(mixed_precision="bf16", total_epochs=10)
    assert half.curve[-1]["train_loss"] == pytest.approx(full.curve[-1]["train_loss"], abs=0.1)
    assert {value.dtype for value in half.state.values()} == {torch.float32}


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "all"}, {"total_epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"optimizer": "sgd"},
        {"label_smoothing": 1.0}, {"weight_decay": -0.1}, {"augment": "flip"}, {"mixed_precision": "fp16"},
        {"mixed_precision": "int8"}, {"mode": "last", "last_blocks": 0}, {"mode": "lora", "lora_rank": 0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        run(**wrong)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError):
        finetune(tiny(), examples().take([]), None, outputs=2, kind="classification", metric="accuracy")


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_an_estimate_leaves_the_source_as_it_was(mode: str) -> None:
    loaded = tiny(norm=True)
    before = {name: value.clone() for name, value in loaded.encoder.state_dict().items()}
    seconds, memory_mb = estimate(
        loaded, examples(), outputs=2, kind="classification", mode=mode, batch_size=8, epochs=2
    )
    assert seconds > 0 < memory_mb
    after = loaded.encoder.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in loaded.encoder.parameters())


def test_minilm_learns_a_word_and_is_estimated() -> None:
    from ontarget.pool import load, resolve

    texts = [f"{'good' if row % 2 else 'bad'} thing number {row} {'of many ' * (row % 5)}" for row in range(24)]
    data = Examples(texts, np.arange(24) % 2, np.arange(24))
    source = resolve("zoo:minilm")
    shared: dict[str, Any] = {"outputs": 2, "kind": "classification"}
    train, held = data.take(np.arange(16)), data.take(np.arange(16, 24))
    result = finetune(load(source), train, held, metric="accuracy", total_epochs=2, learning_rate=1e-4, **shared)
    assert result.validation_metric == 1.0
    assert not any("word_embeddings" in name for name in result.state)
    again = network_from_state(load(source), result.state, outputs=2)
    scores = predict_scores(again, load(source).preprocess, held.inputs)
    np.testing.assert_allclose(scores, result.validation_scores, atol=1e-5)
    seconds, memory_mb = estimate(load(source), data, mode="full", batch_size=8, epochs=2, **shared)
    assert seconds > 0
    assert memory_mb > 100


def test_minilm_s_frozen_layers_replayed_equal_computed_ones() -> None:
    """The first step's loss on texts of different lengths: stored outputs are padded as the batch is."""
    from ontarget.adapt.tune.batches import Batches
    from ontarget.adapt.tune.frozen_part import FrozenPart
    from ontarget.adapt.tune.trainable import blocks_of
    from ontarget.pool import load, resolve

    loaded = load(resolve("zoo:minilm"))
    texts = ["word " * (1 + row % 7) for row in range(12)]
    batches = Batches(loaded.preprocess, Examples(texts, np.arange(12) % 2, np.arange(12)), batch_size=4)
    blocks = blocks_of(loaded.encoder)
    assert len(blocks) == 6
    lower = FrozenPart(loaded.encoder, blocks[:4], batches, "cpu")
    rows = np.array([0, 6, 3, 7])
    tensors = batches.tensors(rows)
    with torch.no_grad():
        expected = loaded.encoder(*tensors)
        blocks[0].register_forward_hook(lambda module, given, made: made + 1e6)  # must not matter
        with lower.replayed(rows):
            found = loaded.encoder(*tensors)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
