"""A generation run's evidence: the bundle and the baselines on the test rows, once, with paired tests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ontarget.judge.once import model_digest, score_once, touches
from ontarget.judge.paired import holm
from ontarget.judge.paired_rows import compare_rows, interval_of_rows, value_of
from ontarget.plan.run_folder import RunFolder, to_json, write_atomic
from ontarget.values import Array, Context, GenerationData

WORST, BEST = 12, 4  # answers that the report shows (choice)
NAMES = {"constant_answer": "most frequent answer", "nearest_answer": "answer of the nearest prompt",
         "as_is": "untuned", "few_shot": "untuned, with examples"}  # fmt: skip


def generation_evidence(run: RunFolder, data: GenerationData, device: str, context: Context) -> dict[str, Any]:
    """Test scores of the bundle with their interval, each baseline against it, and rows to look at."""
    from ontarget.adapt.judge_answers import judge_answers
    from ontarget.adapt.lookup_answers import answer_by_lookup
    from ontarget.plan.language_trials import answer_as_tried
    from ontarget.pool.language_models import load_language_model
    from ontarget.serve.language_bundle import load_language_bundle

    bundle = load_language_bundle(run.path / "bundle", device=device)
    baselines = baseline_trials(run)
    said: dict[str, list[str]] = {}

    def score() -> dict[str, Array]:
        if bundle.source is not None and data.metric == "neg_perplexity":
            ours = answer_as_tried(bundle.source, data.test, data, bundle.info["settings"], context=context)
        else:
            ours = judge_answers(bundle.answer(data.test.prompts, context=context), data.test, data, context=context)
        said["bundle"] = list(ours.answers)
        scores = {"bundle": ours.rows}
        for name, trial in baselines.items():
            if trial["source"].startswith("control:"):
                found = judge_answers(answer_by_lookup(trial["method"], data.train, data.test.prompts), data.test, data)
            else:
                source = load_language_model(trial["source"], device=device)
                kept = run.path / "evidence" / f"{trial['number']}.jsonl"
                found = answer_as_tried(source, data.test, data, trial["settings"], kept=kept, context=context)
            scores[name] = found.rows
        write_atomic(run.path / "evidence" / "answers.json", to_json(said))
        return scores

    scores = {name: rows.astype(np.float64) for name, rows in
              score_once(run.path, model_digest(bundle.info["files"]), score).items()}  # fmt: skip
    ours = scores.pop("bundle")
    chosen = run.read("decision")["number"]
    low, high = interval_of_rows(data.metric, ours, seed=context.seed)
    compared = [compare_rows(name, data.metric, ours, rows, seed=context.seed) for name, rows in scores.items()]
    same = {name for name, trial in baselines.items() if trial["number"] == chosen}
    rows = [{**asdict(entry), "same_model": False} for entry in holm([one for one in compared if one.name not in same])]
    rows += [{**asdict(entry), "same_model": True} for entry in compared if entry.name in same]
    return {
        "metric": data.metric, "rows": len(ours),
        "test": {"value": value_of(data.metric, ours), "low": low, "high": high},
        "baselines": sorted(rows, key=lambda row: -row["value"]),
        "shown": _shown(run, data, ours),
        "touches": [{name: touch[name] for name in ("when", "model", "rows", "forced")} for touch in touches(run.path)],
    }  # fmt: skip


def baseline_trials(run: RunFolder) -> dict[str, dict[str, Any]]:
    """What a user could have had without tuning: name -> the best trial of its kind."""
    found: dict[str, dict[str, Any]] = {}
    for trial in run.trials():
        name = NAMES.get(trial["method"])
        if name and trial["state"] == "complete" and (name not in found or trial["metric"] > found[name]["metric"]):
            found[name] = trial
    return found


def _shown(run: RunFolder, data: GenerationData, rows: Array) -> list[dict[str, Any]]:
    """The worst answers and some of the best, with their prompts."""
    import json

    path = run.path / "evidence" / "answers.json"
    answers = json.loads(path.read_text(encoding="utf-8")).get("bundle", []) if path.exists() else []
    order = np.argsort(rows, kind="stable").tolist()
    chosen = list(dict.fromkeys([*order[:WORST], *order[::-1][:BEST]]))
    return [
        {"row": int(data.test.rows[at]), "prompt": data.test.prompts[at][:500], "score": float(rows[at]),
         "answer": answers[at][:500] if answers else "", "reference": (data.test.references[at] or ("",))[0][:500]}
        for at in chosen
    ]  # fmt: skip
