import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from ontarget.errors import DataError, OnTargetError, RunError, SettingError
from ontarget.search.discover_optimizer import discover_optimizer
from ontarget.search.optimizer_program import Program, Statement, adamw, from_json, lion
from ontarget.search.proxy_tasks import WORST, AdamW, Candidate, MLPTask, mlp_tasks
from ontarget.search.symbolic_optimizer import (
    Discovery,
    read_program,
    simplified,
    symbolic_optimizer,
)
from ontarget.values import Array, Context

SMALL = {"population": 8, "tournament": 3, "patience": 10, "keep": (3, 2), "refits": 3}


def blobs(rows: int = 120, seed: int = 0) -> tuple[Array, Array]:
    """Three classes around three means."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, rows)
    return generator.normal(size=(rows, 6)) + 1.5 * np.eye(3, 6)[targets], targets


def small_tasks(sizes: tuple[float, ...] = (1, 4)) -> tuple[MLPTask, ...]:
    return mlp_tasks(*blobs(), *blobs(80, 1), sizes=sizes, rows=60, width=8, steps=15, batch=16, repeats=1)


@dataclass
class Quadratic:
    """Fitness of a rule after 30 steps down a bowl; counts its trainings."""

    curvature: float = 1.0
    calls: list[tuple[str, float]] = field(default_factory=list)
    stop_after: int = 10**9

    @property
    def name(self) -> str:
        return f"bowl {self.curvature}"

    def fitness(self, candidate: Candidate, rate: float) -> float:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((candidate.digest, rate))
        w, v1, v2, rule = torch.ones(4), torch.zeros(4), torch.zeros(4), candidate.rule()
        for step in range(30):
            lr = torch.tensor(rate * (1 - step / 30))
            update, v1, v2 = rule(w, self.curvature * w, v1, v2, lr, (4,))
            w = w - update
        return -float(w.square().sum())


# -- proxy tasks


@pytest.mark.parametrize("classes", [3, 0])
def test_gradients_are_autograd_s(classes: int) -> None:
    x, y = blobs()
    task = mlp_tasks(x, y if classes else y * 1.5, x, y if classes else y * 1.5, width=7, rows=50)[0]
    flat = task._initial(0)
    layers, found = task._views(flat), torch.zeros_like(flat)
    loss = task._backward(layers, task._views(found), task.inputs, task.targets)
    leaves = [layer.clone().requires_grad_() for layer in layers]
    hidden = task.inputs
    for at in (0, 2):
        hidden = torch.relu(hidden @ leaves[at].T + leaves[at + 1])
    scores = hidden @ leaves[4].T + leaves[5]
    expected = (
        torch.nn.functional.cross_entropy(scores, task.targets)
        if classes
        else 0.5 * torch.nn.functional.mse_loss(scores[:, 0], task.targets)
    )
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found, torch.cat([leaf.grad.flatten() for leaf in leaves]), rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


def test_the_baseline_is_torch_s_adamw() -> None:
    weight = torch.nn.Parameter(torch.randn(9, generator=torch.Generator().manual_seed(0)))
    mine, v1, v2, rule = weight.detach().clone(), torch.zeros(9), torch.zeros(9), AdamW(0.02, decay=0.3).rule()
    optimizer = torch.optim.AdamW([weight], lr=0.02, weight_decay=0.3)
    for step in range(15):
        slope = torch.randn(9, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 20)
        weight.grad = slope
        optimizer.step()
        update, v1, v2 = rule(mine, slope, v1, v2, torch.tensor(1 - step / 20), (9,))
        mine = mine - update
        torch.testing.assert_close(mine, weight.detach(), rtol=1e-5, atol=1e-6)


def test_sizes_grow_in_work_and_learn() -> None:
    small, large = small_tasks((1, 4))
    assert (small.widths, large.widths) == ((6, 8, 8, 3), (6, 16, 16, 3))
    assert (small.steps, large.steps) == (15, 30)
    assert (len(small.inputs), len(large.inputs)) == (60, 120)
    assert not {row.tobytes() for row in small.validation_inputs.numpy()} & {
        row.tobytes() for row in large.validation_inputs.numpy()
    }
    assert large.fitness(AdamW(0.02)) > -0.8 > -math.log(3) > large.fitness(AdamW(1e-6)) - 0.5
    assert large.train(AdamW(0.02), 1.0, 0).accuracy > 0.7


def test_regression_learns() -> None:
    x, _ = blobs(300)
    targets = x[:, 0] - 2 * x[:, 1] + 5.0
    task = mlp_tasks(x[:200], targets[:200], x[200:], targets[200:], rows=200, steps=200)[0]
    assert task.train(AdamW(0.01), 1.0, 0).accuracy > 0.9


def test_training_repeats_exactly_and_failure_is_worst() -> None:
    task = small_tasks()[0]
    assert task.fitness(lion(0.01)) == task.fitness(lion(0.01)) != task.fitness(lion(0.02))
    assert task.fitness(lion(1e30)) == WORST
    broken = Program((Statement("a", "log", ("v1",)), Statement("update", "*", ("a", "g"))))
    assert task.fitness(broken) == WORST


def test_images_and_unusual_labels() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 5, 5)).astype(np.uint8)
    labels = np.where(images.mean((1, 2)) > 127, 7, -2)
    task = mlp_tasks(images, labels, images, labels, rows=40)[0]
    assert (task.widths[0], task.widths[-1]) == (25, 2)
    assert abs(float(task.inputs.mean())) < 1e-3


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"targets": np.zeros(3, dtype=np.int64)}, DataError),
        ({"inputs": np.full((120, 6), np.nan)}, DataError),
        ({"validation_inputs": np.zeros((80, 5))}, DataError),
        ({"validation_targets": np.full(80, 9)}, DataError),
        ({"targets": np.full(120, np.nan), "validation_targets": np.zeros(80)}, DataError),
        ({"targets": np.zeros((120, 2), dtype=np.int64)}, DataError),
        ({"steps": 0}, SettingError),
        ({"sizes": (10, 1)}, SettingError),
    ],
)
def test_data_that_does_not_fit_is_refused(changes: dict[str, object], error: type[OnTargetError]) -> None:
    names = ("inputs", "targets", "validation_inputs", "validation_targets")
    given = dict(zip(names, (*blobs(), *blobs(80, 1)), strict=True))
    with pytest.raises(error):
        mlp_tasks(**{**given, **changes})  # type: ignore[arg-type]


# -- the search


def test_the_search_finds_a_better_rule_and_evaluates_each_program_once() -> None:
    tasks = [Quadratic(), Quadratic(2.0), Quadratic(5.0)]
    steps: list[tuple[int, int, str]] = []
    context = Context(seed=1, progress=lambda *step: steps.append(step))
    found = symbolic_optimizer(tasks, programs=60, context=context, **SMALL)  # type: ignore[arg-type]
    assert found.finished and len(found.history) == 60
    assert max(found.history) > found.history[0]  # found.history[0] is tuned AdamW
    for task in tasks:
        assert len(set(task.calls)) == len(task.calls)
    assert found.funnel[-1].name == "AdamW" and found.funnel[-1].program is None
    reached = [row for row in found.funnel if len(row.fitness) == 3 and row.program and row.name != "simplified"]
    assert [row.fitness[-1] for row in reached] == sorted((row.fitness[-1] for row in reached), reverse=True)
    assert {"start", "AdamW", "simplified"} <= {row.name for row in found.funnel}
    assert len(reached) == 3  # two that were kept, and the start
    if found.improved:
        rows = {row.program.digest: row for row in found.funnel if row.program}
        assert rows[found.program.digest].fitness[-1] > found.funnel[-1].fitness[-1]
    assert steps[-1][:2] == (60, 60) and {"tuning AdamW", "programs evaluated"} <= {what for *_, what in steps}


def test_a_plateau_restarts_from_the_best() -> None:
    found = symbolic_optimizer(
        [Quadratic()], programs=80, population=8, tournament=3, patience=5, refits=0, context=Context(seed=2)
    )
    assert found.restarts > 0 and found.finished


def same(first: Discovery, second: Discovery) -> bool:
    parts = [(d.program, d.rate, d.history, d.funnel, d.restarts, d.evaluations) for d in (first, second)]
    return parts[0] == parts[1]


def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def run(tasks: list[Quadratic], journal: Path | None, programs: int = 40) -> Discovery:
        return symbolic_optimizer(tasks, programs=programs, journal=journal, context=Context(seed=4), **SMALL)  # type: ignore[arg-type]

    whole = [Quadratic(), Quadratic(3.0)]
    expected = run(whole, tmp_path / "whole.jsonl")
    total = sum(len(task.calls) for task in whole)
    for at, stop in enumerate((7, 30, total - len(whole[1].calls) // 2)):
        journal, first = tmp_path / f"{at}.jsonl", min(stop, len(whole[0].calls))
        tasks = [Quadratic(stop_after=first), Quadratic(3.0, stop_after=stop - first)]
        with pytest.raises(KeyboardInterrupt):
            run(tasks, journal)
        with open(journal, "a") as file:
            file.write('{"digest": "abc", "ta')  # killed in the middle of a line
        rest = [Quadratic(), Quadratic(3.0)]
        assert same(run(rest, journal), expected)
        assert sum(len(task.calls) for task in rest) == total - stop
        assert journal.read_text() == (tmp_path / "whole.jsonl").read_text()
    idle = [Quadratic(), Quadratic(3.0)]
    assert same(run(idle, tmp_path / "whole.jsonl"), expected) and not idle[0].calls + idle[1].calls
    longer = run([Quadratic(), Quadratic(3.0)], tmp_path / "whole.jsonl", 50)
    assert longer.history[:40] == expected.history and len(longer.history) == 50
    assert same(longer, run([Quadratic(), Quadratic(3.0)], None, 50))


def test_journals_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    symbolic_optimizer([Quadratic()], programs=5, journal=journal, **SMALL)  # type: ignore[arg-type]
    for tasks, seed in (([Quadratic(2.0)], 0), ([Quadratic()], 1)):
        with pytest.raises(RunError):
            symbolic_optimizer(tasks, programs=5, journal=journal, context=Context(seed=seed), **SMALL)  # type: ignore[arg-type]
    journal.write_text(journal.read_text().replace('"rate"', '"rote"', 1))
    with pytest.raises(RunError):
        symbolic_optimizer([Quadratic()], programs=5, journal=journal, **SMALL)  # type: ignore[arg-type]


def test_the_deadline_is_kept_and_can_be_gone_on_from(tmp_path: Path) -> None:
    tasks, journal = [Quadratic(), Quadratic(3.0)], tmp_path / "journal.jsonl"
    late = Context(seed=4, deadline=time.monotonic() - 1)
    nothing = symbolic_optimizer(tasks, programs=40, journal=journal, context=late, **SMALL)  # type: ignore[arg-type]
    assert not nothing.finished and not nothing.improved and nothing.program == adamw(1e-3)
    assert tasks[0].calls == []
    some = Context(seed=4, deadline=time.monotonic() + 0.15)
    symbolic_optimizer(tasks, programs=40, journal=journal, context=some, **SMALL)  # type: ignore[arg-type]
    resumed = symbolic_optimizer(tasks, programs=40, journal=journal, context=Context(seed=4), **SMALL)  # type: ignore[arg-type]
    fresh = symbolic_optimizer(
        [Quadratic(), Quadratic(3.0)], programs=40, context=Context(seed=4), **SMALL  # type: ignore[arg-type]
    )  # fmt: skip
    assert same(resumed, fresh)


def test_simplification_removes_what_does_nothing_and_keeps_what_does() -> None:
    core = lion(0.05)
    padded = Program((
        Statement("a", "*", ("g", 1e-12)),
        *core.statements[:1],
        Statement("update", "+", ("update", "a")),
        *core.statements[1:],
        Statement("update", "clip_by_global_norm", ("update", 1e3)),
    ))  # fmt: skip
    w, g, v1, v2 = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = core.rule()(w, g, v1, v2, torch.tensor(0.5), (50,))

    def fitness(program: Program) -> float:
        """0 for lion's own outputs, falling with the distance from them."""
        outputs = program.rule()(w, g, v1, v2, torch.tensor(0.5), (50,))
        return -max(float((a - b).abs().max()) for a, b in zip(outputs[:2], wanted[:2], strict=True))

    shorter, after = simplified(padded, fitness, floor=-1e-5)
    assert after >= -1e-5
    decayless = Program((*core.statements[:3], *core.statements[5:]))  # lion's decay is 0: it goes as well
    assert shorter.digest == decayless.digest
    assert simplified(core, fitness, floor=math.inf) == (core, 0.0)
    loose, _ = simplified(core, fitness, floor=-0.2)
    assert len(loose.statements) < len(decayless.statements)


def test_a_rule_that_fails_on_the_larger_task_is_not_handed_out() -> None:
    """The large task gives every program but AdamW with bias correction a failure."""

    class Unfair(Quadratic):
        def fitness(self, candidate: Candidate, rate: float) -> float:
            return super().fitness(candidate, rate) if isinstance(candidate, AdamW) else math.nan

    found = symbolic_optimizer([Quadratic(), Unfair(2.0)], programs=20, **SMALL)  # type: ignore[arg-type]
    assert found.finished and not found.improved
    assert found.program == adamw(found.tuned_rate)


@pytest.mark.parametrize(
    "wrong", [{"programs": 1}, {"tournament": 200}, {"patience": 0}, {"tolerance": -1.0}, {"keep": ()}, {"keep": (0,)}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        symbolic_optimizer([Quadratic()], **wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError):
        symbolic_optimizer([])


def test_the_folder_holds_rule_program_journal_and_page(tmp_path: Path) -> None:
    x, y = blobs(200)
    settings = {**SMALL, "sizes": (1, 2), "programs": 6, "repeats": 1}
    found = discover_optimizer(x, y, tmp_path, context=Context(seed=3), **settings)  # type: ignore[arg-type]
    stored = json.loads((tmp_path / "program.json").read_text())
    assert read_program(tmp_path / "program.json") == from_json(stored["program"]) == found.program
    space: dict[str, object] = {}
    exec((tmp_path / "optimizer.py").read_text(), space)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    space["Discovered"]([weight]).step()  # type: ignore[operator]
    assert not torch.equal(weight.detach(), torch.ones(3))
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page and "<script" not in page
    assert found.program.statements[-1].text() in page and "AdamW" in page
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == found.evaluations + 1
    again = discover_optimizer(x, y, tmp_path, context=Context(seed=3), **settings)  # type: ignore[arg-type]
    assert same(found, again) and (tmp_path / "journal.jsonl").read_text().splitlines() == lines
    with pytest.raises(RunError):
        read_program(tmp_path / "nothing.json")
    with pytest.raises(DataError):
        discover_optimizer(x[:5], y[:5], tmp_path / "few")
