"""Text selected by compression distance teaches a language model more about its target than text of the same lengths.

The spec's honest check: a pool of chunks of 300 to 1,500 bytes: Python of the standard library, changelogs,
licences, package descriptions in other languages, C headers; target: 100 Python chunks of other modules,
200 more are the test. 200 kB each by ZIP-FIT (gzip, lz4), DSIR, length-matched random, random; a 4-layer, 128-wide
byte-level transformer is trained on each for equal steps. Each seed has its own draw of pool, target and network.
The measure is minus the bits a byte on the test chunks. Translated descriptions stand for .po files (choice); pool,
targets and tests are of different modules, so that no text is in two of them.
"""

from __future__ import annotations

import gzip
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 22
NAME = "zipfit"
TITLE = "ZIP-FIT selects training text"
KIND = "direction"
STATEMENT = (
    "A byte-level transformer trained on 200 kB chosen by ZIP-FIT (gzip) needs fewer bits a byte on the target's text "
    "than one trained on random text of the same lengths, and at most 2% more than after DSIR."
)
DATA = "3,000 chunks of Python modules, changelogs, licences, C headers and Debian's translated descriptions"
BUDGET = "200 kB of text and the same training steps for every selection"
ARMS = ("zipfit gzip", "random by length", "dsir, 2% worse", "zipfit lz4", "dsir", "random")
PAIRS = (("zipfit gzip", "random by length"), ("zipfit gzip", "dsir, 2% worse"))
SEEDS = 3
MEASURE = "minus bits a byte"

POOL, PYTHON_SHARE, TARGETS, TESTS, BYTES = 3000, 0.15, 100, 200, 200_000
STEPS, BATCH, LENGTH, WIDTH, LAYERS = 300, 16, 256, 128, 4


@lru_cache(maxsize=1)
def corpora() -> dict[str, list[bytes]]:
    """Kind -> files, each a byte string."""
    from ontarget.data import samples

    library = Path(sysconfig.get_paths()["stdlib"])
    include = [Path(sysconfig.get_paths()["include"]), Path("/usr/include")]

    def read(paths: Any, limit: int) -> list[bytes]:
        found = []
        for path in sorted(paths)[:limit]:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if len(content) > 1500:
                found.append(content[:200_000])
        return found

    described: list[bytes] = []
    for language in ("fr", "it", "de"):
        texts = samples.package_sections(language, full=True)["text"].tolist()[:600]
        described.append("\n".join(texts).encode())
    documents = Path("/usr/share/doc")
    return {
        "python": read(library.glob("*.py"), 150),
        "licences": read(Path("/usr/share/common-licenses").glob("*"), 20) + read(documents.glob("*/copyright"), 150),
        "changelogs": read(documents.glob("*/changelog*.gz"), 150),
        "headers": [content for folder in include for content in read(folder.rglob("*.h"), 150)],
        "translations": described,
    }


def chunks(files: list[bytes], count: int, generator: np.random.Generator) -> list[str]:
    """Distinct pieces of 300 to 1,500 bytes, from the beginning of a line on."""
    found: dict[str, None] = {}
    while len(found) < count:
        content = files[int(generator.integers(len(files)))]
        start = int(generator.integers(len(content) - 1500)) if len(content) > 1500 else 0
        start = content.find(b"\n", start) + 1
        piece = content[start : start + int(generator.integers(300, 1500))].decode("utf-8", "ignore")
        if len(piece.encode()) >= 250:
            found[piece] = None
    return list(found)


def data(seed: int) -> tuple[list[str], Array, list[str], list[str]]:
    """(pool, which of it is Python, targets, tests); targets and tests are of modules that the pool has nothing of."""
    generator = np.random.default_rng(seed)
    found = corpora()
    modules = list(found["python"])
    order = generator.permutation(len(modules))
    third = len(modules) // 3
    parts = [[modules[at] for at in group] for group in (order[:third], order[third : 2 * third], order[2 * third :])]
    own = round(PYTHON_SHARE * POOL)
    pool = chunks(parts[0], own, generator)
    others = [kind for kind in found if kind != "python" and found[kind]]
    for kind in others:
        pool += chunks(found[kind], (POOL - own) // len(others), generator)
    mixed = generator.permutation(len(pool))
    return (
        [pool[at] for at in mixed],
        mixed < own,
        chunks(parts[1], TARGETS, generator),
        chunks(parts[2], TESTS, generator),
    )  # fmt: skip


def selections(pool: list[str], targets: list[str], seed: int) -> dict[str, list[int]]:
    """Arm -> positions, best first, up to BYTES of text."""
    from ontarget.select.dsir import dsir_weights, fit_dsir, resample
    from ontarget.select.length_guard import banded_ranks
    from ontarget.select.zipfit import zipfit

    generator = np.random.default_rng(7000 + seed)
    lengths = np.array([len(text.encode()) for text in pool])
    keys = {
        "zipfit gzip": banded_ranks(zipfit(pool, targets), lengths),
        "zipfit lz4": banded_ranks(zipfit(pool, targets, compressor="lz4"), lengths),
        "random by length": banded_ranks(generator.random(len(pool)), lengths),
        "random": generator.random(len(pool)),
    }
    orders = {arm: np.argsort(-key, kind="stable") for arm, key in keys.items()}
    orders["dsir"] = resample(dsir_weights(pool, fit_dsir(pool, targets)), len(pool), seed=seed)
    return {arm: [int(at) for at in order[np.cumsum(lengths[order]) <= BYTES]] for arm, order in orders.items()}


def bits_a_byte(training: list[str], tests: list[str], seed: int) -> float:
    """Of a byte-level transformer after STEPS steps on the training texts."""
    import torch

    torch.manual_seed(seed)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(257, WIDTH)
            self.place = torch.nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
            layer = torch.nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.layers = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
            self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 256)

        def forward(self, ids: Any) -> Any:
            mask = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            states = self.embed(ids) + self.place[: ids.shape[1]]
            return self.head(self.norm(self.layers(states, mask=mask, is_causal=True)))

    def stream(texts: list[str]) -> Any:
        """All texts behind one another; 256 begins a text and is never predicted."""
        ids: list[int] = []
        for text in texts:
            ids += [256, *text.encode()]
        return torch.tensor(ids)

    def loss_of(ids: Any) -> Any:
        logits, wanted = model(ids[:, :-1]), ids[:, 1:]
        kept = wanted < 256
        return torch.nn.functional.cross_entropy(logits[kept], wanted[kept])

    model, ids = Model(), stream(training)
    generator = np.random.default_rng(seed)
    engine = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        starts = generator.integers(0, len(ids) - LENGTH - 1, BATCH)
        loss = loss_of(torch.stack([ids[start : start + LENGTH + 1] for start in starts]))
        engine.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        engine.step()
        schedule.step()
    held = stream(tests)[: LENGTH * 200 + 1]
    with torch.inference_mode():
        parts = [float(loss_of(held[at : at + LENGTH + 1][None])) for at in range(0, len(held) - LENGTH, LENGTH)]
    return float(np.mean(parts) / np.log(2))


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    pool, is_python, targets, tests = data(seed)
    results: dict[str, dict[str, Any]] = {}
    for arm, chosen in selections(pool, targets, seed).items():
        texts = [pool[at] for at in chosen]
        results[arm] = {
            MEASURE: -bits_a_byte(texts, tests, seed), "python share": float(is_python[chosen].mean()),
            "documents": len(chosen), "mean bytes": float(np.mean([len(text.encode()) for text in texts])),
        }  # fmt: skip
    results["dsir, 2% worse"] = {MEASURE: 1.02 * results["dsir"][MEASURE]}
    return results
