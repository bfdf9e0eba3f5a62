"""Splits of real data for comparisons with peers: train.csv with a few labels of each class, test.csv with the rest.

python benchmarks/few_labels_data.py --set movies sections --seeds 0 1 2 3 4 --out FOLDER

Writes FOLDER/SET/seed-S/{train,test}.csv with the columns text and label, or image (a path) and label. Rows of a
class are drawn at random by seed; test rows keep the classes' natural shares; no text is in both files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from ontarget.data import samples

TEXT_SETS = ("movies", "sections")
IMAGE_SETS = ("fashion", "cifar10")


def movies() -> pd.DataFrame:
    """Film reviews, negative or positive; sentences within 0.5 of neutral are left out."""
    table = samples.vader("movies")
    table = table[table["sentiment"].abs() >= 0.5]
    return table.assign(label=np.where(table["sentiment"] > 0, "positive", "negative"))[["text", "label"]]


def sections() -> pd.DataFrame:
    """First lines of Debian's package descriptions, in the 10 largest sections."""
    return samples.package_sections(sections=10).rename(columns={"section": "label"})


def images(name: str, folder: Path) -> pd.DataFrame:
    """Test pictures of Fashion-MNIST or CIFAR-10, written to ``folder`` once: columns image (path), label."""
    from PIL import Image

    if name == "cifar10":
        pixels, numbers, names = samples.cifar10()
        labels = [names[number] for number in numbers]
    else:
        _, _, pixels, numbers = samples.fashion_mnist()
        labels = [f"class {number}" for number in numbers]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row, picture in enumerate(pixels):
        path = (folder / f"{row:05d}.png").resolve()
        if not path.exists():
            Image.fromarray(picture).save(path)
        paths.append(str(path))
    return pd.DataFrame({"image": paths, "label": labels})


def split(
    table: pd.DataFrame, *, labels_per_class: int, test_rows: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``labels_per_class`` rows of each class, and ``test_rows`` others with the classes' natural shares."""
    column = table.columns[0]
    folded = table[column].str.strip().str.lower()
    table = table[~folded.duplicated() & (folded != "")].sort_values(column, kind="stable")
    shuffled = table.sample(frac=1.0, random_state=seed)
    train = shuffled.groupby("label").head(labels_per_class)
    rest = shuffled.drop(train.index)
    # Shares rounded by the largest remainder, so that exactly test_rows are taken.
    share = rest["label"].value_counts().sort_index() * test_rows / len(rest)
    counts = share.astype(int)
    counts[(share - counts).sort_values(ascending=False, kind="stable").index[: test_rows - counts.sum()]] += 1
    test = pd.concat([rest[rest["label"] == label].head(count) for label, count in counts.items()])
    return train, test.sample(frac=1.0, random_state=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=TEXT_SETS + IMAGE_SETS, default=list(TEXT_SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels-per-class", type=int, default=8)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for name in options.set:
        if name in IMAGE_SETS:
            table = images(name, options.out / name / "images")
        else:
            table = {"movies": movies, "sections": sections}[name]()
        for seed in options.seeds:
            train, test = split(
                table, labels_per_class=options.labels_per_class, test_rows=options.test_rows, seed=seed
            )
            folder = options.out / name / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            train.to_csv(folder / "train.csv", index=False)
            test.to_csv(folder / "test.csv", index=False)
            print(f"{folder}: {len(train)} train, {len(test)} test, {table['label'].nunique()} classes")


if __name__ == "__main__":
    main()
