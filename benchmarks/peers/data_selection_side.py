"""zip-fit and data-selection on files made by benchmarks/data_selection.py; prints one JSON line.

PEER/bin/python benchmarks/peers/data_selection_side.py zipfit POOL.jsonl TARGET.jsonl OUT.json
PEER/bin/python benchmarks/peers/data_selection_side.py dsir POOL.jsonl TARGET.jsonl OUT.json
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path


def cpu_s() -> float:
    """User and system seconds of this process and of its finished children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def zipfit(pool: str, target: str) -> dict:
    from zip_fit import ZIPFIT

    sources, targets = ([json.loads(line)["text"] for line in open(path)] for path in (pool, target))
    engine = ZIPFIT(None, None, k=len(sources), compression_algorithm="gzip", compress_level=6)
    before, start = cpu_s(), time.perf_counter()
    ranked = engine.rank_sequences_by_alignment(sources, targets)
    spent = {"cpu_s": cpu_s() - before, "wall_s": time.perf_counter() - start}
    score = dict(ranked)
    return {**spent, "scores": [float(score[text]) for text in sources]}


def dsir(pool: str, target: str) -> dict:
    import numpy as np

    from data_selection import HashedNgramDSIR

    with tempfile.TemporaryDirectory() as cache:
        engine = HashedNgramDSIR([pool], [target], cache_dir=cache, num_proc=1)
        before, start = cpu_s(), time.perf_counter()
        engine.fit_importance_estimator(num_tokens_to_fit="all")
        engine.compute_importance_weights()
        spent = {"cpu_s": cpu_s() - before, "wall_s": time.perf_counter() - start}
        weights = np.load(Path(cache) / "log_importance_weights" / "0.npy")
    return {**spent, "weights": weights.tolist()}


if __name__ == "__main__":
    which, pool, target, out = sys.argv[1:]
    found = {"zipfit": zipfit, "dsir": dsir}[which](pool, target)
    Path(out).write_text(json.dumps(found))
