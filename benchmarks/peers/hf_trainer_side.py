"""The Hugging Face Trainer with its documented defaults on one split: the peer where AutoGluon cannot run.

FOLDER/bin/python benchmarks/peers/hf_trainer_side.py --train train.csv --test test.csv \
    --model PATH --seed 0 --out r.json

The table's columns are label and text or image (a path). --model: MiniLM's folder, or the folder that
image_checkpoint.py makes. Defaults of TrainingArguments: 3 epochs, batch 8, AdamW at 5e-5, linear decay. With
--budget-s, epochs are repeated until the time is spent (the schedule is then that of a very long training).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from cost import Stages, write

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
WARM_UP, CALLS = 3, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--test", "--model", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds; default: 3 epochs")
    options = parser.parse_args()
    stages = Stages()

    import numpy as np
    import pandas as pd
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    stages.mark("import")
    train = pd.read_csv(options.train, keep_default_na=False)
    test = pd.read_csv(options.test, keep_default_na=False)
    names = sorted(train["label"].unique())
    set_seed(options.seed)
    side = _image_side if "image" in train else _text_side
    network, encode, collate = side(options.model, len(names))
    column = "image" if "image" in train else "text"
    rows = [encode(value) | {"labels": names.index(label)} for value, label in zip(train[column], train["label"])]
    held_out = [encode(value) | {"labels": names.index(label)} for value, label in zip(test[column], test["label"])]
    stages.mark("load")
    deadline = time.monotonic() + options.budget_s if options.budget_s else None

    class Deadline(TrainerCallback):
        """Stops the training when the time is spent."""

        def on_step_end(self, args, state, control, **rest):  # type: ignore[no-untyped-def]
            if deadline is not None and time.monotonic() > deadline:
                control.should_training_stop = True
            return control

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **({"num_train_epochs": 1000} if options.budget_s else {}),
        )
        trainer = Trainer(network, arguments, train_dataset=rows, data_collator=collate, callbacks=[Deadline()])
        trainer.train()
        stages.mark("train")
        logits = trainer.predict(held_out).predictions
    stages.mark("predict")
    predicted = np.array([names[number] for number in logits.argmax(-1)])
    accuracy = float((predicted == test["label"].to_numpy()).mean())

    network.eval()
    times = []
    for call in range(WARM_UP + CALLS):
        value = test[column].iloc[call % len(test)]
        started = time.perf_counter()
        batch = collate([encode(value)])
        with torch.inference_mode():
            network(**batch)
        times.append((time.perf_counter() - started) * 1000)
    times = sorted(times[WARM_UP:])
    latency_ms = {"p50": round(times[CALLS // 2], 2), "p95": round(times[int(CALLS * 0.95)], 2)}
    write(
        options.out,
        ["transformers", "accelerate", "timm", "torch", "numpy"],
        peer="Hugging Face Trainer, defaults",
        seed=options.seed,
        budget_s=options.budget_s,
        classes=len(names),
        train_rows=len(train),
        test_rows=len(test),
        accuracy=accuracy,
        single_row_latency_ms=latency_ms,
        cpu_s=stages.cpu_s,
        wall_s=stages.wall_s,
    )
    print(f"accuracy {accuracy:.4f}, single row {latency_ms['p50']:.1f} ms -> {options.out}")


def _text_side(model: Path, classes: int):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=classes)
    return network, lambda text: dict(tokenizer(text, truncation=True)), DataCollatorWithPadding(tokenizer)


def _image_side(model: Path, classes: int):  # type: ignore[no-untyped-def]
    import json

    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform

    settings = json.loads((model / "config.json").read_text())

    class Classifier(torch.nn.Module):
        """timm's network with the output that the Trainer reads."""

        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model(
                settings["architecture"], checkpoint_path=str(model / "pytorch_model.bin"), num_classes=0
            )
            self.head = torch.nn.Linear(self.body.num_features, classes)

        def forward(self, pixels, labels=None):  # type: ignore[no-untyped-def]
            logits = self.head(self.body(pixels))
            if labels is None:
                return {"logits": logits}
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    transform = create_transform(
        tuple(settings["input_size"]),
        mean=settings["mean"],
        std=settings["std"],
        crop_pct=settings["crop_pct"],
        interpolation=settings["interpolation"],
    )

    def encode(path: str) -> dict[str, object]:
        return {"path": path}

    def collate(rows):  # type: ignore[no-untyped-def]
        batch = {"pixels": torch.stack([transform(Image.open(row["path"]).convert("RGB")) for row in rows])}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    return Classifier(), encode, collate


if __name__ == "__main__":
    main()
