"""SetFit 1.2 with its documented defaults on one split, in the environment that setup_setfit.sh makes.

FOLDER/bin/python benchmarks/peers/setfit_side.py --train train.csv --test test.csv --model PATH --seed 0 --out r.json

Defaults: cosine-similarity loss on pairs (oversampling: every pair of rows once, positives repeated), batch 16, one
epoch, learning rate 2e-5, then scikit-learn's logistic regression. Only what does not bear on the result is set:
the seed, where files go, and no progress bar, checkpoints or reports (which spares SetFit their cost).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from cost import Stages, write

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--test", "--model", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stages = Stages()

    import numpy as np
    import pandas as pd
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    stages.mark("import")
    train = pd.read_csv(options.train, keep_default_na=False)
    test = pd.read_csv(options.test, keep_default_na=False)
    names = sorted(train["label"].unique())
    rows = Dataset.from_dict({"text": train["text"].tolist(), "label": [names.index(x) for x in train["label"]]})
    stages.mark("data")
    model = SetFitModel.from_pretrained(str(options.model))
    stages.mark("load")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=options.seed,
            show_progress_bar=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
    stages.mark("train")
    predicted = np.asarray(model.predict(test["text"].tolist(), show_progress_bar=False))
    stages.mark("predict")
    correct = np.array([names[int(number)] for number in predicted]) == test["label"].to_numpy()
    write(
        options.out,
        ["setfit", "sentence-transformers", "transformers", "torch", "scikit-learn", "numpy"],
        peer="SetFit, documented defaults",
        seed=options.seed,
        classes=len(names),
        train_rows=len(train),
        test_rows=len(test),
        accuracy=float(correct.mean()),
        cpu_s=stages.cpu_s,
        cpu_s_train=stages.cpu_s["train"],
        cpu_s_with_import_and_load=round(sum(stages.cpu_s[name] for name in ("import", "data", "load", "train")), 3),
        wall_s=stages.wall_s,
    )
    print(f"accuracy {correct.mean():.4f}, training {stages.cpu_s['train']:.1f} CPU-seconds -> {options.out}")


if __name__ == "__main__":
    main()
