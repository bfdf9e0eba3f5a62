"""SmolLM2-135M in few bits on this CPU: a token, a prompt, bytes and memory, against 32 and 16 bits.

    OMP_NUM_THREADS=1 python benchmarks/gwq_speed.py

Peers: the model as transformers runs it, in float32 and bfloat16, and both as OnTarget serves them, with fused layers
that are laid out once (`serve.fused_decoder`, `serve.packed_linear`). GWQ's models are served the same way: the output
layer, which keeps 16 bits, is laid out too; 8 bits are written out in bfloat16. All sides in turns in one run; a token
is the median over steps and rounds, after a prompt of 100 tokens; prompts are of 100 and 400 tokens. Memory is the most
that loading, laying out and answering adds in a process of its own, transformers itself included. Target: 4 bits are
smaller than bfloat16, and a token is no slower than in the fastest of the peers, or the headline says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.compress.language_latency import side_by_side
from ontarget.compress.packed_checkpoint import sizes, write_packed
from ontarget.compress.quantise_language_model import quantise_language_model
from ontarget.plan.language_speed import measure_memory, weights_mb
from ontarget.pool.language_models import DEFAULT, load_language_model
from ontarget.serve.lay_out_to_answer import lay_out_to_answer
from record import record

BITS = (3, 4, 8)
PROMPTS = (100, 400)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    # Speed does not depend on what the model was calibrated on.
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Any] = {}
        told: dict[str, dict[str, float]] = {}
        for dtype in ("float32", "bfloat16"):
            for way in (dtype, f"{dtype}, served"):
                source = load_language_model(options.model, dtype=dtype)
                models[way] = source.model
                told[way] = {"weights_mb": weights_mb(source.model)}
                if way != dtype:
                    told[way]["memory_mb"] = measure_memory(source.folder, dtype, text[:200])
                    lay_out_to_answer(source.model)
        for bits in BITS:
            source = load_language_model(options.model)
            ids = np.array(source.tokenizer(text).input_ids[:512], dtype=np.int64)
            path = Path(folder) / str(bits)
            write_packed(quantise_language_model(source.model, ids, bits=bits), path, copy_from=source.folder)
            packed = load_language_model(str(path), dtype=None).model
            lay_out_to_answer(packed)
            way = f"GWQ, {bits} bits"
            models[way] = packed
            told[way] = {"weights_mb": sizes(path).weights_bytes / 2**20,
                         "memory_mb": measure_memory(path, None, text[:200])}  # fmt: skip
        for length in PROMPTS:
            given = torch.from_numpy(np.array(source.tokenizer(text).input_ids[:length], dtype=np.int64))[None]
            found = side_by_side(models, given, steps=options.steps if length == PROMPTS[0] else 1,
                                 rounds=options.rounds)  # fmt: skip
            for way, times in found.items():
                told[way][f"prompt_{length}_ms"] = times["prefill_ms"]
                if length == PROMPTS[0]:
                    told[way]["token_ms"] = times["decode_ms"]
    peers = {way: row for way, row in told.items() if not way.startswith("GWQ")}
    fastest = min(peers, key=lambda way: peers[way]["token_ms"])
    four, half = told["GWQ, 4 bits"], told["bfloat16"]
    record(
        "gwq_speed",
        headline=f"4 bits: {four['weights_mb']:.0f} MiB ({half['weights_mb']:.0f} in bfloat16), a token "
        f"{four['token_ms']:.1f} ms, {peers[fastest]['token_ms']:.1f} in the fastest other form ({fastest}), "
        f"{told['float32']['token_ms']:.1f} in plain float32; a prompt of 100 tokens {four['prompt_100_ms']:.0f} ms, "
        f"{min(row['prompt_100_ms'] for row in peers.values()):.0f} in the fastest",
        passed=four["weights_mb"] < half["weights_mb"] and four["token_ms"] <= peers[fastest]["token_ms"],
        forms=told,
        model=options.model,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
