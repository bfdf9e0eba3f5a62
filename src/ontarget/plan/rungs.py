"""Runs one rung of successive halving and stores what each recipe reached, so that a killed run goes on from there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ontarget.plan.halving import Rung
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.plan.trial import TrialJob, TrialOutcome, run_trial
from ontarget.values import Recipe, TargetData


@dataclass(frozen=True)
class RungRunner:
    """make_job(number, recipe, **more) -> TrialJob; store(job, outcome, start_s, **more) writes a finished trial."""

    run: RunFolder
    executor: Any
    data: TargetData
    make_job: Callable[..., TrialJob]
    store: Callable[..., None]
    clock: Clock
    progress: Any
    predicted_s: Callable[[Recipe, int], float]
    memory_mb: Callable[[Recipe], float | None]
    total_epochs: int

    def run_rung(self, numbered: Sequence[tuple[int, Recipe]], mark: int, last: bool) -> dict[int, Rung]:
        """Train every recipe up to epoch ``mark``; what is stored for that mark is read back."""
        self._close_losers({number for number, _ in numbered}, mark)
        results = {number: stored for number, _ in numbered if (stored := self._stored(number, mark)) is not None}
        # Cross-fitted trials hold one model a fold: they are trained whole, not rung by rung.
        whole = bool(len(self.data.folds))
        jobs = []
        for number, recipe in numbered:
            if number in results:
                continue
            if whole and (earlier := self._reached(number)) is not None:
                results[number] = earlier
                continue
            jobs.append(
                self.make_job(
                    number,
                    recipe,
                    checkpoint=None if whole else self._checkpoint(number),
                    stop_epoch=None if whole else mark,
                    total_epochs=self.total_epochs,
                )
            )
        start_s = self.clock.elapsed_s()
        for count, (position, outcome) in enumerate(self.executor.run(run_trial, jobs, self.data), start=1):
            if self.progress:
                self.progress(count, len(jobs), f"fine-tuning {len(numbered)} recipes to epoch {mark}")
            seconds = self._keep(jobs[position], outcome, mark, start_s)
            results[jobs[position].number] = Rung(outcome.metric, outcome.state == "complete", seconds)
            start_s = self.clock.elapsed_s()
        if last or whole:
            for number, recipe in numbered:
                self._finish(number, recipe, "complete", "")
        return results

    def drop_checkpoints(self) -> None:
        """Close every trial that was cut off between rungs, and free the space of the checkpoints."""
        self._close_losers(set(), self.total_epochs + 1, "stopped by the budget")
        for path in (self.run.path / "trials").glob("*/rung/checkpoint.bin"):
            path.unlink()

    def _keep(self, job: TrialJob, outcome: TrialOutcome, mark: int, start_s: float) -> float:
        """Store what a recipe has reached; its seconds since epoch 0."""
        folder = self.run.trial_folder(job.number) / "rung"
        earlier = self._record(job.number)
        seconds: float = outcome.seconds + (earlier["outcome"]["seconds"] if earlier else 0.0)
        record = {
            "mark": mark,
            "source": job.recipe.source,
            "method": job.recipe.method,
            "settings": dict(job.recipe.settings),
            "outcome": {
                "state": outcome.state,
                "reason": outcome.reason,
                "metric": outcome.metric if math.isfinite(outcome.metric) else None,
                "curve": list(outcome.curve),
                "seconds": seconds,
                "peak_memory_mb": outcome.peak_memory_mb,
                "notes": dict(outcome.notes),
            },
            "start_s": earlier["start_s"] if earlier else start_s,
            "reached": {**(earlier["reached"] if earlier else {}), str(mark): outcome.metric},
        }
        for name, content in outcome.files.items():
            write_atomic(folder / name, content)
        if outcome.scores is not None:
            write_atomic(folder / "scores.bin", outcome.scores.astype("float32").tobytes())
        if outcome.checkpoint is not None:
            write_atomic(folder / "checkpoint.bin", outcome.checkpoint)
        write_atomic(folder / "rung.json", to_json(record))
        self.clock.account(outcome.seconds)
        return seconds

    def _record(self, number: int) -> dict[str, Any] | None:
        path = self.run.trial_folder(number) / "rung" / "rung.json"
        record: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return record

    def _stored(self, number: int, mark: int) -> Rung | None:
        record = self._record(number)
        if record is None or str(mark) not in record["reached"]:
            return None
        return _rung(record["reached"][str(mark)], record)

    def _reached(self, number: int) -> Rung | None:
        record = self._record(number)
        return None if record is None else _rung(record["reached"][str(record["mark"])], record)

    def _checkpoint(self, number: int) -> bytes | None:
        path = self.run.trial_folder(number) / "rung" / "checkpoint.bin"
        return path.read_bytes() if path.exists() else None

    def _close_losers(self, alive: set[int], mark: int, reason: str = "") -> None:
        for path in sorted((self.run.path / "trials").glob("*/rung/rung.json")):
            number = int(path.parent.parent.name)
            record = json.loads(path.read_text())
            if number in alive or record["mark"] >= mark or (path.parent.parent / "trial.json").exists():
                continue
            recipe = Recipe(record["source"], record["method"], record["settings"])
            why = reason or f"others were better after epoch {record['mark']}"
            self._finish(number, recipe, "pruned", why)

    def _finish(self, number: int, recipe: Recipe, state: str, reason: str) -> None:
        folder = self.run.trial_folder(number)
        record = self._record(number)
        if record is None or (folder / "trial.json").exists():
            return
        import numpy as np

        stored = record["outcome"]
        failed = stored["state"] == "failed"
        scores_path = folder / "rung" / "scores.bin"
        scores = None
        if scores_path.exists() and not failed:
            scores = np.frombuffer(scores_path.read_bytes(), dtype=np.float32).reshape(-1, self.data.outputs)
        keep_files = state == "complete" and not failed
        files = {path.name: path.read_bytes() for path in (folder / "rung").glob("*.safetensors") if keep_files}
        outcome = TrialOutcome(
            number,
            "failed" if failed else state,
            stored["reason"] or reason,
            -math.inf if stored["metric"] is None else stored["metric"],
            scores,
            tuple(stored["curve"]),
            stored["seconds"],
            stored["peak_memory_mb"],
            files,
            notes=stored["notes"],
        )
        before = self.clock.accounted_s
        self.store(
            self.make_job(number, recipe),
            replace(outcome, checkpoint=None),
            record["start_s"],
            predicted_seconds=self.predicted_s(recipe, record["mark"]),
            predicted_memory_mb=self.memory_mb(recipe),
            epochs=record["mark"],
        )
        # The rungs have accounted for these seconds already.
        self.clock.account(before - self.clock.accounted_s)
        for name in ("checkpoint.bin", "state.safetensors"):
            (folder / "rung" / name).unlink(missing_ok=True)


def _rung(metric: float | None, record: Mapping[str, Any]) -> Rung:
    return Rung(-math.inf if metric is None else metric, metric is not None, record["outcome"]["seconds"])
