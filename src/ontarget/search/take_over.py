"""What a search takes over from earlier ones of its space: networks to start from, and a space cut down.

The warm start and PopDB of Sarah et al., arXiv 2202.12954: the first population holds the earlier searches' fronts, and
choices that their clusters of visited configurations hardly make are left out (`shrink_space`). Only configurations are
taken over. Quality and latency of an earlier search are of another training and another device: they say which
networks were its front, and every network is evaluated anew.
Checked: tests/search/test_take_over.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ontarget.errors import RunError, SettingError
from ontarget.plan.run_folder import Clock, RunFolder
from ontarget.search.genetic import non_dominated
from ontarget.search.population_store import EarlierSearch, PopulationStore, Visited
from ontarget.search.shrink_space import SMALLEST_CLUSTER, ShrunkSpace, shrink_space
from ontarget.search.space import Code, ElasticNetwork, check_code, count

SHOWN_SLOTS = 40  # lines of dropped choices that are printed


@dataclass(frozen=True)
class Earlier:
    """Where to take over from. codes: given as they are. folders: of earlier searches. store: read and written.

    whole_space: start from what there is, but leave no choice out.
    """

    codes: tuple[Code, ...] = ()
    folders: tuple[Path, ...] = ()
    store: PopulationStore | None = None
    whole_space: bool = False

    def check(self, output: Path) -> None:
        """Raises RunError or SettingError, before any work, for folders that cannot be used."""
        if self.store is not None:
            if self.store.path.resolve() == output.resolve():
                raise SettingError(
                    f"{output} is the search's own folder.", option="--store", next_step="give another folder"
                )
            self.store.check()
        for folder in self.folders:
            if folder.resolve() == output.resolve():
                raise SettingError(
                    f"{output} is the search's own folder.", option="--warm-start",
                    next_step="leave --warm-start out to go on with that search, or choose another --output",
                )  # fmt: skip
            EarlierSearch(folder).check()

    def read(self, space: ElasticNetwork, described: Mapping[str, Any], task: str) -> list[Visited]:
        """What the folders and the store hold of this space; errors as of `EarlierSearch` and `PopulationStore`."""
        for code in self.codes:
            check_code(space, code)
        found = [EarlierSearch(folder).read(space, described["name"], task) for folder in self.folders]
        if self.store is not None:
            known = {one.codes for one in found}  # a search may be given by its folder and lie in the store too
            found += [one for one in self.store.read(space, described, task) if one.codes not in known]
        return found


@dataclass(frozen=True)
class TakenOver:
    """start: canonical codes of the whole space, first ones first. kept: the choices left of each slot; None for all.

    sources: a mapping a search taken from: origin, device, setting, visited (networks), note. visited: different
    networks of all of them. dropped: (slot, labels of its choices that are left out). configurations, reduced_to: codes
    of the whole space and of the space searched. reason: why nothing is dropped, "" otherwise or where nothing was
    asked for. folders, whole_space: as asked. name: of this search's file in a store.
    """

    start: tuple[Code, ...] = ()
    kept: tuple[tuple[int, ...], ...] | None = None
    sources: tuple[Mapping[str, Any], ...] = ()
    visited: int = 0
    dropped: tuple[tuple[str, tuple[str, ...]], ...] = ()
    configurations: int = 0
    reduced_to: int = 0
    reason: str = ""
    folders: tuple[str, ...] = ()
    whole_space: bool = False
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TakenOver:
        """What `to_json` gave."""
        kept = stored["kept"]
        return cls(**{
            **stored,
            "start": tuple(tuple(code) for code in stored["start"]),
            "kept": None if kept is None else tuple(tuple(choices) for choices in kept),
            "sources": tuple(stored["sources"]),
            "dropped": tuple((slot, tuple(choices)) for slot, choices in stored["dropped"]),
            "folders": tuple(stored["folders"]),
        })  # fmt: skip

    def check_asked(self, earlier: Earlier, output: Path) -> None:
        """Raises RunError where a search that goes on is given another start than it began with."""
        asked = tuple(str(folder.resolve()) for folder in earlier.folders)
        changed = "--warm-start" if asked and asked != self.folders else ""
        changed = changed or "--whole-space" * (earlier.whole_space and self.kept is not None)
        if changed:
            raise RunError(
                f"The search in {output} goes on as it began, with another {changed}.", option=changed,
                next_step=f"leave {changed} out, or choose another --output",
            )  # fmt: skip

    def space(self, whole: ElasticNetwork) -> ElasticNetwork:
        """The space to search."""
        return whole if self.kept is None else ShrunkSpace(whole, self.kept)

    def lines(self) -> list[str]:
        """For people: what was taken over, what was dropped, or why nothing was. Empty where nothing was asked for."""
        if not self.sources and not self.reason:
            return []
        found = []
        if self.sources:
            found.append(
                f"Taken over: {self.visited:,} networks that {len(self.sources)} earlier search(es) visited; "
                f"their fronts ({len(self.start)}) start this one. All are evaluated anew."
            )
            found += [f"from {source_line(source)}" for source in self.sources]
        found += [f"{slot}: {'; '.join(choices)} dropped" for slot, choices in self.dropped[:SHOWN_SLOTS]]
        if len(self.dropped) > SHOWN_SLOTS:
            found.append(f"and choices of {len(self.dropped) - SHOWN_SLOTS} further slots")
        if self.dropped:
            found.append(f"{short(self.configurations)} -> {short(self.reduced_to)} configurations")
        if self.reason:
            found.append(f"No choice is dropped: {self.reason}.")
        return found


def source_line(source: Mapping[str, Any]) -> str:
    """One earlier search: its device, how networks ran there, and how many it visited."""
    setting = source["setting"]
    how = (
        f"{setting['runtime']} {setting['precision']}, {setting['threads']} thread(s), batch {setting['batch_size']}"
        if {"runtime", "precision", "threads", "batch_size"} <= set(setting)
        else "unknown setting"
    )
    parts = [source["device"] or "unknown device", how, f"{source['visited']} networks", source["note"]]
    return ", ".join(part for part in parts if part) + f" ({source['origin']})"


def short(number: int) -> str:
    """A count as people write it: 840, 3.4e6."""
    return f"{number:,}" if number < 100_000 else f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


def take_over(
    space: ElasticNetwork,
    earlier: Earlier,
    visited: Sequence[Visited],
    *,
    within: Callable[[ElasticNetwork], bool] = lambda _: True,
    others: int = 0,
    name: str = "",
) -> TakenOver:
    """Decide what starts the search and which choices are left out.

    visited: what `Earlier.read` gave. within: whether a space's fastest network keeps the latency limit: where the
    space cut down does not, the whole one is searched. others: searches of other spaces or tasks in the store.
    """
    codes = tuple(dict.fromkeys(code for one in visited for code in one.codes))
    shrunk, reason = _shrunk(space, earlier, codes, within, others)
    start = tuple(dict.fromkeys([*(space.canonical(code) for code in earlier.codes), *fronts(visited)]))
    if shrunk is not None:
        start = tuple(code for code in start if shrunk.inner(code) is not None)
    return TakenOver(
        start,
        None if shrunk is None else shrunk.kept,
        tuple(
            {"origin": one.origin, "device": one.device, "setting": dict(one.setting), "visited": len(one.codes),
             "note": one.note}
            for one in visited
        ),
        len(codes), () if shrunk is None else shrunk.dropped, count(space), count(shrunk or space), reason,
        tuple(str(folder.resolve()) for folder in earlier.folders), earlier.whole_space, name,
    )  # fmt: skip


def read_earlier(
    folder: RunFolder, earlier: Earlier, space: ElasticNetwork, described: Mapping[str, Any], task: str
) -> list[Visited]:
    """What earlier searches visited, read and checked before any work; nothing where ``folder``'s search goes on."""
    if folder.has("taken_over"):
        TakenOver.from_json(folder.read("taken_over")).check_asked(earlier, folder.path)
        return []
    return earlier.read(space, described, task)


def taken_over_once(
    folder: RunFolder,
    clock: Clock,
    earlier: Earlier,
    visited: Sequence[Visited],
    space: ElasticNetwork,
    described: Mapping[str, Any],
    task: str,
    within: Callable[[ElasticNetwork], bool],
) -> TakenOver:
    """`take_over`, decided once and kept in the folder. visited: what `read_earlier` gave."""
    import uuid

    def decide() -> dict[str, Any]:
        begun = (folder.path / "evaluated.jsonl").exists()  # before this stage was kept: its space stays
        others = earlier.store.others(described, task) if earlier.store else 0
        plan = replace(earlier, whole_space=True) if begun else earlier
        return take_over(space, plan, visited, within=within, others=others, name=uuid.uuid4().hex[:16]).to_json()

    return TakenOver.from_json(folder.once("taken_over", decide, clock=clock))


def _shrunk(
    space: ElasticNetwork,
    earlier: Earlier,
    codes: Sequence[Code],
    within: Callable[[ElasticNetwork], bool],
    others: int,
) -> tuple[ShrunkSpace | None, str]:
    if not earlier.folders and earlier.store is None:
        return None, ""
    if not codes:
        more = f" (searches of other spaces, data or splits: {others})" if others else ""
        empty = "store holds nothing of this space and these data" if earlier.store else "search visited nothing"
        return None, f"the {empty} yet{more}"
    if earlier.whole_space:
        return None, "the whole space is asked for"
    if len(codes) < SMALLEST_CLUSTER:
        return None, f"{len(codes)} different networks were visited, and a cluster needs {SMALLEST_CLUSTER}"
    shrunk = shrink_space(space, codes)
    if not shrunk.dropped:
        return None, "what was visited forms no clusters, or they make every choice"
    if not within(shrunk):
        return None, "the space cut down has no network within the latency limit of this device"
    return shrunk, ""


def fronts(visited: Sequence[Visited]) -> list[Code]:
    """The front of each earlier search, by quality, one of each in turn. Values are compared within a search alone."""
    ordered = []
    for one in visited:
        front = sorted(non_dominated(one.values), key=lambda at: one.values[at, 0]) if len(one.codes) else []
        ordered.append([one.codes[at] for at in front])
    return list(dict.fromkeys(code for turn in zip_longest(*ordered) for code in turn if code is not None))
