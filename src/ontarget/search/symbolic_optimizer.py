"""Symbolic discovery of optimizers: regularised evolution of update rules, chosen on larger tasks, then simplified.

Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le, "Symbolic Discovery of Optimization
Algorithms", NeurIPS 2023, arXiv 2302.06675, section 2. Official code: google/automl, folder hero (programs, mutations,
hashes; the evolution itself is not in it). Lion, the paper's result: ontarget.parts.optimizers.lion.
Claim: the search finds rules that beat tuned AdamW, and funnel selection those that still do so on larger tasks.
Left out: thousands of accelerators; the paper evaluates some 200,000 programs a search.
Checked in tests/search/test_symbolic_optimizer.py and benchmarks/discover_optimizer.py.

1. AdamW's rate is tuned on the smallest task; the ring of ``population`` programs is filled with it.
2. Of ``tournament`` programs drawn from the ring the best has a child: mutated until its digest differs, so that dead
   code drifts. The child enters at the ring's end and the oldest leaves. Equal digests are evaluated once.
3. Where ``patience`` programs brought nothing better, the ring is filled with the best one found (restart).
4. Funnel: the best ``keep[0]`` programs face the second task, the best ``keep[1]`` of these the next, and so on; on
   each, every program has its rate tuned in the same way, and so has AdamW with bias correction.
5. The winner loses each statement whose removal costs less than ``tolerance`` on the second task; its constants are
   refitted there; the result faces the largest task as well. Where it does not beat AdamW, AdamW comes back.

Every evaluation is a line of ``journal``. A search that was killed and is started again with the same seed and the
same tasks walks the same way, reads what it has from the journal, and goes on behind it.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ontarget.errors import RunError, SettingError
from ontarget.search.optimizer_program import (
    LONGEST,
    Program,
    adamw,
    constants,
    from_json,
    mutate,
    removals,
    to_source,
    with_constant,
    without_dead_code,
)
from ontarget.search.proxy_tasks import WORST, AdamW, Candidate, ProxyTask
from ontarget.values import Context

FORMAT = 1
RATES = tuple(1e-3 * 2.0**power for power in range(-3, 5))  # AdamW's first grid, widened at an edge (choice)
FACTORS = (0.5, 1.0, 2.0)  # of a program's rate on a larger task, widened at an edge (choice)
WIDENINGS = 4  # of either grid, at most (choice)
CHILDREN = 1000  # mutations tried for one child, as in hero


@dataclass(frozen=True)
class Entrant:
    """A row of the funnel. fitness, rates: of each task that it faced, smallest first; program: None for AdamW."""

    name: str
    program: Program | None
    fitness: tuple[float, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Discovery:
    """What a search gave.

    program, rate: the rule, and the multiple of its own learning rate that the largest task wants. source: the rule as
    a readable module. improved: on the largest task it beats AdamW, with bias correction and without, each at its own
    tuned rate; otherwise program is the start, AdamW without bias correction, at its tuned rate. finished: nothing was
    cut short by the deadline; if something was, program is the best on the smallest task, not compared with AdamW.
    history: fitness on the smallest task of each evaluated program, in order. funnel: AdamW last.
    found: the funnel's winner as it was before it was simplified. tuned_rate: AdamW's on the smallest task.
    evaluations: of programs on tasks at rates, those read from a journal included.
    """

    program: Program
    rate: float
    source: str
    improved: bool
    finished: bool
    history: tuple[float, ...]
    funnel: tuple[Entrant, ...]
    found: Program
    tuned_rate: float
    restarts: int
    evaluations: int
    settings: dict[str, Any] = field(default_factory=dict)


class _OutOfTime(Exception):
    pass


class _Evaluations:
    """Fitness of (candidate, task, rate), each computed once and kept in the journal."""

    def __init__(self, tasks: Sequence[ProxyTask], journal: IO[str] | None, header: dict[str, Any], context: Context):
        self.tasks, self.journal, self.context = tasks, journal, context
        self.known: dict[tuple[str, int, float], float] = {}
        self.used: set[tuple[str, int, float]] = set()
        if journal is not None:
            self._read(journal, header)

    def __call__(self, candidate: Candidate, level: int, rate: float) -> float:
        key = (candidate.digest, level, rate)
        if key not in self.known:
            if self.context.deadline is not None and time.monotonic() > self.context.deadline:
                raise _OutOfTime
            found = self.tasks[level].fitness(candidate, rate)
            self.known[key] = found if math.isfinite(found) else WORST
            if self.journal is not None:
                entry = {
                    "digest": key[0], "task": level, "rate": rate, "fitness": found if math.isfinite(found) else None,
                    "program": candidate.to_json() if isinstance(candidate, Program) else None,
                }  # fmt: skip
                self.journal.write(json.dumps(entry) + "\n")
                self.journal.flush()
        self.used.add(key)
        return self.known[key]

    def _read(self, journal: IO[str], header: dict[str, Any]) -> None:
        journal.seek(0)
        content = journal.read()
        whole = content[: content.rfind("\n") + 1]  # a killed process may leave half a line
        lines = whole.splitlines()
        try:
            found = [json.loads(line) for line in lines]
            for entry in found[1:]:
                fitness = WORST if entry["fitness"] is None else float(entry["fitness"])
                self.known[str(entry["digest"]), int(entry["task"]), float(entry["rate"])] = fitness
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"The journal {journal.name} is damaged.", next_step="start with a new one") from error
        if found and found[0] != header:
            raise RunError(
                f"The journal {journal.name} belongs to a search with other data, seed or settings.",
                next_step="repeat that search's, or give this one another journal",
            )
        journal.seek(len(whole.encode()))
        journal.truncate()
        if not found:
            journal.write(json.dumps(header) + "\n")
            journal.flush()


def symbolic_optimizer(
    tasks: Sequence[ProxyTask],
    *,
    programs: int = 300,
    population: int = 100,
    tournament: int = 10,
    patience: int = 100,
    keep: Sequence[int] = (10, 3),
    tolerance: float = 0.005,
    refits: int = 20,
    longest: int = LONGEST,
    journal: Path | None = None,
    context: Context = Context(),
) -> Discovery:
    """Search an update rule for ``tasks``: the proxy first, then larger ones for the funnel, as `mlp_tasks` gives.

    programs: different ones that are evaluated on the smallest task, the start among them, 2 or more. population,
    tournament: of the evolution, tournament <= population. patience: programs without progress before a restart, 1 or
    more. keep: programs that go on from each task to the next. tolerance: 0 or more, share of AdamW's fitness that a
    removed statement may cost. refits: changes of constants tried. longest: statements of a program. journal: file
    for the evaluations; read first where it is there. Defaults beyond population and tournament are choices.
    Progress: (programs evaluated, programs, what). At ``context.deadline`` the search returns what it has.
    Raises SettingError: a number out of range; RunError: a journal of another search, damaged, or in use.
    """
    ranges = {
        "programs": (programs, 2), "population": (population, 1), "tournament": (tournament, 1),
        "patience": (patience, 1), "refits": (refits, 0), "longest": (longest, 9), "tolerance": (tolerance, 0),
        "tasks": (len(tasks), 1), "keep": (min(keep, default=0), 1),
    }  # fmt: skip
    for name, (value, least) in ranges.items():
        if not value >= least:
            raise SettingError(f"{name} is {value}.", allowed=f"{least} or more", option=name)
    if tournament > population:
        raise SettingError(
            f"tournament is {tournament} of {population}.", allowed="at most the population", option="tournament"
        )
    settings = {
        "programs": programs, "population": population, "tournament": tournament, "patience": patience,
        "keep": list(keep), "tolerance": tolerance, "refits": refits, "longest": longest,
    }  # fmt: skip
    # ``programs`` is not part of the identity: a search may be carried on for longer.
    same = {name: value for name, value in settings.items() if name != "programs"}
    header = {"format": FORMAT, "seed": context.seed, **same, "tasks": [task.name for task in tasks]}
    with _opened(journal) as file:
        search = _Search(_Evaluations(tasks, file, header, context), settings, context)
        return search.run()


class _Search:
    """The state of one search; it follows from the seed and the evaluations alone."""

    def __init__(self, evaluate: _Evaluations, settings: dict[str, Any], context: Context) -> None:
        self.evaluate, self.settings, self.context = evaluate, settings, context
        self.tuned_rate, self.reference = RATES[3], AdamW(RATES[3])
        self.start = self.best = adamw(RATES[3])
        self.seen: dict[str, tuple[float, Program]] = {}
        self.restarts = 0
        self.entrants: list[Entrant] = []

    def run(self) -> Discovery:
        finished, winner, rate = True, None, 1.0
        try:
            self._tune_start()
            self._evolve()
            self._funnel()
            winner = self.entrants[0]
            winner, rate = self._simplified(winner)
        except _OutOfTime:
            finished = False
        found = self.entrants[0] if self.entrants else None
        improved = finished and winner is not None and winner.fitness[-1] > self._bar()
        # A rule that was not shown to beat AdamW is dropped. Cut short, the best so far comes back, and says so.
        program = winner.program if improved and winner else self.start if finished else self.best
        assert program is not None
        if finished and not improved:
            start = next(entrant for entrant in self.entrants if entrant.name == "start")
            rate = start.rates[-1]
        program = without_dead_code(program)
        return Discovery(
            program=program, rate=rate, source=to_source(program, lr=rate), improved=improved, finished=finished,
            history=tuple(fitness for fitness, _ in self.seen.values()), funnel=tuple(self.entrants),
            found=without_dead_code(found.program) if found and found.program else program,
            tuned_rate=self.tuned_rate, restarts=self.restarts, evaluations=len(self.evaluate.used),
            settings=self.settings,
        )  # fmt: skip

    def _bar(self) -> float:
        """What a discovery has to beat on the largest task: AdamW with bias correction and without, each tuned."""
        return max(row.fitness[-1] for row in self.entrants if row.name in ("AdamW", "start"))

    def _tune_start(self) -> None:
        """AdamW's own rate on the smallest task, without and with bias correction."""
        self._report("tuning AdamW")
        self.tuned_rate = tuned(lambda rate: self.evaluate(adamw(rate), 0, 1.0), RATES, 2.0)[1]
        self.start = self.best = adamw(self.tuned_rate)
        self.reference = AdamW(tuned(lambda rate: self.evaluate(AdamW(rate), 0, 1.0), RATES, 2.0)[1])

    def _fitness(self, program: Program) -> float:
        if program.digest not in self.seen:
            self.seen[program.digest] = (self.evaluate(program, 0, 1.0), program)
            self._report("programs evaluated")
        return self.seen[program.digest][0]

    def _evolve(self) -> None:
        settings, generator = self.settings, np.random.default_rng((self.context.seed, 1))
        size = settings["population"]
        best = self._fitness(self.start)
        ring: deque[tuple[float, Program]] = deque([(best, self.start)] * size, maxlen=size)
        since, children = 0, 0
        while len(self.seen) < settings["programs"] and children < CHILDREN * settings["programs"]:
            drawn = generator.permutation(size)[: settings["tournament"]]
            parent = max((ring[at] for at in drawn), key=lambda entry: entry[0])[1]  # the first drawn of equals
            child = _child(parent, generator, settings["longest"])
            children += 1
            before = len(self.seen)
            fitness = self._fitness(child)
            ring.append((fitness, child))  # the oldest falls out
            since += len(self.seen) - before
            if fitness > best:
                best, self.best, since = fitness, child, 0
            elif since >= settings["patience"]:
                ring.extend([(best, self.best)] * size)
                self.restarts, since = self.restarts + 1, 0

    def _funnel(self) -> None:
        """Fill ``entrants``, best of the largest task first, AdamW last."""

        def rounded(fitness: float) -> float:
            return float(f"{fitness:.6g}")

        ranked = sorted(
            self.seen.values(), key=lambda entry: (-rounded(entry[0]), len(without_dead_code(entry[1]).statements))
        )
        first = self.evaluate(self.start, 0, 1.0)
        rows, met = [], {rounded(first)}
        for fitness, program in ranked:
            if program.digest == self.start.digest:
                rows.append(Entrant("start", program, (fitness,), (1.0,)))
            elif rounded(fitness) not in met:  # times 1.0 and the like: the same rule, of which the shortest goes on
                met.add(rounded(fitness))
                rows.append(Entrant(f"program {len(met) - 1}", program, (fitness,), (1.0,)))
        reference = Entrant("AdamW", None, (self.evaluate(self.reference, 0, 1.0),), (self.reference.rate,))
        keep = self.settings["keep"]
        levels = range(1, len(self.evaluate.tasks))
        done: list[Entrant] = []
        for level in levels:
            count = keep[min(level - 1, len(keep) - 1)]
            chosen = [row for row in rows if row.name != "start"][:count]
            chosen += [row for row in rows if row.name == "start"]  # the cheap baseline is always in the race
            done += [row for row in rows if row not in chosen and len(row.fitness) > 1]
            rows = []
            for at, row in enumerate(chosen):
                self._report(f"funnel, task {level + 1}: {at} of {len(chosen)}")
                assert row.program is not None
                rows.append(self._faced(row, row.program, level))
            rows.sort(key=lambda row: -row.fitness[-1])
            reference = self._faced(reference, self.reference, level)
        self.entrants = [*(rows if levels else rows[: keep[0]]), *done[::-1], reference]
        if not levels and all(row.name != "start" for row in self.entrants):
            self.entrants.insert(-1, next(row for row in rows if row.name == "start"))

    def _faced(self, row: Entrant, candidate: Candidate, level: int) -> Entrant:
        """The row with its fitness on a task, at the rate that this task wants."""
        last = row.rates[-1] if row.program is not None else row.rates[-1] / self.reference.rate
        fitness, factor = tuned(
            lambda factor: self.evaluate(candidate, level, factor), [last * f for f in FACTORS], 2.0
        )  # fmt: skip
        rate = factor if row.program is not None else factor * self.reference.rate
        return Entrant(row.name, row.program, (*row.fitness, fitness), (*row.rates, rate))

    def _simplified(self, winner: Entrant) -> tuple[Entrant, float]:
        """The winner without what it does not need, if that lasts on the largest task; and its rate there."""
        assert winner.program is not None
        level, last = min(1, len(self.evaluate.tasks) - 1), len(self.evaluate.tasks) - 1
        rate, scale = winner.rates[level], abs(winner.fitness[level])
        floor = winner.fitness[level] - self.settings["tolerance"] * scale

        def judged(program: Program) -> float:
            self._report("simplifying")
            return self.evaluate(program, level, rate)

        program, fitness = simplified(winner.program, judged, floor=floor)
        if fitness == WORST:
            return winner, winner.rates[-1]
        generator = np.random.default_rng((self.context.seed, 2))
        for _ in range(self.settings["refits"]):
            places = constants(program)
            if not places:
                break
            at, place, value = places[int(generator.integers(len(places)))]
            changed = with_constant(program, at, place, value * 2.0 ** (0.5 * generator.normal()))  # (choice)
            if not changed.fault and judged(changed) > fitness:
                program, fitness = changed, judged(changed)
        shorter = Entrant("simplified", program, (*winner.fitness[:level], fitness), winner.rates[: level + 1])
        if last == 0:
            shorter = Entrant("simplified", program, (fitness,), (1.0,))
        for next_level in range(level + 1, last + 1):
            shorter = self._faced(shorter, program, next_level)
        allowed = winner.fitness[-1] - self.settings["tolerance"] * abs(winner.fitness[-1])
        self.entrants.insert(-1, shorter)
        lost = winner.fitness[-1] > self._bar() >= shorter.fitness[-1]  # what made it a discovery
        kept = shorter if shorter.fitness[-1] >= allowed and not lost else winner
        return kept, kept.rates[-1]

    def _report(self, what: str) -> None:
        if self.context.progress:
            total = int(self.settings["programs"])
            self.context.progress(min(len(self.seen), total), total, what)


def simplified(program: Program, fitness: Callable[[Program], float], *, floor: float) -> tuple[Program, float]:
    """(program, fitness) without the statements whose removal leaves fitness at ``floor`` or above.

    Removals are tried one after another, the last statement first, until a pass changes nothing; ``floor`` stays where
    it is, so that small losses do not add up (choice). A statement is dropped, or bypassed (see `removals`).
    """
    program = without_dead_code(program)
    found, changed = fitness(program), True
    while changed:
        changed = False
        for at in reversed(range(len(program.statements))):
            tries = [(fitness(child), child) for child in map(without_dead_code, removals(program)[at])]
            best = max(tries, key=lambda entry: entry[0], default=None)
            if best is not None and best[0] >= floor:
                (found, program), changed = best, True
                break
    return program, found


def _child(parent: Program, generator: np.random.Generator, longest: int) -> Program:
    """The parent after as many mutations as it takes to change what it computes."""
    program = parent
    for _ in range(CHILDREN):
        program = mutate(program, generator, longest=longest) or program
        if program.digest != parent.digest:
            return program
    return parent


def tuned(fitness: Callable[[float], float], grid: Sequence[float], step: float) -> tuple[float, float]:
    """(fitness, rate) of the best rate; the grid grows by ``step`` while its best is at an edge, a few times."""
    tried = {rate: fitness(rate) for rate in grid}
    for _ in range(WIDENINGS):
        best = max(tried, key=lambda rate: tried[rate])
        if tried[best] == WORST or min(tried) < best < max(tried):
            break
        further = best * step if best == max(tried) else best / step
        tried[further] = fitness(further)
    best = max(tried, key=lambda rate: tried[rate])
    return tried[best], best


@contextmanager
def _opened(journal: Path | None) -> Iterator[IO[str] | None]:
    """The journal, held by this process alone."""
    if journal is None:
        yield None
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another search writes {journal}.", next_step="wait for it, or name another file"
            ) from error
        yield file


def read_program(path: Path) -> Program:
    """The rule in a ``program.json`` of `discover_optimizer`. Raises RunError: no such file; DataError: no program."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} holds no program.", next_step="ontarget discover-optimizer DATA -o FOLDER") from error
    return from_json(value.get("program") if isinstance(value, dict) else value)
