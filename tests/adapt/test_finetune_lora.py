"""Low-rank adapters: what they touch, that merging changes nothing, and that peft reads what is saved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.finetune import finetune
from ontarget.adapt.tune.lora import adapter_of, add_lora, lora_targets, merge_lora, remove_lora
from ontarget.adapt.tune.trainable import trainable
from ontarget.errors import SettingError
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Examples, Loaded


class Convolutional(torch.nn.Module):
    """Image (N, 3, 8, 8) -> (N, 4), with a grouped and a dense convolution and one called conv_head."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.grouped = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 6, 3, groups=6)
        self.conv_head, self.fc = torch.nn.Conv2d(6, 6, 1), torch.nn.Linear(6, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv_head(torch.relu(self.grouped(self.dense(pixels)))).mean((2, 3)))


def adapted() -> tuple[Convolutional, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    encoder = Convolutional().eval()
    network = add_lora(encoder, rank=2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return encoder, network, torch.randn(5, 3, 8, 8)


def test_layers_with_adapters() -> None:
    assert lora_targets(Convolutional()) == ["dense", "conv_head", "fc"]


def test_adapters_change_nothing_before_training() -> None:
    torch.manual_seed(0)
    encoder, pixels = Convolutional().eval(), torch.randn(5, 3, 8, 8)
    before = encoder(pixels)
    assert torch.equal(add_lora(encoder)(pixels), before)


def test_merged_equals_unmerged() -> None:
    _, network, pixels = adapted()
    before = network(pixels)
    changed = merge_lora(network)
    assert sorted(changed) == ["conv_head.weight", "dense.weight", "fc.weight"]
    torch.testing.assert_close(network(pixels), before, rtol=1e-5, atol=1e-5)
    assert set(network.state_dict()) == set(Convolutional().state_dict())


def test_removed_adapters_leave_the_encoder_as_it_was() -> None:
    torch.manual_seed(0)
    expected = Convolutional().state_dict()
    _, network, pixels = adapted()
    changed = network(pixels)
    remove_lora(network)
    assert not torch.allclose(network(pixels), changed)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_only_adapters_and_head_train_even_where_a_layer_is_called_head() -> None:
    network = Assembled(add_lora(Convolutional(), rank=2), torch.nn.Linear(4, 2))
    names = set(trainable(network, "lora"))
    assert {name for name in names if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert len(names) == 2 + 3 * 2
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == names


def test_training_moves_only_the_adapted_layers() -> None:
    torch.manual_seed(0)
    encoder = Convolutional().eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    settings = {"size": 8, "crop": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3, "channels": 3}
    images = list(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
    data = Examples(images, np.arange(16) % 2, np.arange(16))
    result = finetune(
        Loaded("mine", Preprocess("image", settings), encoder, 4), data, None, outputs=2, kind="classification",
        metric="accuracy", mode="lora", lora_targets=["fc"], lora_rank=2, lora_dropout=0.1, learning_rate=1e-2,
        total_epochs=2, augment="flip",
    )  # fmt: skip
    changed = {
        name for name, value in result.network.encoder.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"fc.weight"}
    assert {name for name in result.state if name.startswith("encoder")} == {"encoder.fc.weight"}
    assert result.adapter is not None
    assert len(result.adapter.tensors) == 2


def test_peft_reads_the_saved_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    encoder, network, pixels = adapted()
    expected = network(pixels)
    adapter_of(network).save(tmp_path / "adapter")
    remove_lora(encoder)
    again = PeftModel.from_pretrained(encoder, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(pixels), expected)


def test_an_adapter_of_minilm_fits_the_transformers_model(tmp_path: Path) -> None:
    from peft import PeftModel

    from ontarget.pool import load, resolve

    loaded = load(resolve("zoo:minilm"))
    network = add_lora(loaded.encoder, rank=2, targets=["query", "value"])
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = [torch.from_numpy(value) for value in loaded.preprocess(["a text", "and another one"]).values()]
    expected = network.eval()(*tensors)
    adapter_of(network).save(tmp_path)
    fresh = load(resolve("zoo:minilm")).encoder
    plain = fresh(*tensors)
    fresh.model = PeftModel.from_pretrained(fresh.model, str(tmp_path)).eval()
    torch.testing.assert_close(fresh(*tensors), expected)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_what_cannot_have_an_adapter_is_refused() -> None:
    with pytest.raises(SettingError, match="no linear layer"):
        add_lora(torch.nn.Embedding(3, 2))
    with pytest.raises(SettingError, match=r"(?s)No linear layer is called 'fcc'.*did you mean 'fc'"):
        add_lora(Convolutional(), targets=["fcc"])
