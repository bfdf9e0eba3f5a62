"""A language model in few bits, judged on the user's own rows, and undone where it costs more than is allowed.

Quantised by GWQ (gwq.py) with one backward pass on rows for calibration, written, read again as it is served (packed
layers, bfloat16), and compared with the model it was made from on held-out rows: a paired interval of the loss, bytes
with everything counted, latency.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ontarget.compress.calibration_texts import Parts, part_texts, rise, unit_losses
from ontarget.errors import DataError, LimitError, SettingError
from ontarget.values import Context

TRIED = (2, 3, 4, 5, 6, 8)  # bits that "auto" goes through
LEAST_CALIBRATION, MOST_CALIBRATION = 32, 8192


@dataclass(frozen=True)
class Compression:
    """What was made and what it costs. Losses in nats a token on held-out rows; interval 95%, paired over ``unit``s.

    tried: of "auto", each bits' loss, perplexity, rise and bits a weight on the rows to choose by. latency: of the
    original in float32 and bfloat16 and of the packed model, milliseconds. undone: why nothing was written, or nothing.
    """

    model: str
    bits: int
    group: int
    share: float
    tolerance: float
    rows: dict[str, int]
    tokens: dict[str, int]
    unit: str
    units: int
    loss_before: float
    loss_after: float
    rise: float
    rise_low: float
    rise_high: float
    sizes: dict[str, float]
    quantised_share: float
    latency: dict[str, dict[str, float]]
    threads: int
    memory: dict[str, float]
    tried: list[dict[str, float]] = field(default_factory=list)
    undone: tuple[str, ...] = ()
    kept: bool = True

    @property
    def speed(self) -> str:
        """Whether the packed model is faster than the float32 one, in words with the ratios."""
        if not self.latency:
            return "latency not measured"
        packed, whole = self.latency["packed"], self.latency["float32"]
        token, prompt = (whole[name] / packed[name] for name in ("decode_ms", "prefill_ms"))
        ratios = f"a token {token:.2f}x, a prompt {prompt:.2f}x the speed of float32"
        if token <= 1.05:
            return f"smaller, not faster: {ratios}"
        # Both count: an answer begins with a prompt.
        return f"smaller, faster for tokens, slower for prompts: {ratios}" if prompt < 0.95 else (
            f"smaller and faster: {ratios}"
        )  # fmt: skip


def compress_language_model(
    locator: str,
    texts: Sequence[str],
    output: Path,
    *,
    bits: int | None = 3,
    group: int = 64,
    share: float = 0.01,
    tolerance: float = 0.1,
    calibration_tokens: int = 1024,
    test_tokens: int = 8192,
    keep: bool = False,
    latency: bool = True,
    seed: int = 0,
    context: Context = Context(),
) -> Compression:
    """Quantise the causal language model ``locator`` into the new folder ``output``.

    bits: 2 to 8; None tries `TRIED` and takes the fewest whose loss rises by ``tolerance`` at most on rows set apart
    for that. tolerance: nats a token; 0.1 is a perplexity 10.5% higher. No folder is written, unless ``keep``, where
    the loss rises by significantly more on held-out rows, or the weights' file is not smaller than in bfloat16.
    Raises SettingError; DataError: texts too short, a model that is quantised already or has no linear layers,
    gradients that are not finite; LimitError: not enough memory; RunError: ``output`` exists.
    """
    _check(bits, group, tolerance, calibration_tokens)
    try:
        return _compressed(locator, texts, output, bits, group, share, tolerance, calibration_tokens, test_tokens, keep,
                           latency, seed, context)  # fmt: skip
    except _UndoneError as undone:
        return undone.found


def _compressed(
    locator: str, texts: Sequence[str], output: Path, bits: int | None, group: int, share: float, tolerance: float,
    calibration_tokens: int, test_tokens: int, keep: bool, latency: bool, seed: int, context: Context,
) -> Compression:  # fmt: skip
    import torch

    from ontarget.compress.packed_checkpoint import fill_folder, load_to_answer, sizes
    from ontarget.plan.run_folder import new_folder
    from ontarget.pool.language_models import load_language_model, local_folder

    folder = local_folder(locator)
    check_not_quantised(folder)
    memory = memory_estimate(folder, calibration_tokens)
    with new_folder(output) as partial:
        source = load_language_model(locator)
        span = min(source.window, 2048)
        parts = part_texts(texts, source.tokenizer, calibration_tokens=calibration_tokens, test_tokens=test_tokens,
                           window=span, choose=bits is None, seed=seed)  # fmt: skip
        before, tokens = unit_losses(source.model, parts.held_out, "loss before", context)
        if not math.isfinite(float(before.sum())):
            raise DataError("The loss of the model on held-out rows is not finite.", next_step="check the model")
        tried: list[dict[str, float]] = []
        packed: Any = None
        if bits is None:
            whole = unit_losses(source.model, parts.choosing, "loss before", context)
            for each in TRIED:
                packed, model = _quantised(locator, parts, each, group, share, span, context)
                after, _ = unit_losses(model, parts.choosing, f"loss at {each} bits", context)
                tried.append(_tried(each, whole, after, packed))
                if tried[-1]["rise"] <= tolerance:
                    break
            bits = each
        else:
            packed, _ = _quantised(locator, parts, bits, group, share, span, context)
        fill_folder(packed, partial, copy_from=source.folder)
        after, _ = unit_losses(load_to_answer(partial), parts.held_out, "loss after", context)
        changed = rise(before, after, tokens)
        found = sizes(partial)
        undone = _reasons(changed, tolerance, found)
        times = {} if not latency or (undone and not keep) else _times(source, partial, parts.held_out[0][1])
        done = Compression(
            model=locator, bits=bits, group=group, share=share, tolerance=tolerance,
            rows={"given": parts.given, "duplicates dropped": parts.duplicates, "calibration": parts.calibration_rows,
                  "held out": parts.held_out_rows},
            tokens={"calibration": len(parts.calibration), "held out": int(tokens.sum())},
            unit=parts.unit, units=len(tokens), loss_before=float(before.sum() / tokens.sum()),
            loss_after=float(after.sum() / tokens.sum()), rise=changed[0], rise_low=changed[1], rise_high=changed[2],
            sizes=asdict(found), quantised_share=packed.quantised_weights / packed.weights, latency=times,
            threads=torch.get_num_threads(), memory=memory, tried=tried, undone=undone, kept=keep or not undone,
        )  # fmt: skip
        if not done.kept:
            raise _UndoneError(done)
        write_report(done, partial)
    return done


class _UndoneError(Exception):
    """Leaves the block of the temporary folder, which is removed by that."""

    def __init__(self, found: Compression) -> None:
        super().__init__(*found.undone)
        self.found = found


def _check(bits: int | None, group: int, tolerance: float, calibration_tokens: int) -> None:
    if bits is not None and not 2 <= bits <= 8:
        raise SettingError(f"bits is {bits}.", allowed="2 to 8, or auto", option="--bits")
    if group < 8:
        raise SettingError(f"group is {group}.", allowed="8 or more", option="--group")
    if not 0 <= tolerance < math.inf:
        raise SettingError(f"tolerance is {tolerance}.", allowed="0 or more, nats a token", option="--tolerance")
    if not LEAST_CALIBRATION <= calibration_tokens <= MOST_CALIBRATION:
        raise SettingError(f"calibration_tokens is {calibration_tokens}.", option="--calibration-tokens",
                           allowed=f"{LEAST_CALIBRATION} to {MOST_CALIBRATION:,}; 512 to 2,048 are enough")  # fmt: skip


def check_not_quantised(folder: Path) -> None:
    """Raises DataError for a model whose weights are in few bits already."""
    from ontarget.compress.packed_checkpoint import is_packed

    way = ""
    if is_packed(folder):
        way = "gwq"
    elif (folder / "config.json").is_file():
        try:
            told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"'{folder / 'config.json'}' is no JSON ({error}).") from error
        found = told.get("quantization_config") if isinstance(told, dict) else None
        way = str(found.get("quant_method", "unknown")) if isinstance(found, dict) else ""
    if not way and any((folder / name).exists() for name in ("quantize_config.json", "quant_config.json")):
        way = "gptq or awq"
    if way:
        raise DataError(f"The model in '{folder}' is quantised already ({way}).", option="MODEL",
                        allowed="weights in 16 or 32 bits", next_step="give the model it was made from")  # fmt: skip


def memory_estimate(folder: Path, tokens: int) -> dict[str, float]:
    """needed_mb, available_mb (2**20 bytes), by the config and the files' headers; before anything is loaded.

    In float32: the weights; the gradient of one layer, freed at once; a byte a weight each for outlier masks and codes;
    what the pass over ``tokens`` keeps. Raises LimitError where that is not there.
    """
    import psutil

    from ontarget.merge.checkpoint import Checkpoint

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return {}  # loading says what is wrong
    entries = Checkpoint(folder).entries
    weights = sum(entry.numel for entry in entries.values())
    largest = max(entry.numel for entry in entries.values())
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def size(*names: str) -> int:
        return next((int(told[name]) for name in names if isinstance(told.get(name), int)), 0)

    hidden, layers = size("hidden_size", "n_embd", "d_model"), size("num_hidden_layers", "n_layer")
    inner = size("intermediate_size", "n_inner") or 4 * hidden
    # A layer keeps about twelve states and four inner ones for the backward pass; logits exist three times (choices).
    kept = tokens * (layers * (12 * hidden + 4 * inner) + 3 * size("vocab_size")) * 4
    needed = (4 * weights + 4 * largest + 2 * weights + kept) / 2**20
    available = psutil.virtual_memory().available / 2**20
    if needed > available:
        raise LimitError(
            f"Calibration needs about {needed:,.0f} MiB of memory, and {available:,.0f} MiB are free.",
            option="--calibration-tokens", next_step="close other programs, use fewer tokens or a smaller model",
        )  # fmt: skip
    return {"needed_mb": round(needed, 1), "available_mb": round(available, 1)}


def _quantised(
    locator: str, parts: Parts, bits: int, group: int, share: float, span: int, context: Context
) -> tuple[Any, Any]:
    """A packed model, and the model that it was taken from, with quantised weights; loaded anew."""
    from ontarget.compress.quantise_language_model import quantise_language_model
    from ontarget.pool.language_models import load_language_model

    model = load_language_model(locator).model
    return quantise_language_model(model, parts.calibration, bits=bits, group=group, share=share, window=span,
                                   context=context), model  # fmt: skip


def _tried(bits: int, whole: Any, after: Any, packed: Any) -> dict[str, float]:
    from ontarget.compress.gwq import average_bits

    before, tokens = whole
    loss = float(after.sum() / tokens.sum())
    changed = rise(before, after, tokens)
    return {"bits": bits, "matrix_bits": average_bits(packed.matrices), "loss": loss, "perplexity": perplexity(loss),
            "perplexity_before": perplexity(float(before.sum() / tokens.sum())), "rise": changed[0],
            "rise_low": changed[1], "rise_high": changed[2]}  # fmt: skip


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that is too large to write."""
    return math.exp(loss) if loss < 700 else math.inf


def _reasons(changed: tuple[float, float, float], tolerance: float, found: Any) -> tuple[str, ...]:
    reasons = []
    value, low, high = changed
    if not math.isfinite(value):
        reasons.append("the loss of the quantised model is not finite")
    elif low > tolerance:
        reasons.append(f"the loss on held-out rows rises by {value:.3f} nats a token ({low:.3f} to {high:.3f}), "
                       f"significantly more than the tolerance of {tolerance:g}")  # fmt: skip
    if found.weights_bytes >= found.bfloat16_bytes:
        reasons.append(f"its weights take {found.weights_bytes:,} bytes, in bfloat16 {found.bfloat16_bytes:,}")
    return tuple(reasons)


def _times(source: Any, folder: Path, piece: Any) -> dict[str, dict[str, float]]:
    """All as they are served; ``source`` is of no use for training after it."""
    import torch

    from ontarget.compress.language_latency import side_by_side
    from ontarget.compress.packed_checkpoint import load_to_answer
    from ontarget.pool.language_models import load_language_model
    from ontarget.serve.lay_out_to_answer import lay_out_to_answer

    models = {"float32": source.model, "packed": load_to_answer(folder),
              "bfloat16": load_language_model(source.locator, dtype="bfloat16").model}  # fmt: skip
    for model in models.values():
        lay_out_to_answer(model)
    steps = max(1, min(8, source.window - len(piece) - 1))
    return side_by_side(models, torch.from_numpy(piece)[None][:, : source.window - steps - 1], steps=steps)


def write_report(found: Compression, folder: Path) -> None:
    """report.json."""
    from ontarget.plan.run_folder import to_json, write_atomic

    told = asdict(found) | {"perplexity_before": perplexity(found.loss_before),
                            "perplexity_after": perplexity(found.loss_after), "speed": found.speed}  # fmt: skip
    write_atomic(folder / "report.json", to_json(told))
