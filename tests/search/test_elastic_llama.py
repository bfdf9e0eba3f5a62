"""A Llama as a super-network: the source is reproduced, slices are reduced models, order, operators, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ontarget.errors import SettingError
from ontarget.latency_table import Setting
from ontarget.search.elastic_llama import ElasticLlama, elastic_llama, from_llama
from ontarget.search.instatune import fit_head, instatune, sort_by_importance
from ontarget.search.operators import build_operator, operator_input
from ontarget.search.slice_pretrained import slice_pretrained
from ontarget.search.space import draw
from ontarget.time_networks import make_call
from ontarget.values import Context


def llama(layers: int = 3, groups: int = 3, hidden: int = 32, **more: Any) -> Any:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=36, num_hidden_layers=layers, num_attention_heads=2 * groups,
        num_key_value_heads=groups, head_dim=6, intermediate_size=hidden, max_position_embeddings=32,
        rms_norm_eps=1e-5, **more,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    with torch.no_grad():  # norms of 1 would hide a norm at the wrong place
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def tokens(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[: rows // 2, 5:] = 0
    return ids, mask


def pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask[..., None].float()
    result: torch.Tensor = (hidden * weight).sum(1) / weight.sum(1)
    return result


def states(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    linear, network.head.linear = network.head.linear, torch.nn.Identity()
    result: torch.Tensor = network(ids, mask)
    network.head.linear = linear
    return result


@torch.inference_mode()
def test_the_source_is_reproduced() -> None:
    model = llama(rope_theta=5000.0)
    network, config = from_llama(model, outputs=2)
    ids, mask = tokens()
    torch.testing.assert_close(states(network, ids, mask), pooled(model, ids, mask), atol=1e-5, rtol=1e-5)
    assert config["base"] == 5000.0 and config["queries"] == 2
    assert torch.isfinite(network(ids, torch.zeros_like(mask))).all()  # an empty text


@torch.inference_mode()
def test_a_slice_is_the_reduced_model() -> None:
    """The same weights cut by hand into a transformers model of 2 layers, 2 groups, 16 neurons."""
    model, small = llama(), llama(layers=2, groups=2, hidden=16)
    d = 6
    small.embed_tokens.weight.copy_(model.embed_tokens.weight)
    small.norm.weight.copy_(model.norm.weight)
    for target, source in zip(small.layers, model.layers, strict=False):
        target.input_layernorm.weight.copy_(source.input_layernorm.weight)
        target.post_attention_layernorm.weight.copy_(source.post_attention_layernorm.weight)
        target.self_attn.q_proj.weight.copy_(source.self_attn.q_proj.weight[: 4 * d])
        target.self_attn.k_proj.weight.copy_(source.self_attn.k_proj.weight[: 2 * d])
        target.self_attn.v_proj.weight.copy_(source.self_attn.v_proj.weight[: 2 * d])
        target.self_attn.o_proj.weight.copy_(source.self_attn.o_proj.weight[:, : 4 * d])
        target.mlp.gate_proj.weight.copy_(source.mlp.gate_proj.weight[:16])
        target.mlp.up_proj.weight.copy_(source.mlp.up_proj.weight[:16])
        target.mlp.down_proj.weight.copy_(source.mlp.down_proj.weight[:, :16])
    network, config = from_llama(model, outputs=2)
    space = ElasticLlama(network, config, layers=(2, 3), heads=(2, 3), hidden=(16, 32), length=8).eval()
    ids, mask = tokens()
    code = space.canonical((0,) * len(space.slots))
    torch.testing.assert_close(states(space.slice(code), ids, mask), pooled(small, ids, mask), atol=1e-5, rtol=1e-5)


def space_of() -> ElasticLlama:
    network, config = from_llama(llama(), outputs=3)
    torch.manual_seed(2)
    torch.nn.init.normal_(network.head.linear.weight)
    return ElasticLlama(network, config, layers=(2, 3), heads=(1, 2, 3), hidden=(16, 32), length=8)


def test_slices_equal_the_super_network_and_padding_changes_nothing() -> None:
    space = space_of().eval()
    ids, mask = tokens()
    generator = np.random.default_rng(0)
    for _ in range(6):
        code = draw(space, generator)
        plain = space.slice(code)
        torch.testing.assert_close(plain(ids, mask), space(ids, mask, code), atol=1e-5, rtol=1e-5)
        assert space.config(code)["layers"] == [{"groups": g, "hidden": w} for g, w in space.sizes(code)]
    other = ids.clone()
    other[:3, 5:] = 7
    torch.testing.assert_close(space(ids, mask, space.largest), space(other, mask, space.largest))


def test_importance_reorders_and_leaves_the_full_network_as_it_is() -> None:
    space = space_of().eval()
    ids, mask = tokens(64)
    labels = torch.arange(64) % 3
    rows = torch.utils.data.TensorDataset(ids, mask, labels)
    fit_head(space, rows)
    before = space(ids, mask, space.largest).detach()
    weight: Any = space.network.attentions[0].joint.weight  # type: ignore[union-attr]
    first = weight.detach().clone()
    sort_by_importance(space, rows)
    torch.testing.assert_close(space(ids, mask, space.largest), before, atol=1e-4, rtol=1e-4)
    assert not torch.equal(first, weight)
    small = space.canonical((0, *(1,) * 3, *(0,) * 3))
    torch.testing.assert_close(space.slice(small)(ids, mask), space(ids, mask, small), atol=1e-5, rtol=1e-5)


def test_it_learns_through_instatune_and_words_stay() -> None:
    space = space_of()
    ids, mask = tokens(96)
    rows = torch.utils.data.TensorDataset(ids, mask, (ids[:, 0] < 25).long())
    words = space.network.embeddings.words.weight.detach().clone()
    result = instatune(space, rows, epochs=4, learning_rate=2e-3, context=Context(seed=1))
    assert result.history[-1]["full"] < result.history[0]["full"]
    assert torch.equal(words, space.network.embeddings.words.weight)


def test_operators_cover_the_network_and_run_in_onnx() -> None:
    space = space_of().eval()
    code = space.largest
    names = [operator.kind for operator in space.operators(code)]
    assert names == ["llama_embeddings", *["llama_attention", "llama_mlp"] * 3, "llama_head"]
    made = [build_operator(operator) for operator in space.operators(code)]
    parameters = sum(parameter.numel() for module in made for parameter in module.parameters())
    assert parameters == sum(parameter.numel() for parameter in space.slice(code).parameters())
    for operator, module in zip(space.operators(code)[:4], made, strict=False):
        make_call(module, operator_input(operator, 1), Setting())()
    # by hand: projections 36 * (12 + 12) * 3 of 8 tokens, twice 8 * 8 * 12 * 3, three products of 36 x 32; 3 layers
    layer = 8 * 36 * 3 * 6 * (2 + 2 + 2) + 2 * 64 * 3 * 12 + 3 * 8 * 36 * 32
    assert space.macs(code) == 3 * layer + 36 * 3


def test_onnx_gives_the_same_scores(tmp_path: Path) -> None:
    from ontarget.compress.export import trace
    from ontarget.runtime.session import make_session

    space = space_of().eval()
    network = space.slice(space.largest)
    ids, mask = tokens()
    trace(network, space.example(1), tmp_path / "network.onnx", input_names=["input_ids", "attention_mask"])
    session = make_session(tmp_path / "network.onnx", threads=1)
    with torch.inference_mode():
        expected = network(ids[:1], mask[:1]).numpy()
    found = session.run(None, {"input_ids": ids[:1].numpy(), "attention_mask": mask[:1].numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_with_calibrated_ranges_keeps_the_scores(tmp_path: Path) -> None:
    """The causal mask holds minus infinity: a range that includes it leaves nothing of the scores."""
    import onnxruntime
    from tokenizers import Tokenizer, models, pre_tokenizers

    from ontarget.compress.export import export_onnx
    from ontarget.compress.quantize import int8_static
    from ontarget.runtime.preprocess import Preprocess

    tokenizer = Tokenizer(models.WordLevel({f"w{at}": at for at in range(50)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    preprocess = Preprocess("tokens", {"max_length": 8, "pad_id": 0}, {"tokenizer.json": tokenizer.to_str().encode()})
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{at}" for at in generator.integers(1, 50, 3 + row % 5)) for row in range(24)]
    space = space_of().eval()
    path = export_onnx(space.slice(space.largest), preprocess, texts, tmp_path / "m.onnx")
    whole, small = (
        onnxruntime.InferenceSession(str(form)).run(None, preprocess(texts))[0]
        for form in (path, int8_static(path, tmp_path / "int8.onnx", preprocess, texts))
    )
    assert np.abs(whole - small).max() < 0.1 * np.abs(whole).max()


def test_other_models_are_named() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    assert isinstance(slice_pretrained(llama(), outputs=2, length=8), ElasticLlama)
    assert elastic_llama(llama(), outputs=2, length=8).heads == (2, 3)
    other = DistilBertModel(DistilBertConfig(vocab_size=10, dim=8, n_heads=2, n_layers=1, hidden_dim=8))
    with pytest.raises(SettingError, match="DistilBertModel cannot be sliced"):
        slice_pretrained(other, outputs=2, length=8)
    with pytest.raises(SettingError, match="biases"):
        from_llama(llama(attention_bias=True), outputs=2)
    with pytest.raises(SettingError, match="of type 'linear'"):
        from_llama(llama(rope_scaling={"rope_type": "linear", "factor": 2.0}), outputs=2)
