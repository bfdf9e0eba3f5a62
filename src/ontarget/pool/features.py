"""Features of inputs by an encoder: in batches of like length, in evaluation mode, cached by content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ontarget.pool.cache import cached_array, key_of
from ontarget.pool.fold_batch_norm import fold_batch_norm
from ontarget.pool.source import Source
from ontarget.runtime.preprocess import InputError
from ontarget.values import Array, Context, Loaded

BATCH_ROWS = 32  # (choice)
FOLD_CHECK_ROWS = 2  # through the network with and without BatchNorm (choice)


def extract(
    loaded: Loaded,
    inputs: Sequence[Any] | Array,
    *,
    batch_size: int = BATCH_ROWS,
    context: Context = Context(),
) -> Array:
    """(N, dim) float32 features, rows in the order of ``inputs``.

    Texts are encoded shortest first, so that little padding is computed; image networks run with their BatchNorms
    folded. Raises InputError naming the row.
    """
    encoder = loaded.encoder.to(context.device).eval()  # back on the CPU at the end, where others expect it
    order = np.arange(len(inputs))
    if loaded.preprocess.kind == "tokens":
        order = np.argsort([_length(text) for text in inputs], kind="stable")
    features = np.empty((len(inputs), loaded.dim), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            rows = order[start : start + batch_size]
            batch = inputs[rows] if isinstance(inputs, np.ndarray) else [inputs[int(row)] for row in rows]
            try:
                prepared = loaded.preprocess(batch)
            except InputError as error:
                raise error.at(rows) from error
            tensors = [torch.from_numpy(value).to(context.device) for value in prepared.values()]
            if start == 0:
                encoder = fold_batch_norm(encoder, tuple(tensor[:FOLD_CHECK_ROWS] for tensor in tensors))
            features[rows] = encoder(*tensors).float().cpu().numpy()
            if context.progress:
                context.progress(min(start + batch_size, len(inputs)), len(inputs), f"features of {loaded.locator}")
    loaded.encoder.cpu()
    return features


def cached_features(
    source: Source, loaded: Loaded, inputs: Sequence[Any] | Array, *, context: Context = Context()
) -> tuple[Array, float, bool]:
    """Features as a memory map, the seconds that they took now, and whether they were in the cache.

    The key holds the weights, the preprocessing and the inputs by content: the same rows under another file name
    are found, one changed character is not.
    """
    from ontarget.data.fingerprint import fingerprint

    key = key_of(
        "features-2",
        weights_digest(loaded),
        loaded.preprocess.fingerprint,
        fingerprint(inputs, modality=source.modality),
    )
    start = time.monotonic()
    features, was_cached = cached_array(key, lambda: extract(loaded, inputs, context=context))
    return features, 0.0 if was_cached else time.monotonic() - start, was_cached


def weights_digest(loaded: Loaded) -> str:
    """Hex digest of an encoder's structure and weights."""
    digest = hashlib.sha256(repr(loaded.encoder).encode())
    for name, value in loaded.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return digest.hexdigest()


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else sum(len(part) for part in text)
