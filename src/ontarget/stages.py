"""The stages of a fit, in their order. The only file that knows it.

data -> device -> search (where asked for) -> admission -> ranking -> trials (cheap models, linear heads, found
networks, fine-tuning, blend) -> decision -> variants -> refit -> bundle -> evidence -> report. Each stage stores its
value in the run folder before the next begins; what is stored is never done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ontarget.errors import LimitError, RunError
from ontarget.plan.refit import REFIT
from ontarget.plan.run_folder import Clock, RunFolder
from ontarget.task import Request
from ontarget.values import Context, Recipe, TargetData

HEAD_SOURCES = 3  # best-ranked sources that get a head on all rows (choice)
FEATURES_SHARE = 0.4  # of the budget that feature extraction of all sources may be predicted to take (choice)
COMPRESSED_CANDIDATES = 3  # trials that are compressed at most until one meets all limits (choice)


class Stages:
    """One pass over a run's stages. Everything that has to survive is in the run folder."""

    def __init__(
        self,
        run: RunFolder,
        request: Request,
        data: TargetData | None,
        executor: Any,
        storage: str | None,
        progress: Any,
    ) -> None:
        from ontarget.data import load
        from ontarget.data.target_data import summary

        started = time.monotonic()
        self.run, self.request, self.executor, self.storage = run, request, executor, storage
        self.task, self.limits = request.task, request.limits
        self.progress = progress
        spent = max((row["start_s"] + row["seconds"] for row in run.timeline()), default=0.0)
        self.clock = Clock(self.limits.budget_s, spent)
        self.threads = request.threads or os.cpu_count() or 1
        self.data: TargetData = data or load(self.task)
        known = run.once("data", lambda: summary(self.data), clock=self.clock)
        if known["fingerprint"] != self.data.fingerprint:
            raise RunError(
                "The data has changed since this run began.",
                option=f"{run.path}/task.toml",
                next_step="start a new run, or bring the old data back",
            )
        self.loading_s = time.monotonic() - started
        import torch

        torch.set_num_threads(self.threads)
        self.context = Context(seed=self.task.seed, device=request.device, progress=progress)

    def run_stages(self) -> None:
        for stage in (
            self._device, self._search, self._admission, self._ranking, self._quick_trials, self._label_worth,
            self._tuning, self._blend, self._decision, self._refit, self._bundle, self._evidence, self._report,
        ):  # fmt: skip
            stage()

    # --- what there is -----------------------------------------------------------------------------------

    def _device(self) -> None:
        from ontarget.device import describe

        self.run.once("device", lambda: {**describe(), "threads": self.threads}, clock=self.clock)

    def _search(self) -> None:
        """Networks made for this task and device: further candidates."""
        from ontarget.plan.search_share import search_share

        if self.request.search:
            self.run.once(
                "search", lambda: search_share(self.run.path / "search", self.request, self.data, self.context),
                clock=self.clock, kind="training",
            )  # fmt: skip

    def _found(self) -> list[str]:
        """Locators of the networks that the search found."""
        if not self.run.has("search"):
            return []
        return [f"file:{self.run.path / 'search' / row['folder']}" for row in self.run.read("search")["networks"]]

    def _admission(self) -> None:
        from ontarget.plan.admission import admit, require_any
        from ontarget.pool import candidates

        found = self.run.once(
            "admission",
            lambda: admit(
                [*candidates(self.request.pool or (), self.data.modality, columns=self.data.columns), *self._found()],
                self.data, self.limits, batch_size=self.task.batch_size, max_length=self.task.max_length,
                progress=self.progress,
            ),
            clock=self.clock,
            kind="measuring",
        )  # fmt: skip
        require_any(found, ["control:tfidf"] if self.data.modality == "text" else [])

    # --- select ------------------------------------------------------------------------------------------

    def _ranking(self) -> None:
        from dataclasses import asdict

        from ontarget.select.rank_sources import RANKING_ROWS, rank_sources

        def compute() -> dict[str, Any]:
            admitted, rejected = {}, {}
            for locator, entry in self.run.read("admission").items():
                if entry["admitted"] and not entry.get("as_found"):
                    admitted[locator] = entry
                elif not entry["admitted"]:
                    rejected[locator] = entry["reason"]
            rows = min(RANKING_ROWS, len(self.data.train))
            share_s = FEATURES_SHARE * self.limits.budget_s / max(1, len(admitted))
            for locator, entry in list(admitted.items()):
                needed_s = rows * entry["seconds_per_row"]
                if needed_s > share_s and len(admitted) > 1:
                    rejected[locator] = f"features of {rows} rows would take {needed_s:.0f} s of the budget"
                    del admitted[locator]
            ranking, failed = rank_sources(
                list(admitted), self.data, max_length=self.task.max_length, context=self.context
            )
            reasons = {**rejected, **failed}
            return {
                "decided_by": ranking.decided_by,
                "entries": [asdict(entry) for entry in ranking.entries],
                "rejected": [{"source": source, "reason": reason} for source, reason in reasons.items()],
            }

        admission = self.run.read("admission").values()
        if any(entry["admitted"] and not entry.get("as_found") for entry in admission):
            self.run.once("ranking", compute, clock=self.clock, kind="features")

    def _ranked(self) -> list[str]:
        if not self.run.has("ranking"):
            return []
        return [entry["source"] for entry in self.run.read("ranking")["entries"]]

    # --- adapt -------------------------------------------------------------------------------------------

    def _quick_trials(self) -> None:
        """The cheap candidates and a linear head on the best sources: in the race before anything is tuned."""
        from ontarget.plan.few_labels import few_label_recipes

        recipes = [Recipe("control:majority", "majority")]
        if self.data.modality == "text":
            recipes.append(Recipe("control:tfidf", "tfidf_linear"))
        ranked = self._ranked()
        encoders = [source for source in ranked if not source.startswith("control:")]
        controls = [source for source in ranked if source.startswith("control:")]
        for source in [*encoders[:HEAD_SOURCES], *controls]:
            recipes.append(Recipe(source, "linear_head"))
        for source in [*encoders[:1], *[source for source in controls if "random" not in source]]:
            recipes.append(Recipe(source, "nearest_neighbours"))
        # A network trained on these very rows keeps its own head: others would be fitted to features of seen rows.
        for source, entry in self.run.read("admission").items():
            if entry["admitted"] and entry.get("as_found"):
                recipes.append(Recipe(source, "found_network"))
        self._run_trials([self._job(number, recipe) for number, recipe in enumerate(recipes)], "quick models")
        for source in self._best_heads()[:1]:
            seconds_per_row = self.run.read("admission")[source]["seconds_per_row"]
            more = few_label_recipes(self.data, source, seconds_per_row, self.limits.budget_s)
            jobs = [self._job(len(recipes) + at, recipe) for at, recipe in enumerate(more)]
            self._run_trials(jobs, "more for few labels, on the best head's source")

    def _label_worth(self) -> None:
        """What more labels would bring, by the features of the best head's source."""
        from ontarget.select.next_labels import worth_in_a_run

        best = next(iter(self._best_heads()), None)
        self.run.once(
            "label_worth",
            lambda: worth_in_a_run(self.data, best, max_length=self.task.max_length, context=self.context),
            clock=self.clock, kind="measuring",
        )  # fmt: skip

    def _best_heads(self) -> list[str]:
        """Sources with a linear head that can be fine-tuned, best head first."""
        heads = [
            trial
            for trial in self.run.trials()
            if trial["method"] == "linear_head"
            and trial["state"] == "complete"
            and not trial["source"].startswith("control:")
        ]
        heads.sort(key=lambda trial: (-trial["metric"], trial["number"]))
        return [trial["source"] for trial in heads]

    def _job(self, number: int, recipe: Recipe, **more: Any) -> Any:
        from ontarget.plan.trial import TrialJob

        threads = min(self.threads, self.executor.cores or self.threads)
        return TrialJob(
            number, recipe, self.task.seed, device=self.request.device, threads=threads,
            max_length=self.task.max_length, **more,
        )  # fmt: skip

    def _run_trials(self, jobs: Sequence[Any], what: str) -> None:
        """Run the jobs that are not stored yet and store each as it finishes."""
        from ontarget.plan.trial import run_trial

        done = {trial["number"] for trial in self.run.trials()}
        todo = [job for job in jobs if job.number not in done]
        start_s = self.clock.elapsed_s()
        for count, (position, outcome) in enumerate(self.executor.run(run_trial, todo, self.data), start=1):
            if self.progress:
                self.progress(count, len(todo), what)
            self._store(todo[position], outcome, start_s)
            start_s = self.clock.elapsed_s()

    def _store(self, job: Any, outcome: Any, start_s: float, **more: Any) -> None:
        record = {
            "number": job.number,
            "source": job.recipe.source,
            "method": job.recipe.method,
            "settings": dict(job.recipe.settings),
            "state": outcome.state,
            "reason": outcome.reason,
            "metric": outcome.metric,
            "curve": list(outcome.curve),
            "start_s": start_s,
            "seconds": outcome.seconds,
            "peak_memory_mb": outcome.peak_memory_mb,
            "notes": dict(outcome.notes),
            **more,
        }
        self.run.write_trial(record, outcome.scores, outcome.files)
        self.clock.account(outcome.seconds)

    def _tuning(self) -> None:
        from ontarget.plan.tune_sources import tune_sources

        tune_sources(
            self.run, self.request, self.data, self._best_heads(), clock=self.clock, executor=self.executor,
            make_job=self._job, store=self._store, storage=self.storage, context=self.context,
        )  # fmt: skip

    def _blend(self) -> None:
        """The best encoder's model and the TF-IDF model together, as one more candidate."""
        from ontarget.plan.blend import blend_best_trials

        self.run.once(
            "blend",
            lambda: blend_best_trials(
                self.run, self.data, seed=self.task.seed, clock=self.clock, make_job=self._job, store=self._store
            ),
            clock=self.clock,
        )

    # --- decide, compress, bundle ------------------------------------------------------------------------

    def _decision(self) -> None:
        from ontarget.plan.decision import eligible, order

        def compute() -> dict[str, Any]:
            admission = self.run.read("admission")
            latency = {locator: entry.get("latency_p50_ms", 0.0) for locator, entry in admission.items()}
            candidates = order(eligible(self.run.trials()), self.data, self.run.trial_scores, latency)
            if not candidates:
                reasons = "; ".join(
                    f"{trial['method']} on {trial['source']}: {trial['reason']}" for trial in self.run.trials()
                )
                raise RunError(f"No trial ended well ({reasons}).", next_step="look into the reasons given")
            rejected = []
            for trial in candidates[:COMPRESSED_CANDIDATES]:
                variants, reason = self._compress(trial["number"])
                if reason:
                    rejected.append({"number": trial["number"], "reason": reason})
                    continue
                return {"number": trial["number"], "variants": variants, "rejected": rejected}
            raise LimitError(
                "None of the best candidates meets the limits: "
                + "; ".join(f"trial {entry['number']}: {entry['reason']}" for entry in rejected),
                option="--latency-ms, --memory-mb, --size-mb",
                next_step=f"raise the limits; all trials are kept in {self.run.path}",
            )

        self.run.once("decision", compute, clock=self.clock, kind="measuring")

    def _assemble(self, number: int) -> tuple[Any, Any]:
        from ontarget.plan.trial import assemble

        record = self._trial(number)
        recipe = Recipe(record["source"], record["method"], record["settings"])
        folder = self.run.trial_folder(number)
        if self.run.has("refit") and number in self.run.read("refit")["kept"]:
            folder = folder / REFIT
        return assemble(recipe, folder, self.data, max_length=self.task.max_length)

    def _trial(self, number: int) -> dict[str, Any]:
        return next(trial for trial in self.run.trials() if trial["number"] == number)

    def _compress(self, number: int) -> tuple[list[dict[str, Any]], str]:
        """All forms of a trial's network with their measurements, and why none of them fits ("" if one does)."""
        from dataclasses import asdict

        from ontarget.compress.choose import choose, quality_rows
        from ontarget.judge.paired import compare

        preprocess, network = self._assemble(number)
        variants = choose(
            network,
            preprocess,
            self.data.train,
            self.data.validation,
            metric=self.data.metric,
            kind=self.data.kind,
            limits=self.limits,
            batch_size=self.task.batch_size,
            threads=self.threads,
            folder=self.run.path / "variants" / f"{number:04d}",
            context=self.context,
        )
        eager = next(variant for variant in variants if variant.form == "pytorch").validation_scores
        targets = self.data.validation.targets[quality_rows(len(self.data.validation), self.context.seed)]
        rows = []
        for variant in variants:
            row = asdict(variant)
            scores = row.pop("validation_scores")
            if len(scores) and np.isfinite(scores).all():
                found = compare("", self.data.metric, scores, eager, targets, seed=self.context.seed)
                row["against_pytorch"] = {
                    "value": found.value, "difference": found.difference, "low": found.difference_low,
                    "high": found.difference_high,
                }  # fmt: skip
            rows.append({**row, **row.pop("measurement")})
        kept = [row for row in rows if row["kept"]]
        return rows, "" if kept else "; ".join(f"{row['form']}: {row['reason']}" for row in rows)

    def _refit(self) -> None:
        """The chosen model and the baselines once more, on training and validation rows; see plan/refit.py."""
        self.run.once("refit", self._refitted, clock=self.clock, kind="training")

    def _refitted(self) -> dict[str, Any]:
        from ontarget.compress.choose import remake
        from ontarget.judge.collect import baseline_trials
        from ontarget.plan.refit import can_be_refitted
        from ontarget.plan.trial import assemble

        decision = self.run.read("decision")
        number, form = decision["number"], next(row["form"] for row in decision["variants"] if row["kept"])
        if not can_be_refitted(self.data):
            return {"kept": [], "reason": ""}
        reason = self._refit_trial(number)
        path = self.run.path / "variants" / f"{number:04d}" / f"{REFIT}-{form}.onnx"
        if not reason:
            trial = self._trial(number)
            recipe = Recipe(trial["source"], trial["method"], trial["settings"])
            folder = self.run.trial_folder(number) / REFIT
            preprocess, network = assemble(recipe, folder, self.data, max_length=self.task.max_length)
            reason = remake(
                form, network, preprocess, self.data.train, threads=self.threads, path=path, context=self.context
            )
        if reason:
            return {"kept": [], "reason": reason}
        others = [other for other in baseline_trials(self.run).values() if other != number]
        kept = [number, *(other for other in others if not self._refit_trial(other))]
        return {"kept": kept, "reason": "", "path": str(path), "rows": len(self.data.train) + len(self.data.validation)}

    def _refit_trial(self, number: int) -> str:
        from ontarget.plan.refit import refit_trial
        from ontarget.plan.reserve import judging_seconds

        if self.progress:
            self.progress(0, 1, f"training trial {number} again on all rows but the test ones")
        trial = self._trial(number)
        seconds_per_row = self.run.read("admission").get(trial["source"], {}).get("seconds_per_row", 0.0)
        return refit_trial(
            self.run, trial, self.data, self.executor, self._job,
            left_s=self.clock.remaining_s() - judging_seconds(self.data, seconds_per_row),
        )  # fmt: skip

    def _bundle(self) -> None:
        from ontarget.serve.make_bundle import make_bundle

        def compute() -> dict[str, Any]:
            decision = self.run.read("decision")
            preprocess, _ = self._assemble(decision["number"])
            chosen = next(row for row in decision["variants"] if row["kept"])
            again = self.run.read("refit")
            if decision["number"] in again["kept"]:
                chosen = {**chosen, "path": again["path"], "refit_rows": again["rows"]}
            return make_bundle(self.run, self.request, self.data, preprocess, decision["number"], chosen)

        if not (self.run.path / "bundle" / "bundle.json").exists() and self.run.has("bundle"):
            (self.run.path / "stages" / "bundle.json").unlink()
        self.run.once("bundle", compute, clock=self.clock, kind="measuring")

    # --- judge, report -----------------------------------------------------------------------------------

    def _evidence(self) -> None:
        from ontarget.judge.collect import collect_evidence

        self.run.once(
            "evidence",
            lambda: collect_evidence(self.run, self.data, self._assemble, self.context, self.task),
            clock=self.clock,
            kind="measuring",
        )

    def _report(self) -> None:
        from ontarget.report.build import write_report

        write_report(self.report(), self.run.path)

    def report(self) -> dict[str, Any]:
        from ontarget.report.collect import collect_report

        return collect_report(self.run, self.request, self.clock.elapsed_s())
