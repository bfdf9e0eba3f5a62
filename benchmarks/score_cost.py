"""What all scores with their intervals cost, against the features that they rank.

    python benchmarks/score_cost.py

Target: at most 5% of the CPU-seconds of MiniLM's features of 2,000 short real texts, for classes and for numbers.
Texts: first paragraphs of docstrings of installed libraries; the class is the library, the number the text's length.
The scores are measured at full cost: the neighbours are not shared with another run, nothing is cached.
"""

from __future__ import annotations

import ast
import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np

from ontarget.select.ranking import SCORES, rank_features
from ontarget.values import Array
from record import record

LIBRARIES = ("numpy", "scipy", "sklearn", "pandas", "torch", "transformers", "PIL", "networkx")
TEXTS = 2000
REPEATS = 5


def docstrings(library: str, count: int) -> list[str]:
    """First paragraphs, 20 characters or more, of the docstrings in a library, in the order of its files."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return []
    texts: dict[str, None] = {}
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(paragraph) >= 20:
                    texts[paragraph] = None
        if len(texts) >= count:
            break
    return list(texts)[:count]


def read_texts() -> tuple[list[str], Array]:
    by_library = [docstrings(library, TEXTS // len(LIBRARIES)) for library in LIBRARIES]
    texts = [text for group in by_library for text in group]
    return texts, np.repeat(np.arange(len(by_library)), [len(group) for group in by_library])


def main() -> None:
    import torch

    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract

    # One thread: the fewest CPU-seconds that the features can cost, so the strictest share, whatever else runs.
    torch.set_num_threads(1)
    texts, classes = read_texts()
    loaded = load(resolve("zoo:minilm"))
    extract(loaded, texts[:64])
    start = time.process_time()
    features = extract(loaded, texts)
    extraction_s = time.process_time() - start
    results = {}
    for kind, targets in (("classification", classes), ("regression", np.log([len(text) for text in texts]))):
        rank_features({"zoo:minilm": features}, targets, kind=kind)  # type: ignore[arg-type]
        cpu, by_score = [], []
        for _ in range(REPEATS):
            start = time.process_time()
            ranking = rank_features({"zoo:minilm": features}, targets, kind=kind)  # type: ignore[arg-type]
            cpu.append(time.process_time() - start)
            by_score.append({name: score.seconds for name, score in ranking.entries[0].scores.items()})
        share = statistics.median(cpu) / extraction_s
        results[kind] = {
            "scores_cpu_s": cpu,
            "share": share,
            "wall_s": {
                name: statistics.median(row[name] for row in by_score) for name in SCORES if name in by_score[0]
            },
        }
        print(
            kind,
            f"{statistics.median(cpu):.2f} CPU-s, {share:.1%} of {extraction_s:.1f} CPU-s",
            results[kind]["wall_s"],
        )
    record(
        "score_cost",
        headline=", ".join(f"{kind}: {result['share']:.1%} of the extraction" for kind, result in results.items()),
        rows=len(texts),
        dim=loaded.dim,
        mean_characters=float(np.mean([len(text) for text in texts])),
        extraction_cpu_s=extraction_s,
        **results,
    )


if __name__ == "__main__":
    main()
