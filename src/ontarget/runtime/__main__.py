"""``python -m run predict rows.csv`` and ``python -m run doctor``, in the folder of a bundle."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from .bundle import BundleError, load_bundle
from .preprocess import InputError


def main() -> int:
    """Parse the command line, do it, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m run", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parents[1], help="folder of the bundle")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="predict the rows of a CSV file")
    predict.add_argument("rows", type=Path, help="CSV with the bundle's input columns; image columns hold paths")
    predict.add_argument("-o", "--output", type=Path, help="CSV to write; standard output")
    commands.add_parser("doctor", help="check files, outputs and latency here")
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.bundle, threads=arguments.threads)
        if arguments.command == "doctor":
            result = bundle.self_test()
            for check in result["checks"]:
                print("ok    " if check["passed"] else "FAILED", check["name"] + ":", check["detail"])
            return 0 if result["passed"] else 1
        rows = _read(arguments.rows, bundle.info)
        predictions = bundle.predict(rows)
    except (BundleError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stream = open(arguments.output, "w", newline="", encoding="utf-8") if arguments.output else sys.stdout
    with stream:
        names = [name for name in predictions[0] if name != "probabilities"] if predictions else []
        writer = csv.DictWriter(stream, ["row", *names], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"row": row, **prediction} for row, prediction in enumerate(predictions))
    return 0


def _read(path: Path, info: dict) -> list:  # type: ignore[type-arg]
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        columns = info["input_columns"]
        missing = [name for name in columns if name not in (table.fieldnames or [])]
        if missing and info["modality"] != "features":
            raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.fieldnames or [])}")
        if info["modality"] == "features":
            import numpy as np

            names = columns if not missing else list(table.fieldnames or [])
            values = [[float(row[name]) for name in names] for row in table]
            return np.asarray(values, dtype=np.float32)  # type: ignore[return-value]
        if info["modality"] == "image":
            return [path.parent / row[columns[0]] for row in table]
        return [tuple(row[name] for name in columns) if len(columns) > 1 else row[columns[0]] for row in table]


if __name__ == "__main__":
    raise SystemExit(main())
