"""Few-label contrastive tuning on a tiny transformer that runs in milliseconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from ontarget.adapt.tune import contrastive as module
from ontarget.adapt.tune.contrastive import (
    choose_prototypes,
    contrastive,
    network_from_state,
    pair_loss,
    prototype_head,
)
from ontarget.errors import DataError, SettingError
from ontarget.pool.text_encoders import MeanPooled
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Context, Examples, Loaded

WORDS = ["[PAD]", "[UNK]", *"abcdefghij", "cats", "dogs"]


def source(seed: int = 0) -> Loaded:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    preprocess = Preprocess("tokens", {"max_length": 32, "pad_id": 0}, {"tokenizer.json": tokenizer.to_str().encode()})
    encoder = MeanPooled(BertModel(config, add_pooling_layer=False), normalise=True).eval()
    return Loaded("file:tiny", preprocess, encoder, 16)


def texts(rows: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % 2
    made = [" ".join(rng.choice(list("abcde" if t == 0 else "defgh"), int(rng.integers(2, 9)))) for t in targets]
    return Examples(made, targets, np.arange(rows))


def scores(network: torch.nn.Module, loaded: Loaded, rows: Examples) -> np.ndarray:
    with torch.inference_mode():
        return network(*(torch.from_numpy(value) for value in loaded.preprocess(rows.inputs).values())).numpy()


def test_pair_loss_by_hand() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    # cosines: 0 between the first two (one class), 0.6 and 0.8 to the third (the other class)
    expected = (0 - 1) ** 2 / 2 + (0.6**2 + 0.8**2) / 2 / 2
    assert pair_loss(features, torch.tensor([0, 0, 1])).item() == pytest.approx(expected)
    assert pair_loss(features[:1], torch.tensor([0])).item() == 0.0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_stored_layers_give_the_same_training(layers: int) -> None:
    """Against plain full passes: same loss, same tuned weights."""
    train = texts(12)
    ours = contrastive(source(), train, outputs=2, steps=3, learning_rate=1e-2, trainable_layers=layers)
    loaded = source()
    tuned = [p for layer in list(loaded.encoder.model.encoder.layer)[3 - layers :] for p in layer.parameters()]
    optimizer = torch.optim.AdamW(tuned, lr=1e-2, weight_decay=0.01)
    tensors = [torch.from_numpy(value) for value in loaded.preprocess(train.inputs).values()]
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        loss = pair_loss(loaded.encoder(*tensors), torch.from_numpy(train.targets))
        assert ours.curve[step]["train_loss"] == pytest.approx(loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, other in zip(ours.network.encoder.parameters(), loaded.encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
    assert all("forward" not in vars(layer) for layer in ours.network.encoder.model.encoder.layer)


def test_loss_falls_and_unseen_rows_gain() -> None:
    train, held = texts(32), texts(200, seed=1)
    loaded = source()
    frozen = contrastive(source(), train, outputs=2, steps=0)
    tuned = contrastive(loaded, train, outputs=2, steps=15, learning_rate=5e-3, trainable_layers=3)
    assert tuned.curve[-1]["train_loss"] < 0.5 * tuned.curve[0]["train_loss"]
    before = np.mean(scores(frozen.network, loaded, held).argmax(1) == held.targets)
    after = np.mean(scores(tuned.network, loaded, held).argmax(1) == held.targets)
    assert after >= before
    assert after > 0.9


def test_state_rebuilds_the_network_and_holds_no_more_than_needed() -> None:
    train, loaded = texts(10), source()
    ours = contrastive(loaded, train, outputs=2, steps=2, trainable_layers=1)
    state = load_tensors(ours.state_bytes)
    assert {name.split("model.encoder.")[-1].split(".attention")[0] for name in state if "attention" in name} == {
        "layer.2"
    }
    rebuilt = network_from_state(source(), state, outputs=2, steps=2, trainable_layers=1)
    np.testing.assert_array_equal(scores(rebuilt, loaded, train), scores(ours.network, loaded, train))
    with pytest.raises(DataError, match="3 classes"):
        network_from_state(source(), state, outputs=3)
    head_only = contrastive(source(), train, outputs=2, steps=0)
    assert set(load_tensors(head_only.state_bytes)) == {"head.weight", "head.bias"}


def test_same_seed_same_bits_and_average_zero_is_the_source() -> None:
    train, loaded = texts(10), source()
    one = contrastive(source(), train, outputs=2, steps=2, context=Context(seed=3))
    two = contrastive(source(), train, outputs=2, steps=2, context=Context(seed=3))
    assert one.state_bytes == two.state_bytes
    back = contrastive(source(), train, outputs=2, steps=2, average=0.0)
    untouched = contrastive(source(), train, outputs=2, steps=0)
    np.testing.assert_allclose(scores(back.network, loaded, train), scores(untouched.network, loaded, train), atol=1e-5)


def test_prototype_head_by_hand() -> None:
    features = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    weight, bias = prototype_head(features, np.array([0, 0, 1, 1]), outputs=2)
    direction = np.array([1.0, -1.0]) / np.sqrt(2)  # both class means are (2, 0) and (0, 2), the centre (1, 1)
    np.testing.assert_allclose(weight[1] / np.linalg.norm(weight[1]), -direction, atol=1e-6)
    logits = features @ weight.T + bias
    assert (logits.argmax(1) == [0, 0, 1, 1]).all()
    np.testing.assert_allclose(np.array([1.0, 1.0]) @ weight.T + bias, 0, atol=1e-6)


def test_names_take_part() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:2]
    targets = np.repeat([0, 1], 3)
    held = np.repeat([0, 1], 500)
    few = centres[targets] + 0.6 * rng.normal(size=(6, 8))
    many = centres[held] + 0.6 * rng.normal(size=(1000, 8))
    plain, named = (
        np.mean((many @ weight.T + bias).argmax(1) == held)
        for weight, bias in (
            prototype_head(few, targets, outputs=2),
            prototype_head(few, targets, outputs=2, names=centres, name_weight=1.0),
        )
    )
    assert named > plain
    assert choose_prototypes(few, targets, outputs=2, names=centres)[0] > 0
    assert choose_prototypes(few, targets, outputs=2, names=-centres)[0] == 0  # misleading names are left out
    train = texts(8)
    with_names = contrastive(source(), train, outputs=2, class_names=["cats", "dogs"], steps=1)
    without = contrastive(source(), train, outputs=2, class_names=["0", "1"], steps=1)
    assert with_names.network.head.weight.shape == without.network.head.weight.shape
    assert module._name_texts(["0", "1"], 2) == []  # nothing to be learnt from numbers
    assert module._name_texts(["big_cats", "dogs"], 2)[0] == "big cats"


def test_encoder_without_layers_gets_a_head() -> None:
    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(len(WORDS), 4)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    loaded = Loaded("file:bag", source().preprocess, Bag(), 4)
    ours = contrastive(loaded, texts(8), outputs=2)
    assert ours.curve == ()
    assert scores(ours.network, loaded, texts(8)).shape == (8, 2)


def test_bad_input() -> None:
    with pytest.raises(DataError, match="Class 2"):
        contrastive(source(), texts(6), outputs=3)
    with pytest.raises(SettingError, match="average"):
        contrastive(source(), texts(6), outputs=2, average=2.0)
    array = Loaded("control:array", Preprocess("array", {"dim": 2}), torch.nn.Identity(), 2)
    with pytest.raises(SettingError, match="no text encoder"):
        contrastive(array, texts(6), outputs=2)
