"""AutoGluon multimodal 1.6 on one split, in the environment that setup_autogluon.sh makes.

FOLDER/bin/python benchmarks/peers/autogluon_side.py --train train.csv --test test.csv --model PATH \
    --budget-s 600 --seed 0 --out r.json

The table's columns are label and text or image (a path). Everything is at its documented default except the
backbone (--model: MiniLM's folder, or the folder that image_checkpoint.py makes), the time limit and the seed; on a
machine without a GPU its 16-bit precision is turned off by AutoGluon itself. Latency is that of
``predictor.predict`` of a table of one row, as a user calls it, and with ``realtime=True`` beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from cost import Stages, write

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
WARM_UP, CALLS = 3, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--test", "--model", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a further hyperparameter")
    options = parser.parse_args()
    stages = Stages()

    import numpy as np
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    stages.mark("import")
    train = pd.read_csv(options.train, keep_default_na=False)
    test = pd.read_csv(options.test, keep_default_na=False)
    model = "timm_image" if "image" in train else "hf_text"
    hyperparameters: dict[str, object] = {f"model.{model}.checkpoint_name": str(options.model.resolve())}
    for assignment in options.set:
        name, value = assignment.split("=", 1)
        hyperparameters[name] = _value(value)
    stages.mark("data")
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=f"{folder}/model", verbosity=2)
        predictor.fit(train, time_limit=options.budget_s, seed=options.seed, hyperparameters=hyperparameters)
        stages.mark("fit")
        predicted = np.asarray(predictor.predict(test.drop(columns="label")))
        stages.mark("predict")
        accuracy = float((predicted == test["label"].to_numpy()).mean())
        inputs = test.drop(columns="label")
        latency_ms = {
            "default": _latency_ms(lambda row: predictor.predict(row), inputs),
            "realtime": _latency_ms(lambda row: predictor.predict(row, realtime=True), inputs),
        }
        chosen = predictor._learner._config  # what ran, for the record
        settings = {
            "models": list(chosen.model.names),
            "max_epochs": chosen.optim.max_epochs,
            "lr": chosen.optim.lr,
            "precision": str(chosen.env.precision),
        }
    write(
        options.out,
        ["autogluon.multimodal", "lightning", "transformers", "timm", "torch", "torchvision", "numpy"],
        peer="AutoGluon multimodal, defaults",
        seed=options.seed,
        budget_s=options.budget_s,
        hyperparameters=hyperparameters | {f"model.{model}.checkpoint_name": options.model.name},
        settings=settings,
        classes=int(train["label"].nunique()),
        train_rows=len(train),
        test_rows=len(test),
        accuracy=accuracy,
        single_row_latency_ms=latency_ms,
        cpu_s=stages.cpu_s,
        wall_s=stages.wall_s,
    )
    print(f"accuracy {accuracy:.4f}, single row {latency_ms['default']['p50']:.1f} ms -> {options.out}")


def _latency_ms(predict, inputs) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Median and 95th percentile over ``CALLS`` calls with one row each, after ``WARM_UP`` others."""
    times = []
    for call in range(WARM_UP + CALLS):
        row = inputs.iloc[[call % len(inputs)]]
        started = time.perf_counter()
        predict(row)
        times.append((time.perf_counter() - started) * 1000)
    times = sorted(times[WARM_UP:])
    return {"p50": round(times[len(times) // 2], 2), "p95": round(times[int(len(times) * 0.95)], 2)}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
