"""MiniLM at half its measured latency: InstaTune against layer dropping and against a distilled smaller model.

Targets: at most 1 point below full fine-tuning (paired interval), and above both at equal compute. Data: ten sections
of Debian packages by their one-line descriptions, 2,000 training, 500 validation, 2,000 test texts, 32 tokens.
Latency: ONNX Runtime, one thread, batch 1, one row of 32 tokens. One budget of CPU-seconds for all: what InstaTune
spends, its teacher and the choice of its slice included.

- full: ordinary fine-tuning of all six layers, 3 epochs (the reference, not in the comparison of compute).
- instatune: starts from that network, which is its teacher too (gamma 1 throughout), heads and neurons sorted by
  importance, depths spread over the layers, sub-networks drawn within the limit; ConcurrentNAS evaluates 60 on
  validation texts and the latency table; of those within half the slowest that is within one standard error of the most
  accurate is tuned by itself, taught by the tuned network of full size. "as sliced" is the same without that last step.
  `ontarget search` does alike, but tunes several slices of the front and lets validation texts decide.
- as published, as sliced: from MiniLM's own weights, the first layers, sub-networks drawn from the whole space; the
  most accurate of the 60 within half, not tuned by itself.
- layer dropping: the first three layers of MiniLM (Sajjad et al.: upper layers drop best), fine-tuned for the budget.
- distillation: three layers, every second of the fine-tuned teacher (DistilBERT), learning from labels and teacher
  (alpha 0.3, as InstaTune) for what the budget leaves after the teacher.

Layer dropping and distillation are given the most layers that stay within 0.51 of the latency, as three of six measure
0.49 to 0.51. Validation texts choose the best epoch of each.

    OMP_NUM_THREADS=1 python benchmarks/instatune_half_latency.py --work WORK --seeds 3   # about 40 minutes a seed
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.judge.paired import compare
from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.search.concurrent_nas import concurrent_nas
from ontarget.search.elastic_bert import ElasticBert, from_bert
from ontarget.search.elastic_transformer import Depth
from ontarget.search.example_rows import ExampleRows
from ontarget.search.instatune import (
    divergence,
    fit_head,
    instatune,
    linear_schedule,
    make_optimizer,
    sort_by_importance,
)
from ontarget.search.rows import batches
from ontarget.search.space import Code, draw
from ontarget.search.text_slices import token_scores
from ontarget.search.tune_slice import tune_slice
from ontarget.time_networks import make_call, rounds_of_calls
from ontarget.values import Context, Examples
from record import record

TRAIN, VALIDATION, TEST, LENGTH, BATCH, RATE, EPOCHS = 2000, 500, 2000, 32, 32, 1e-4, 3
SLICE_EPOCHS = 12
SIZES: dict[str, Any] = {"layers": (3, 4, 5, 6), "heads": (6, 8, 10, 12), "hidden": (768, 1152, 1536)}
SETTING = Setting("onnxruntime", threads=1)
Made = tuple[Any, dict[str, Any], dict[str, Any]]  # network, its config, what is told of it
PEERS = 0.51  # of the full latency that the peers' layers may take: three of six layers take 0.49 to 0.50
SLACK = 0.96  # of half the latency that is aimed at, so that the measurement stays below it


def splits(seed: int) -> dict[str, Examples]:
    """Rows of training, validation and test."""
    from ontarget.data.samples import package_sections

    table = package_sections().drop_duplicates("text")
    largest = table["section"].value_counts().index[:10]
    table = table[table["section"].isin(largest)]
    texts, labels = table["text"].tolist(), np.unique(table["section"], return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(texts))
    ends = np.cumsum([TRAIN, VALIDATION, TEST])
    parts = np.split(order[: ends[-1]], ends[:-1])
    return {
        name: Examples([texts[int(at)] for at in rows], labels[rows], rows)
        for name, rows in zip(("train", "validation", "test"), parts, strict=True)
    }


def fresh(depth: Depth = "first") -> tuple[ElasticBert, Any]:
    """MiniLM with its weights as a super-network, and its preprocessing."""
    from ontarget.pool import load, resolve

    loaded = load(resolve("zoo:minilm"), max_length=LENGTH)
    encoder: Any = loaded.encoder
    network, config = from_bert(encoder.model, outputs=10)
    return ElasticBert(network, config, **SIZES, length=LENGTH, depth=depth), loaded.preprocess


def accuracy(network: Any, rows: ExampleRows) -> float:
    return float((token_scores(network, rows).argmax(1) == rows.targets.numpy()).mean())


def tuned(
    network: Any, train: ExampleRows, validation: ExampleRows, epochs: int, seed: int, teacher: Any = None
) -> dict[str, Any]:
    """Fine-tune a plain network, from labels or also from a teacher; the best epoch's weights are kept."""
    torch.manual_seed(seed)
    optimizer = make_optimizer(network, RATE, 10.0, 0.01)
    total = epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(total, 0.1))
    spent, best, kept, curve = 0.0, -1.0, {}, []
    for epoch in range(epochs):
        start = time.process_time()
        network.train()
        for ids, mask, labels in batches(train, BATCH, seed=seed, epoch=epoch):
            scores = network(ids, mask)
            loss = torch.nn.functional.cross_entropy(scores, labels)
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(ids, mask)
                loss = 0.3 * loss + 0.7 * divergence(scores, taught, 1.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        spent += time.process_time() - start
        curve.append(accuracy(network, validation))
        if curve[-1] > best:
            best, kept = curve[-1], {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    network.eval()
    return {"epochs": epochs, "training_cpu_s": spent, "validation": best, "curve": curve}


def seconds_per_epoch(network: Any, train: ExampleRows, teacher: Any = None) -> float:
    """CPU-seconds of an epoch, from one on a copy."""
    trial = copy.deepcopy(network).train()
    optimizer = make_optimizer(trial, RATE, 10.0, 0.01)
    start = time.process_time()
    for ids, mask, labels in batches(train, BATCH, seed=0, epoch=0):
        if teacher is not None:
            with torch.no_grad():
                teacher(ids, mask)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(trial(ids, mask), labels).backward()
        torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
        optimizer.step()
    return time.process_time() - start


def milliseconds(networks: list[Any], space: ElasticBert) -> list[float]:
    """Of one row, ONNX Runtime, one thread, in turn: the least of the rounds' medians, as other work only adds."""
    calls = [make_call(network.eval(), space.example(1), SETTING) for network in networks]
    return [float(ms) for ms in rounds_of_calls(calls, SETTING).min(0)]


def fewer_layers(space: ElasticBert, layers: list[int]) -> tuple[Any, dict[str, Any]]:
    """A plain network of those layers of the super-network's model, whole in heads and neurons; and its config."""
    full = space.slice(space.largest)
    config = space.config(space.largest)
    config = {**config, "layers": [config["layers"][at] for at in layers]}
    result = type(full)(config)
    state = {}
    for name, value in full.state_dict().items():
        part, *rest = name.split(".")
        if part in ("attentions", "feed_forwards"):
            if int(rest[0]) in layers:
                state[".".join([part, str(layers.index(int(rest[0]))), *rest[1:]])] = value
        else:
            state[name] = value
    result.load_state_dict(state)
    return result, config


def table_of(work: Path) -> LatencyTable:
    """Of all seeds' slices; made on a quiet machine, it may be kept for runs beside other work."""
    path = work / "latency_table.json"
    if not path.exists():
        profile(fresh()[0].eval(), SETTING, checked=12).save(path)
    return LatencyTable.load(path)


def of_seed(seed: int, work: Path, table: LatencyTable) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    parts = splits(seed)
    space, preprocess = fresh()
    train, validation, test = (ExampleRows(preprocess, parts[name]) for name in ("train", "validation", "test"))
    result: dict[str, Any] = {"seed": seed}
    networks: dict[str, Any] = {}

    def trained(name: str, make: Callable[[], Made]) -> Any:
        """The network that an earlier call has trained, or a new one: a stopped benchmark goes on."""
        told, weights = work / f"{name}.json", work / f"{name}.pt"
        if not told.exists():
            network, config, row = make()
            torch.save(network.state_dict(), weights)
            told.write_text(json.dumps({**row, "config": config}))
        result[name] = json.loads(told.read_text())
        networks[name] = type(space.slice(space.largest))(result[name]["config"])
        networks[name].load_state_dict(torch.load(weights, weights_only=True))
        print(
            seed,
            name,
            {key: value for key, value in result[name].items() if key not in ("config", "curve")},
            flush=True,
        )
        return networks[name].eval()

    def train_full() -> Made:
        network = space.slice(space.largest)
        return network, space.config(space.largest), tuned(network, train, validation, EPOCHS, seed)

    full = trained("full", train_full)

    def search(published: bool) -> Made:
        elastic, _ = fresh("first" if published else "spread")
        limit_ms = SLACK / 2 * table.predict(elastic.operators(elastic.largest))
        start = time.process_time()
        if published:
            fit_head(elastic, train)
        else:
            elastic.network.load_state_dict(full.state_dict())
        sort_by_importance(elastic, train)

        def within(generator: np.random.Generator) -> Code:
            while True:
                code = draw(elastic, generator)
                if table.predict(elastic.operators(code)) <= limit_ms:
                    return code

        weights, told = work / "tuned whole.pt", work / "tuned whole.json"
        if published or not told.exists():
            instatune(elastic, train, teacher=full, gamma=1.0, epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE,
                      drawn=None if published else within, context=Context(seed=seed))  # fmt: skip
            tuning_s = time.process_time() - start
            if not published:
                torch.save(elastic.slice(elastic.largest).state_dict(), weights)
                told.write_text(json.dumps(tuning_s))
        else:
            elastic.network.load_state_dict(torch.load(weights, weights_only=True))
            tuning_s = json.loads(told.read_text())
        elastic.eval()

        def evaluate(codes: Any) -> Any:
            return np.array([[1 - accuracy(elastic.slice(code), validation), table.predict(elastic.operators(code))]
                             for code in codes])  # fmt: skip

        start = time.process_time()
        front = concurrent_nas(elastic, evaluate, budget=60, population=20, context=Context(seed=seed))
        search_s = time.process_time() - start
        values = np.array(front.values)
        near = np.flatnonzero(values[:, 1] <= limit_ms)
        chosen = near[np.argmin(values[near, 0])]
        if not published:
            least = values[chosen, 0]
            equal = near[values[near, 0] <= least + np.sqrt(least * (1 - least) / VALIDATION)]
            chosen = equal[np.argmax(values[equal, 1])]
        code = front.codes[chosen]
        return elastic.slice(code).eval(), elastic.config(code), {
            "training_cpu_s": result["full"]["training_cpu_s"] + tuning_s + search_s, "tuning_cpu_s": tuning_s,
            "search_cpu_s": search_s, "code": code, "sizes": elastic.sizes(code),
            "validation": 1 - float(values[chosen, 0]),
            "predicted_share": float(values[chosen, 1] / limit_ms * SLACK / 2),
        }  # fmt: skip

    trained("as published, as sliced", lambda: search(True))
    slice_ = copy.deepcopy(trained("as sliced", lambda: search(False)))

    def tune() -> Made:
        teacher = copy.deepcopy(full)
        teacher.load_state_dict(torch.load(work / "tuned whole.pt", weights_only=True))
        start = time.process_time()
        tune_slice(slice_, train, teacher=teacher, epochs=SLICE_EPOCHS, batch_size=BATCH, learning_rate=RATE,
                   context=Context(seed=seed))  # fmt: skip
        spent = time.process_time() - start
        told = {"training_cpu_s": result["as sliced"]["training_cpu_s"] + spent, "slice_cpu_s": spent,
                "validation": accuracy(slice_, validation)}  # fmt: skip
        return slice_, result["as sliced"]["config"], told

    trained("instatune", tune)
    budget = result["instatune"]["training_cpu_s"]
    plain, _ = fresh()

    def most_layers() -> int:
        counts = range(1, 6)
        few = [fewer_layers(plain, list(range(count)))[0] for count in counts]
        times = milliseconds([*few, full], space)
        return max([count for count, ms in zip(counts, times, strict=False) if ms <= PEERS * times[-1]], default=1)

    def drop() -> Made:
        most = most_layers()
        network, config = fewer_layers(plain, list(range(most)))
        epochs = max(1, round(budget / seconds_per_epoch(network, train)))
        return network, config, {"layers": most, **tuned(network, train, validation, epochs, seed)}

    trained("layer dropping", drop)
    most = result["layer dropping"]["layers"]

    def distil() -> Made:
        plain.network.load_state_dict(full.state_dict())
        network, config = fewer_layers(plain, [round(at) for at in np.linspace(0, 5, most)] if most > 1 else [0])
        left = budget - result["full"]["training_cpu_s"]
        epochs = max(1, round(left / seconds_per_epoch(network, train, full)))
        taught = tuned(network, train, validation, epochs, seed, teacher=full)
        return network, config, {"layers": most, **taught}

    trained("distillation", distil)

    scores = {name: token_scores(network, test) for name, network in networks.items()}
    for name, ms in zip(networks, milliseconds(list(networks.values()), space), strict=True):
        hits = scores[name].argmax(1) == test.targets.numpy()
        result[name] |= {"test_accuracy": float(hits.mean()), "measured_ms": ms}
        if name != "instatune":
            paired = compare(name, "accuracy", scores["instatune"], scores[name], test.targets.numpy(), seed=seed)
            result[name]["instatune_minus_this"] = {
                "difference": paired.difference, "low": paired.difference_low, "high": paired.difference_high,
            }  # fmt: skip
    result["latency_share"] = result["instatune"]["measured_ms"] / result["full"]["measured_ms"]
    shown = ("test_accuracy", "measured_ms", "epochs", "training_cpu_s")
    for name in networks:
        print(seed, name, {key: result[name][key] for key in shown if key in result[name]}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="Folder in which trained networks are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    table = table_of(options.work)
    print("latency table: Kendall's tau", table.agreement.kendall, flush=True)
    rows = [of_seed(seed, options.work / f"seed{seed}", table) for seed in seeds]
    gaps = {
        name: [row["instatune"]["test_accuracy"] - row[name]["test_accuracy"] for row in rows]
        for name in ("full", "layer dropping", "distillation")
    }
    share = float(np.median([row["latency_share"] for row in rows]))
    record(
        "instatune_half_latency",
        headline=f"at {share:.2f} of the latency InstaTune is "
        + ", ".join(f"{100 * np.mean(values):+.1f} points against {name}" for name, values in gaps.items())
        + f" ({len(rows)} seeds)",
        targets={"full": -0.01, "layer dropping": 0.0, "distillation": 0.0}, differences=gaps, load_before=load,
        table_kendall=table.agreement.kendall,
        seeds=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
