"""One pass of SmolLM2-135M over 1 to 64 tokens behind 100 others: plain, with packed linear layers, fused and packed.

    OMP_NUM_THREADS=1 python benchmarks/packed_linear.py

All sides in turns in one run, best of the repeats (what disturbs only adds). Scores of the next token are part of a
pass. "fused" is what a server runs on a CPU: fused decoder layers, packed. Target: neither is slower than the one
before it at any width, and 8 packed tokens cost at most 1.25 times one token.
"""

from __future__ import annotations

import argparse
import time

import torch

from ontarget.pool.language_models import DEFAULT, load_language_model
from ontarget.serve.fused_decoder import fuse_decoder
from ontarget.serve.packed_linear import pack_linears
from ontarget.serve.speculative.target import Target
from record import record

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=12)
    given = parser.parse_args()
    models = {way: load_language_model(given.model, dtype=given.dtype).model for way in ("plain", "packed", "fused")}
    layers = pack_linears(models["packed"])
    fused = fuse_decoder(models["fused"])
    pack_linears(models["fused"])
    targets = {way: Target(model) for way, model in models.items()}
    for target in targets.values():
        target.read(range(100, 200))
    best = {way: {width: float("inf") for width in WIDTHS} for way in targets}
    for _ in range(given.repeats):
        for width in WIDTHS:
            for way, target in targets.items():
                start = time.perf_counter()
                target.logits(target.read(range(300, 300 + width))).argmax(-1)
                best[way][width] = min(best[way][width], 1e3 * (time.perf_counter() - start))
                target.keep(100, [])
    plain, packed, both = best["plain"], best["packed"], best["fused"]
    record(
        f"packed_linear-{given.dtype}",
        headline=f"8 tokens in one pass: {both[8]:.0f} ms fused and packed, {packed[8]:.0f} packed, {plain[8]:.0f} "
        f"plain; 1 token: {both[1]:.0f}, {packed[1]:.0f} and {plain[1]:.0f} ({given.model}, {given.dtype})",
        passed=all(both[width] <= 1.02 * packed[width] and packed[width] <= 1.02 * plain[width] for width in WIDTHS)
        and packed[8] <= 1.25 * packed[1],
        milliseconds=best,
        packed_layers=layers,
        fused=fused,
        model=given.model,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
