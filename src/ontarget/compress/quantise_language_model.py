"""GWQ on a causal language model: which layers, the calibration pass, and what the result will weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ontarget.errors import DataError
from ontarget.values import Array, Context

if TYPE_CHECKING:
    from ontarget.compress.packed_checkpoint import PackedModel

GROUP, SHARE = 64, 0.01


def quantise_language_model(
    model: Any, ids: Array, *, bits: int, group: int = GROUP, share: float = SHARE, window: int = 2048,
    context: Context = Context(),
) -> PackedModel:  # fmt: skip
    """All linear layers but the output layer in ``bits`` bits; ``model`` (changed) has the quantised weights after it.

    ids: int64 (T,), the calibration text, in windows of at most ``window`` tokens, all in one backward pass. Raises
    DataError: a model without linear layers (GPT-2 has none), gradients that are not finite.
    """
    import torch

    from ontarget.compress.gwq import gwq
    from ontarget.compress.packed_checkpoint import packed_model

    # Windows of one length, so that their mean loss is the loss.
    text = torch.from_numpy(ids)
    windows = -(-len(text) // window)
    text = text[: len(text) // windows * windows].view(windows, -1)
    try:
        matrices = gwq(model, lambda: model(text, labels=text).loss, bits=bits, group=group, share=share,
                       skip=_left_alone(model), context=context)  # fmt: skip
    except DataError as error:
        if "no linear layers" not in error.given:
            raise
        raise DataError(
            f"The model ({model.config.model_type}) has no linear layers but its head.", option="MODEL",
            allowed="an architecture of nn.Linear layers, such as Llama, Qwen, Mistral, Gemma, Phi",
        ) from error  # fmt: skip
    return packed_model(model, matrices, share=share)


def packed_mb(model: Any, bits: int, *, group: int = GROUP, share: float = SHARE) -> float:
    """What the weights' file will take but for its header, 2**20 bytes; nothing is quantised for that."""
    from ontarget.compress.gwq import linear_layers

    shapes = {id(layer.weight): layer.weight.shape for layer in linear_layers(model, _left_alone(model)).values()}
    # As `QuantizedMatrix.stored_bytes`: codes, scales and offsets, row starts, outliers.
    quantised = sum(
        rows * (-(-inputs * bits // 8) + 4 * -(-inputs // group) + 4) + 4 + 4 * int(share * rows * inputs)
        for rows, inputs in shapes.values()
    )
    others = sum(one.numel() for one in model.parameters() if id(one) not in shapes)
    return float(quantised + 2 * others) / 2**20


def _left_alone(model: Any) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    named = {name for name, layer in model.named_modules() if layer is head} if head is not None else set()
    return tuple({"lm_head", "embed_tokens", *named})
