"""Draft heads: the spec's formulas, a cache that changes nothing, saving, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from ontarget.errors import DataError, SettingError
from ontarget.serve.speculative.draft_head import (
    CONFIG,
    KINDS,
    WEIGHTS,
    DraftHead,
    load_draft_head,
    new_draft_head,
    save_draft_head,
)
from ontarget.serve.speculative.make_draft import frequent_tokens


def of(model, kind, **settings):
    return DraftHead(kind, model.get_input_embeddings(), model.get_output_embeddings(), hidden=32, heads=4,
                     key_heads=2, inner=48, **settings)  # fmt: skip


def test_decoder_layer_is_llamas(tiny_llama) -> None:
    """Behind the fused input, EAGLE's layer is a Llama decoder layer without its first norm."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    model = tiny_llama()
    head = of(model, "eagle")
    layer = LlamaDecoderLayer(model.config, 0)
    layer.input_layernorm = torch.nn.Identity()
    pairs = {"self_attn.q_proj": head.query, "self_attn.k_proj": head.key, "self_attn.v_proj": head.value,
             "self_attn.o_proj": head.output, "mlp.gate_proj": head.mlp_gate, "mlp.up_proj": head.mlp_up,
             "mlp.down_proj": head.mlp_down}  # fmt: skip
    for name, one in pairs.items():
        layer.get_submodule(name).load_state_dict(one.state_dict())
    features, tokens = torch.randn(2, 9, 32), torch.randint(0, 40, (2, 9))
    fused = F.linear(torch.cat([model.get_input_embeddings()(tokens), features], -1), head.fuse.weight, head.fuse.bias)
    places = LlamaRotaryEmbedding(model.config)(fused, torch.arange(9)[None])
    causal = torch.full((9, 9), -1e9).triu(1)[None, None]
    wanted = layer(fused, attention_mask=causal, position_embeddings=places)
    found, read, _ = head(features, tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert read is found


def test_sampling_and_partial_by_their_formulas(tiny_llama) -> None:
    model = tiny_llama()
    head = of(model, "fspad")
    features, tokens = torch.randn(1, 1, 32), torch.tensor([[3]])
    embedding = model.get_input_embeddings()(tokens)
    gate = embedding @ head.gate.weight.T
    given = (gate * gate.sigmoid() * (features @ head.up.weight.T)) @ head.down.weight.T
    # One input attends to itself alone: the attention gives its value.
    value = (given @ head.value.weight.T).view(2, 8).repeat_interleave(2, 0).reshape(1, 1, 32)
    state = given + value @ head.output.weight.T
    normed = state / (state.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    state = state + head.mlp_down(F.silu(head.mlp_gate(normed)) * head.mlp_up(normed))
    found, read, _ = head(features, tokens)
    torch.testing.assert_close(found, state, rtol=1e-4, atol=1e-5)  # A begins as 1, B as 0
    torch.testing.assert_close(read, found)
    torch.nn.init.normal_(head.extra.weight)
    torch.nn.init.normal_(head.feature.weight)
    found, read, _ = head(features, tokens)
    torch.testing.assert_close(found, state @ head.feature.weight.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read, found + state @ head.extra.weight.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.logits(read), model.lm_head(read))


@pytest.mark.parametrize("kind", KINDS)
def test_cache_changes_nothing(tiny_llama, kind) -> None:
    head = new_draft_head(tiny_llama(), kind)
    features, tokens = torch.randn(1, 12, 32), torch.randint(0, 40, (1, 12))
    whole, _, _ = head(features, tokens)
    past, parts = None, []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        part, _, past = head(features[:, start:stop], tokens[:, start:stop], past=past)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert past[0].shape == (1, 2, 12, 8)


def test_equal_parameters_by_fuse_width(tiny_llama) -> None:
    model = tiny_llama(hidden_size=48)
    sizes = {"eagle": 128, "sampling": 128, "partial": 96, "fspad": 96}
    counts = {kind: sum(p.numel() for p in new_draft_head(model, kind, fuse_width=width).parameters())
              for kind, width in sizes.items()}  # fmt: skip
    assert len(set(counts.values())) == 1
    plain = sum(p.numel() for p in new_draft_head(model, "eagle").parameters())
    assert plain == 2 * 48 * 48 + 48 + (48 * 48 * 2 + 48 * 24 * 2) + 48 + 3 * 48 * 48


def test_saved_head_is_the_same_and_holds_none_of_the_target(tiny_llama, tmp_path) -> None:
    from safetensors.torch import load_file

    model = tiny_llama()
    head = new_draft_head(model, "fspad", seed=3)
    save_draft_head(head, model, tmp_path, trained_on=7)
    stored = load_file(tmp_path / WEIGHTS)
    assert all(one.shape[0] != 40 for one in stored.values())
    assert json.loads((tmp_path / CONFIG).read_text())["trained_on"] == 7
    again = load_draft_head(tmp_path, model)
    features, tokens = torch.randn(1, 4, 32), torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(again(features, tokens)[1], head(features, tokens)[1])
    assert load_draft_head(tmp_path, model.bfloat16()).query.weight.dtype == torch.bfloat16


def test_drafted_tokens_are_saved_and_scored_as_by_the_lm_head(tiny_llama, tmp_path) -> None:
    model = tiny_llama()
    head = new_draft_head(model)
    head.restrict([2, 5, 30])
    save_draft_head(head, model, tmp_path)
    loaded = load_draft_head(tmp_path, model)
    assert loaded.drafted_tokens is not None and loaded.drafted_tokens.tolist() == [2, 5, 30]
    read = torch.randn(1, 4, 32)
    torch.testing.assert_close(loaded.draft_scores(read), loaded.logits(read)[..., [2, 5, 30]], rtol=1e-5, atol=1e-5)
    loaded.restrict(None)
    assert loaded.draft_scores(read).shape == (1, 4, 40)


def test_frequent_tokens() -> None:
    assert frequent_tokens([[5, 5, 9], [9, 9, 7]], 10, 4) == [0, 5, 7, 9]


def test_head_of_another_target_is_refused_by_name(tiny_llama, tmp_path) -> None:
    model, other, wide = tiny_llama(0), tiny_llama(1), tiny_llama(0, hidden_size=64)
    model.config._name_or_path, other.config._name_or_path = "/models/first", "hub/second"
    save_draft_head(new_draft_head(model, "eagle"), model, tmp_path)
    with pytest.raises(DataError, match="'first', not for 'second': another embedding"):
        load_draft_head(tmp_path, other)
    with pytest.raises(DataError, match="another hidden_size"):
        load_draft_head(tmp_path, wide)


def test_damaged_files_are_told(tiny_llama, tmp_path) -> None:
    model = tiny_llama()
    with pytest.raises(DataError, match="holds no draft head"):
        load_draft_head(tmp_path, model)
    save_draft_head(new_draft_head(model, "eagle"), model, tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        load_draft_head(tmp_path, model)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(DataError, match="holds no draft head"):
        load_draft_head(tmp_path, model)


def test_unknown_kind() -> None:
    with pytest.raises(SettingError, match="did you mean 'fspad'"):
        DraftHead("fspd", torch.nn.Embedding(4, 8), torch.nn.Linear(8, 4), hidden=8, heads=2, key_heads=2, inner=8)


def test_targets_that_cannot_be_checked_as_a_tree_are_refused(tiny_llama) -> None:
    from transformers import BertConfig, BertModel, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

    small = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    with pytest.raises(DataError, match=r"'bert'.*no causal"):
        new_draft_head(BertModel(BertConfig(**small, num_attention_heads=2)))
    sliding = MistralConfig(**small, num_attention_heads=2, num_key_value_heads=1, sliding_window=4)
    with pytest.raises(DataError, match=r"'mistral'.*Sliding"):
        new_draft_head(MistralForCausalLM(sliding))
    with pytest.raises(DataError, match="'mamba'"):
        new_draft_head(MambaForCausalLM(MambaConfig(**small)))


def test_other_families_are_taken() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    qwen = Qwen2Config(vocab_size=40, hidden_size=32, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2,
                       num_key_value_heads=1)  # fmt: skip
    gpt = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    for model in (Qwen2ForCausalLM(qwen), GPT2LMHeadModel(gpt)):
        head = new_draft_head(model.eval(), "fspad")
        assert head(torch.randn(1, 3, 32), torch.tensor([[1, 2, 3]]))[0].shape == (1, 3, 32)
