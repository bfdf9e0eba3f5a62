"""The stages of a fit whose task is to write text, in their order. The only file that knows it.

data -> device -> admission -> trials (lookups, the models as they are, tuned ones) -> merge -> decision -> variants ->
bundle -> evidence -> report. Each stage stores its value in the run folder before the next begins.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.adapt.answers import check_room
from ontarget.data.generation_data import generation_summary, load_generation
from ontarget.device import describe
from ontarget.errors import LimitError, RunError
from ontarget.judge.generation_evidence import generation_evidence
from ontarget.merge.tune_weights import finished_merges, tune_weights
from ontarget.plan.language_speed import measure_speed, over_limits
from ontarget.plan.language_trials import (
    MODEL,
    TRAIN_ROWS,
    VALIDATION_ROWS,
    answer_as_tried,
    examples_of,
    first_recipes,
    fitted,
    longest_answer,
    run_language_trial,
    tuned_recipes,
    typical_answer,
    validation_part,
)
from ontarget.plan.language_variants import least_mb, variants
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.pool.language_models import DEFAULT, load_language_model, local_folder
from ontarget.report.generation_page import write_generation_page
from ontarget.serve.language_bundle import load_language_bundle, write_language_bundle
from ontarget.task import Request
from ontarget.values import Array, Context, GenerationData, Recipe

RESERVE = 0.15  # of the budget, for test rows and the bundle, at least (choice)
MERGES = 10  # at most (choice)
TUNED_SOURCES = 2  # that are tuned (choice)
TIMED_ROWS = 4  # prompts that a source's speed is measured on (choice)
SELF_TEST_ROWS = 8


class GenerationStages:
    """One pass over a generation run's stages. Everything that has to survive is in the run folder."""

    def __init__(self, run: RunFolder, request: Request, data: GenerationData | None, progress: Any) -> None:
        import torch

        self.run, self.request, self.task, self.limits = run, request, request.task, request.limits
        spent = max((row["start_s"] + row["seconds"] for row in run.timeline()), default=0.0)
        self.clock = Clock(self.limits.budget_s, spent)
        self.data: GenerationData = data or load_generation(self.task)
        known = run.once("data", lambda: generation_summary(self.data), clock=self.clock)
        if known["fingerprint"] != self.data.fingerprint:
            raise RunError("The data, or its checker, has changed since this run began.",
                           option=f"{run.path}/task.toml", next_step="start a new run, or bring it back")  # fmt: skip
        self.threads = request.threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.context = Context(seed=self.task.seed, device=request.device, progress=progress)

    def run_stages(self) -> None:
        for stage in (self._device, self._admission, self._baselines, self._tuning, self._merge, self._decision,
                      self._bundle, self._evidence, self._report):  # fmt: skip
            stage()

    def _device(self) -> None:
        self.run.once("device", lambda: {**describe(), "threads": self.threads}, clock=self.clock)

    def _load(self, locator: str) -> Any:
        return load_language_model(locator, device=self.request.device)

    def _admission(self) -> None:
        """Every source loaded once: what it costs, and whether it is within the limits."""

        def compute() -> dict[str, Any]:
            return {locator: self._admit(locator) for locator in self.request.pool or (DEFAULT,)}

        found = self.run.once("admission", compute, clock=self.clock, kind="measuring")
        if not any(entry["admitted"] for entry in found.values()):
            reasons = "; ".join(f"{locator}: {entry['reason']}" for locator, entry in found.items())
            raise LimitError(f"No language model of the pool is within the limits: {reasons}.",
                             option="--latency-ms, --memory-mb, --size-mb",
                             next_step="raise the limits, or bring a smaller model")  # fmt: skip

    def _admit(self, locator: str) -> dict[str, Any]:
        if self.context.progress is not None:
            self.context.progress(0, 1, f"measuring {locator}")
        source = self._load(locator)
        longest = longest_answer(self.data, source)
        # Every prompt has to fit, or an error names the row before any work is done.
        for part in (self.data.train, self.data.validation, self.data.test):
            asked = [source.prompt_ids(prompt, self.data.instruction) for prompt in part.prompts]
            check_room(source, asked, longest, rows=part.rows)
        prompts = list(self.data.validation.prompts[:TIMED_ROWS])
        few_bits_mb = least_mb(source, self.request.device)
        measured = measure_speed(source, prompts, instruction=self.data.instruction, tokens=longest,
                                 training_tokens=typical_answer(self.data, source),
                                 memory=self.limits.memory_mb is not None)  # fmt: skip
        over = over_limits(measured, self.limits)
        # A smaller form may still do: that is measured among the variants.
        if over and self.limits.size_mb is not None and few_bits_mb <= self.limits.size_mb:
            over = [text for text in over if not text.startswith("size_mb")]
        return {"admitted": not over, "reason": "; ".join(over), "max_new_tokens": longest, **measured}

    def _trial(self, recipe: Recipe, deadline: float | None = None) -> dict[str, Any]:
        """The stored trial of this recipe, or run it now."""
        known = self.run.trials()
        for trial in known:
            if (trial["source"], trial["method"], trial["settings"]) == (
                recipe.source, recipe.method, dict(recipe.settings)
            ):  # fmt: skip
                return trial
        number = max((trial["number"] for trial in known), default=-1) + 1
        source = None if recipe.source.startswith("control:") else self._load(recipe.source)
        record = run_language_trial(
            self.run, number, recipe, source, self.data, self.clock.elapsed_s(),
            context=replace(self.context, deadline=deadline),
        )  # fmt: skip
        self.clock.account(record["seconds"])
        return record

    def _sources(self) -> list[str]:
        return [locator for locator, entry in self.run.read("admission").items() if entry["admitted"]]

    def _baselines(self) -> None:
        for recipe in first_recipes(self.data, self._sources()):
            self._trial(recipe)

    def _complete(self, *methods: str) -> list[dict[str, Any]]:
        found = [trial for trial in self.run.trials() if trial["state"] == "complete"]
        return [trial for trial in found if not methods or trial["method"] in methods]

    def _tuning(self) -> None:
        """Tuned models, the best source first, sized to what the budget leaves; each decision is stored before it."""
        as_is = sorted(self._complete("as_is"), key=lambda trial: -trial["metric"])
        skipped, place = [], 0
        for trial in as_is[:TUNED_SOURCES]:
            judged = self.data.metric != "neg_perplexity" and trial["metric"] > 0
            for recipe in tuned_recipes(self.data, trial["source"], judged=judged):
                planned = self.run.once(
                    f"tuning-{place:02d}", partial(self._planned, recipe, trial["seconds"]), clock=self.clock
                )
                place += 1
                if planned["settings"] is None:
                    skipped.append({**planned, "settings": dict(recipe.settings)})
                    continue
                # It is cut off only where it is much slower than predicted.
                until = self.clock.deadline(self.clock.remaining_s() - self._reserve())
                self._trial(Recipe(recipe.source, recipe.method, planned["settings"]), deadline=until)
        self.run.once("tuning", lambda: {"skipped": skipped}, clock=self.clock)

    def _planned(self, recipe: Recipe, answering_s: float) -> dict[str, Any]:
        """The recipe's settings within the budget, or None and why. answering_s: of the untuned model's validation."""
        rows = min(TRAIN_ROWS, len(self.data.train.answered()))
        row_s = self.run.read("admission")[recipe.source]["train_s_per_row"]
        fixed_s, left_s = answering_s, self.clock.remaining_s() - self._reserve()
        if recipe.method == "s3ft":  # the model answers every training prompt, and some of them twice
            fixed_s += 1.5 * answering_s * rows / max(1, min(VALIDATION_ROWS, len(self.data.validation)))
        chosen = fitted(recipe, rows, row_s, fixed_s, left_s)
        needed = rows * row_s + fixed_s
        return {
            "source": recipe.source, "method": recipe.method, "settings": dict(chosen.settings) if chosen else None,
            "reason": "" if chosen else f"an epoch would take about {needed:.0f} s, {max(0.0, left_s):.0f} s are left",
        }  # fmt: skip

    def _reserve(self) -> float:
        """Seconds that forms of the weights, test rows and the bundle will take."""
        measuring = next(row["seconds"] for row in self.run.timeline() if row["stage"] == "admission")
        # bfloat16 answers the validation rows once, and few bits, which are slower at prompts.
        needed = 2.5 * self._slowest_s() + 2 * measuring + self._judging_s()
        return float(max(RESERVE * self.limits.budget_s, needed))

    def _slowest_s(self) -> float:
        """Of an untuned model's trials, which are answering alone."""
        return float(max((trial["seconds"] for trial in self._complete("as_is", "few_shot")), default=0.0))

    def _judging_s(self) -> float:
        """Seconds that test rows will take: of the model and its baselines."""
        rows = min(VALIDATION_ROWS, len(self.data.validation))
        return 4 * self._slowest_s() * len(self.data.test) / max(1, rows)

    def _merge(self) -> None:
        """The best source's tuned models merged, with weights that the metric chooses; see merge/tune_weights.py."""
        self.run.once("merge", self._merged, clock=self.clock, kind="training")

    def _merged(self) -> dict[str, Any]:
        from ontarget.compress.packed_checkpoint import is_packed

        tuned = self._complete("supervised_fine_tuning", "s3ft")
        if not tuned:
            return {"taken": False, "says": "nothing was tuned, so there is nothing to merge"}
        source = max(tuned, key=lambda trial: trial["metric"])["source"]
        if is_packed(local_folder(source)):
            return {"taken": False, "says": f"{source} is in few bits, which nothing is merged on"}
        tuned = [trial for trial in tuned if trial["source"] == source]
        as_is = next(trial for trial in self._complete("as_is") if trial["source"] == source)
        each = 1.5 * as_is["seconds"]
        done = finished_merges(self.run.path / "merge")  # by a process that was killed
        left_s = max(0.0, self.clock.remaining_s() - self._reserve())
        trials = int(min(MERGES, done + left_s / max(each, 1e-3)))
        if trials < 1:
            return {"taken": False, "says": f"a merge needs about {each:.0f} s, which are not left"}
        parents = {str(self.run.trial_folder(trial["number"]) / MODEL): self._rows(trial["number"]) for trial in tuned}
        found = tune_weights(
            parents, str(local_folder(source)), self._validation_rows, self.run.path / "merge", trials=trials,
            context=replace(self.context, deadline=self.clock.deadline(self.clock.remaining_s() - self._reserve())),
        )  # fmt: skip
        numbers = {str(self.run.trial_folder(trial["number"]) / MODEL): trial["number"] for trial in tuned}
        taken = found.plan is not None
        tried = [{**one, "weights": {str(numbers[name]): weight for name, weight in one["weights"].items()}}
                 for one in found.tried]  # fmt: skip
        if taken:
            number = max(trial["number"] for trial in self.run.trials()) + 1
            best = max(tried, key=lambda one: one["score"])
            record = {
                "number": number, "source": source, "method": "merge", "settings": {"weights": best["weights"]},
                "start_s": self.clock.elapsed_s(), "seconds": 0.0, "state": "complete", "reason": "",
                "metric": float(found.rows.mean()), "notes": {}, "answers": [],
            }  # fmt: skip
            folder = self.run.trial_folder(number)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder / MODEL, ignore_errors=True)
            (self.run.path / "merge" / "merged").rename(folder / MODEL)
            self.run.write_trial(record, found.rows[:, None], {})
        best_number = numbers[found.best_parent]
        return {"taken": taken, "says": found.says.replace(found.best_parent, f"trial {best_number}"), "tried": tried}

    def _validation_rows(self, folder: Path) -> Array:
        source, part = self._load(str(folder)), validation_part(self.data)
        return answer_as_tried(source, part, self.data, {}, context=self.context).rows

    def _rows(self, number: int) -> Array:
        rows: Array = self.run.trial_scores(number)[:, 0].astype(np.float64)
        return rows

    def _decision(self) -> None:
        """The best trial on validation rows; of equals the one that comes first, which is the cheaper one."""

        def compute() -> dict[str, Any]:
            complete = self._complete()
            if not complete:
                reasons = "; ".join(f"{trial['method']}: {trial['reason']}" for trial in self.run.trials())
                raise RunError(f"No trial ended well ({reasons}).", next_step="look into the reasons given")
            chosen = max(complete, key=lambda trial: (trial["metric"], -trial["number"]))
            return {"number": chosen["number"], "variants": self._variants(chosen)}

        self.run.once("decision", compute, clock=self.clock, kind="measuring")

    def _model_of(self, trial: dict[str, Any]) -> Path | None:
        if trial["source"].startswith("control:"):
            return None
        own = self.run.trial_folder(trial["number"]) / MODEL
        return own if own.exists() else local_folder(trial["source"])

    def _variants(self, trial: dict[str, Any]) -> list[dict[str, Any]]:
        """The model's weights in several forms: a smaller one is kept where it costs nothing."""
        folder = self._model_of(trial)
        if folder is None:
            return []
        until = self.clock.deadline(self.clock.remaining_s() - self._judging_s())
        rows = variants(
            folder, self.data, self._rows(trial["number"]), trial, self.limits, self.run.path / "variants",
            context=replace(self.context, deadline=until),
        )  # fmt: skip
        if not any(row["kept"] for row in rows):
            reasons = "; ".join(f"{row['dtype']}: {row['reason']}" for row in rows)
            raise LimitError(f"The best model meets no limit in any form: {reasons}.", next_step="raise the limits")
        return rows

    def _bundle(self) -> None:
        if not (self.run.path / "bundle" / "ontarget.json").exists() and self.run.has("bundle"):
            (self.run.path / "stages" / "bundle.json").unlink()
        self.run.once("bundle", self._bundled, clock=self.clock, kind="measuring")

    def _bundled(self) -> dict[str, Any]:
        decision = self.run.read("decision")
        trial = next(one for one in self.run.trials() if one["number"] == decision["number"])
        variant = next((row for row in decision["variants"] if row["kept"]), None)
        model = Path(variant["path"]) if variant else None
        prompts = list(self.data.validation.prompts[:SELF_TEST_ROWS])
        info = {
            "name": self.task.name, "method": trial["method"], "source": trial["source"],
            "settings": trial["settings"], "dtype": variant["dtype"] if variant else "",
            "input_columns": list(self.task.input), "instruction": self.data.instruction, "metric": self.data.metric,
            "max_new_tokens": 0, "validation": trial["metric"],
            "examples": examples_of(self.data, int(trial["settings"].get("shots", 0)), self.context.seed),
            "measured": variant or {},
        }  # fmt: skip
        answers = None
        if model is None:
            known = self.data.train.answered()
            answers = {"prompts": known.prompts, "answers": [right[0] for right in known.references]}
        else:
            info["max_new_tokens"] = longest_answer(self.data, self._load(str(model)))
        folder = self.run.path / "bundle"
        # Written twice: the answers of the self-test are those of the bundle itself.
        write_language_bundle(folder, model, info, answers=answers, self_test={"prompts": [], "answers": []})
        said = load_language_bundle(folder, device=self.request.device).answer(prompts, context=self.context)
        write_language_bundle(folder, model, info, answers=answers, self_test={"prompts": prompts, "answers": said})
        return {"method": trial["method"], "source": trial["source"], "dtype": info["dtype"],
                "size_mb": sum(path.stat().st_size for path in folder.iterdir()) / 2**20}  # fmt: skip

    def _evidence(self) -> None:
        self.run.once(
            "evidence", lambda: generation_evidence(self.run, self.data, self.request.device, self.context),
            clock=self.clock, kind="measuring",
        )  # fmt: skip

    def _report(self) -> None:
        report = self.report()
        write_atomic(self.run.path / "report.json", to_json(report))
        write_generation_page(self.run.path / "report.html", report)

    def report(self) -> dict[str, Any]:
        """Everything that the run decided, JSON-able."""
        names = ("data", "device", "admission", "tuning", "merge", "decision", "bundle", "evidence")
        task = {"name": self.task.name, "data": str(self.task.data), "checker": self.data.checker,
                "instruction": self.data.instruction}  # fmt: skip
        return {
            "kind": "generation", "task": task, "limits": self.limits.model_dump(), "made": time.time(),
            **{name: self.run.read(name) for name in names}, "trials": self.run.trials(),
            "seconds": self.clock.elapsed_s(),
        }  # fmt: skip
