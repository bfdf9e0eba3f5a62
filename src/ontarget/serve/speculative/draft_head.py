"""A draft head of one decoder layer over a frozen causal language model: EAGLE's, and the two parts of FSPAD.

EAGLE: Li, Wei, Zhang, Zhang, 2024, arXiv 2401.15077, official code SafeAILab/EAGLE; FSPAD: Gui, Xiao, Su, Chen, 2024,
arXiv 2408.15562, no official code. With f_i the model's last hidden state (what its LM head reads) at token x_i::

    s_i = FC [embed(x_{i+1}); f_i]                                           kinds "eagle", "partial"
    s_i = W_d (SiLU(W_g embed(x_{i+1})) * (W_u f_i)), inner width 2d         kinds "sampling", "fspad"
    z_i = decoder layer(s_0 ... s_i)
    fhat_{i+1} = z_i,   logits of x_{i+2} = LM head(z_i)                     kinds "eagle", "sampling"
    fhat_{i+1} = A z_i, logits of x_{i+2} = LM head(A z_i + B z_i), B from 0 kinds "partial", "fspad"

Both FSPAD parts are reconstructed from the abstract: what they are called is the paper's, how they are built is a
choice. Drafts may come from the tokens alone that are frequent where the model is used, as in FR-Spec (Zhao et al.,
2025, arXiv 2502.14856): on a CPU the LM head over all tokens costs more than the rest of the draft head. What is
checked, and so what is said, is not touched by that. Left out: heads of several layers, quantised heads. Checked in
tests/serve/speculative/test_draft_head.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.errors import DataError, SettingError, nearest

KINDS = ("eagle", "sampling", "partial", "fspad")
WEIGHTS, CONFIG = "draft_head.safetensors", "draft_head.json"
VOCABULARY = "draft_vocabulary"
FORMAT_VERSION = 1

KeysValues = tuple[Tensor, Tensor]


class DraftHead(nn.Module):
    """The trained part of a drafter; embedding and LM head are the target's own, shared and never saved.

    embedding, lm_head: modules of the target. heads, key_heads: of the attention. inner: width of the layer's MLP.
    fuse_width: width of the hidden layer between input and decoder layer; by default none for "eagle" and "partial"
    (one matrix, as EAGLE has it) and twice the hidden size for the others. Raises SettingError.
    """

    def __init__(
        self, kind: str, embedding: nn.Module, lm_head: nn.Module, *, hidden: int, heads: int, key_heads: int,
        inner: int, rope_theta: float = 10000.0, fuse_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in KINDS:
            raise SettingError(f"'{kind}' is no kind of draft head.", allowed=", ".join(KINDS), option="kind",
                               next_step=nearest(kind, KINDS))  # fmt: skip
        if hidden % heads or (hidden // heads) % 2 or heads % key_heads:
            raise SettingError(f"A width of {hidden} with {heads} heads and {key_heads} key heads.",
                               allowed="heads of one even width, a whole number of them for each key head")  # fmt: skip
        self.settings = {"kind": kind, "hidden": hidden, "heads": heads, "key_heads": key_heads, "inner": inner,
                         "rope_theta": rope_theta, "fuse_width": fuse_width}  # fmt: skip
        self.kind, self.heads, self.key_heads, self.width = kind, heads, key_heads, hidden // heads
        # In tuples: neither parameters of this module nor saved with it.
        self._shared: tuple[Any, Any] = (embedding, lm_head)
        self._drafted: tuple[Tensor, nn.Module] | None = None  # token ids, and their rows of the LM head
        if kind in ("sampling", "fspad"):
            middle = fuse_width or 2 * hidden
            self.gate, self.up = nn.Linear(hidden, middle, bias=False), nn.Linear(hidden, middle, bias=False)
            self.down = nn.Linear(middle, hidden, bias=False)
        elif fuse_width is None:
            self.fuse: nn.Module = nn.Linear(2 * hidden, hidden)
        else:
            self.fuse = nn.Sequential(nn.Linear(2 * hidden, fuse_width, bias=False), nn.SiLU(),
                                      nn.Linear(fuse_width, hidden, bias=False))  # fmt: skip
        narrow = key_heads * self.width
        self.query, self.key = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, narrow, bias=False)
        self.value, self.output = nn.Linear(hidden, narrow, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)  # before the MLP; EAGLE has none before its first attention
        self.mlp_gate, self.mlp_up = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.mlp_down = nn.Linear(inner, hidden, bias=False)
        if kind in ("partial", "fspad"):
            self.feature, self.extra = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
            nn.init.eye_(self.feature.weight)  # so that the training starts as EAGLE's (choice)
            nn.init.zeros_(self.extra.weight)
        powers = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        self.register_buffer("frequencies", rope_theta**-powers, persistent=False)

    def forward(
        self, features: Tensor, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, Tensor, KeysValues]:  # fmt: skip
        """fhat (B, T, d), what the LM head reads (B, T, d), and keys and values of past and these inputs (B, h, S, w).

        features: f_i (B, T, d). tokens: x_{i+1} (B, T) int. positions: i, (T,) int; behind the past by default. mask:
        bool (T, S), True where input t sees input s of past and these; causal by default.
        """
        embedding = self._shared[0](tokens).to(self.norm.weight.dtype)
        features = features.to(embedding.dtype)
        if self.kind in ("sampling", "fspad"):
            given = self.down(F.silu(self.gate(embedding)) * self.up(features))
        else:
            given = self.fuse(torch.cat([embedding, features], -1))
        before = 0 if past is None else past[0].shape[2]
        count = given.shape[1]
        if positions is None:
            positions = torch.arange(before, before + count, device=given.device)
        query = self._rotated(self._split(self.query(given), self.heads), positions)
        keys = self._rotated(self._split(self.key(given), self.key_heads), positions)
        values = self._split(self.value(given), self.key_heads)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        if mask is None and before:
            mask = torch.ones(count, before + count, dtype=torch.bool, device=given.device).tril(before)
        each = self.heads // self.key_heads
        attended = F.scaled_dot_product_attention(
            query, keys.repeat_interleave(each, 1), values.repeat_interleave(each, 1), attn_mask=mask,
            is_causal=mask is None,
        )  # fmt: skip
        state = given + self.output(attended.transpose(1, 2).flatten(2))
        normed = self.norm(state)
        state = state + self.mlp_down(F.silu(self.mlp_gate(normed)) * self.mlp_up(normed))
        if self.kind in ("partial", "fspad"):
            feature = self.feature(state)
            return feature, feature + self.extra(state), (keys, values)
        return state, state, (keys, values)

    def logits(self, read: Tensor) -> Tensor:
        """Scores of the next token by the target's LM head, float32 (..., V)."""
        head: Any = self._shared[1]
        found: Tensor = head(read.to(self._shared[0].weight.dtype)).float()
        return found

    def restrict(self, tokens: Sequence[int] | None) -> None:
        """Draft from ``tokens`` alone from now on, different ids of the target; None: from all of them."""
        if tokens is None:
            self._drafted = None
            return
        head: Any = self._shared[1]
        ids = torch.tensor(list(tokens), dtype=torch.long, device=head.weight.device)
        rows = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, device="meta")
        rows.weight = nn.Parameter(head.weight[ids].detach(), requires_grad=False)
        if head.bias is not None:
            rows.bias = nn.Parameter(head.bias[ids].detach(), requires_grad=False)
        self._drafted = (ids, nn.Sequential(rows))

    @property
    def vocabulary(self) -> int:
        """V, tokens of the target."""
        return int(self._shared[0].weight.shape[0])

    @property
    def drafted_tokens(self) -> Tensor | None:
        """int (K,), the tokens that drafts are made of; None: all."""
        return None if self._drafted is None else self._drafted[0]

    def draft_scores(self, read: Tensor) -> Tensor:
        """As `logits`, of the tokens that drafts are made of: (..., K) in the order of `drafted_tokens`."""
        if self._drafted is None:
            return self.logits(read)
        found: Tensor = self._drafted[1](read.to(self._shared[0].weight.dtype)).float()
        return found

    def pack(self) -> None:
        """Lay the layers out for drafting on a CPU (`pack_linears`): it cannot be trained or saved any more."""
        from ontarget.serve.packed_linear import pack_linears

        pack_linears(self)
        if self._drafted is not None:
            pack_linears(self._drafted[1])

    def _split(self, wide: Tensor, heads: int) -> Tensor:
        return wide.view(*wide.shape[:-1], heads, self.width).transpose(1, 2)

    def _rotated(self, each: Tensor, positions: Tensor) -> Tensor:
        frequencies: Any = self.frequencies
        angles = positions[:, None].float() * frequencies.float()
        cosine, sine = angles.cos().to(each.dtype), angles.sin().to(each.dtype)
        first, second = each.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def new_draft_head(model: Any, kind: str = "fspad", *, seed: int = 0, fuse_width: int | None = None) -> DraftHead:
    """An untrained head with the widths of the target's own layers. Raises DataError: a target that cannot have one."""
    from ontarget.serve.speculative.target import check_target

    check_target(model)
    config = model.config
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    if hidden % heads or (hidden // heads) % 2:
        heads = max(1, hidden // 64)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    rope = getattr(config, "rope_parameters", None) or {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DraftHead(
            kind, model.get_input_embeddings(), model.get_output_embeddings(), hidden=hidden, heads=heads,
            key_heads=key_heads if heads % key_heads == 0 else heads,
            inner=int(getattr(config, "intermediate_size", None) or 4 * hidden),
            rope_theta=float(rope.get("rope_theta", None) or getattr(config, "rope_theta", None) or 10000.0),
            fuse_width=fuse_width,
        )  # fmt: skip


def target_fingerprint(model: Any) -> dict[str, Any]:
    """What tells one target from another, in whatever number type it is loaded."""
    weight = model.get_input_embeddings().weight.detach()
    bits = weight.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return {"hidden_size": weight.shape[1], "vocabulary": weight.shape[0],
            "embedding": hashlib.sha256(bits.tobytes()).hexdigest()}  # fmt: skip


def save_draft_head(head: DraftHead, model: Any, folder: Path, **told: Any) -> None:
    """Write weights and config into ``folder``. told: what a reader should know, such as how it was trained."""
    from safetensors.torch import save

    from ontarget.plan.run_folder import to_json, write_atomic

    config = {"format": FORMAT_VERSION, "target": _name(model), "fingerprint": target_fingerprint(model),
              "settings": head.settings, **told}  # fmt: skip
    weights = {name: one.detach().cpu().contiguous() for name, one in head.state_dict().items()}
    if head.drafted_tokens is not None:
        weights[VOCABULARY] = head.drafted_tokens.to("cpu", torch.int32)
    write_atomic(folder / WEIGHTS, save(weights))
    write_atomic(folder / CONFIG, to_json(config))


def load_draft_head(folder: Path, model: Any) -> DraftHead:
    """A saved head on its target, in the target's type and on its device.

    Raises DataError: no head there, a damaged file, a head that was trained for another target.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings, fingerprint, target = config["settings"], config["fingerprint"], config["target"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder}' holds no draft head ({type(error).__name__}: {error}).",
                        next_step="train one with `ontarget draft`") from error  # fmt: skip
    if config.get("format", 99) > FORMAT_VERSION:
        raise DataError(f"The draft head in '{folder}' was made by a newer OnTarget.",
                        next_step="pip install --upgrade ontarget")  # fmt: skip
    own = target_fingerprint(model)
    if own != fingerprint:
        differs = next(name for name in own if own[name] != fingerprint.get(name))
        raise DataError(
            f"The draft head in '{folder}' was trained for '{target}', not for '{_name(model)}': another {differs}.",
            next_step=f"load '{target}', or train a head for this model",
        )
    try:
        head = DraftHead(embedding=model.get_input_embeddings(), lm_head=model.get_output_embeddings(), **settings)
        weights = load_file(folder / WEIGHTS)
        vocabulary = weights.pop(VOCABULARY, None)
        head.load_state_dict(weights)
        if vocabulary is not None:
            head.restrict(vocabulary.tolist())
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        raise DataError(f"{folder / WEIGHTS} cannot be read ({type(error).__name__}: {error}).",
                        next_step="copy the file again, or train the head again") from error  # fmt: skip
    weight = model.get_input_embeddings().weight
    return head.to(device=weight.device, dtype=weight.dtype).eval()


def _name(model: Any) -> str:
    return Path(str(getattr(model.config, "_name_or_path", "") or model.config.model_type)).name
