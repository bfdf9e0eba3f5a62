"""A table of operator latencies of this device, measured, from which the latency of whole networks is predicted.

A network's prediction is a constant plus the sum of its operators' entries. An operator timed on its own pays for
layouts and calls that a network shares, so that the sum is off by a factor; the entries are therefore corrected so that
they explain a few whole networks: theta = theta0 (1 + delta), least squares of the relative error of the networks with
a ridge on delta, its strength chosen by leave-one-out error (choice). Networks never used for that tell how well the
table predicts. How operators and networks are timed: `time_networks`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ontarget.errors import LimitError, RunError, SettingError
from ontarget.time_networks import FEW_WEIGHTS, Maker, time_builds
from ontarget.values import Array, Context

if TYPE_CHECKING:
    from ontarget.search.space import Code, ElasticNetwork, Operator

RUNTIMES = ("onnxruntime", "pytorch")
PRECISIONS = ("float32", "bfloat16", "int8")
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the correction; chosen by leave-one-out error (choice)
MOST_WEIGHTS = 800_000_000  # of networks that are timed in turn: 3 GB in float32 (choice)
VERSION = 1


@dataclass(frozen=True)
class Setting:
    """How networks run: what a latency depends on besides the device.

    runtime: "onnxruntime" or "pytorch". precision: "float32", "bfloat16" (pytorch), "int8" (onnxruntime, dynamic:
    weights of products). threads, batch_size: 1 or more.
    """

    runtime: Literal["onnxruntime", "pytorch"] = "onnxruntime"
    threads: int = 1
    batch_size: int = 1
    precision: Literal["float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise SettingError(f"runtime is '{self.runtime}'.", allowed=", ".join(RUNTIMES), option="--runtime")
        allowed = ("float32", "bfloat16") if self.runtime == "pytorch" else ("float32", "int8")
        if self.precision not in allowed:
            raise SettingError(
                f"precision is '{self.precision}' with {self.runtime}.", allowed=", ".join(allowed),
                option="--precision",
            )  # fmt: skip
        if self.threads < 1 or self.batch_size < 1:
            raise SettingError(
                f"threads is {self.threads} and batch_size {self.batch_size}.", allowed="1 or more",
                option="--threads, --batch-size",
            )  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured latency of whole networks that the table was not made from, milliseconds."""

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

    @property
    def kendall(self) -> float:
        """Kendall's tau-b; nan for fewer than two networks."""
        from scipy import stats

        return float(stats.kendalltau(self.predicted_ms, self.measured_ms).statistic)

    @property
    def median_error(self) -> float:
        """Median of |predicted - measured| / measured."""
        predicted, measured = np.array(self.predicted_ms), np.array(self.measured_ms)
        return float(np.median(np.abs(predicted - measured) / measured)) if len(measured) else float("nan")


@dataclass(frozen=True)
class LatencyTable:
    """Operator key -> milliseconds, for one device and setting.

    constant_ms: of every call. alone: operators' own times. fitted: whole networks that the entries are corrected by.
    """

    device: Mapping[str, Any]
    setting: Setting
    operators: Mapping[str, float]
    constant_ms: float = 0.0
    alone: Mapping[str, float] = field(default_factory=dict)
    fitted: int = 0
    agreement: Agreement = Agreement((), ())
    seconds: float = 0.0

    def predict(self, operators: Iterable[Operator]) -> float:
        """Milliseconds of one call. Raises LimitError naming an operator that the table lacks."""
        total = self.constant_ms
        for operator in operators:
            if operator.key not in self.operators:
                raise LimitError(
                    f"The latency table has no entry for {operator.key}.", option="--table",
                    next_step="make the table for this space: ontarget device profile",
                )  # fmt: skip
            total += self.operators[operator.key]
        return total

    def check_device(self, device: Mapping[str, Any] | None = None) -> None:
        """Raises RunError where the table was made on another processor or with another version of its runtime."""
        from ontarget.device import describe

        here = describe() if device is None else device
        package = {"onnxruntime": "onnxruntime", "pytorch": "torch"}[self.setting.runtime]
        for name in ("cpu", "cores", package):
            if self.device.get(name) != here.get(name):
                raise RunError(
                    f"The latency table is of another device: {name} is '{self.device.get(name)}' there and "
                    f"'{here.get(name)}' here.",
                    option="--table",
                    next_step="make one here with ontarget device profile, or search for that device with --any-device",
                )

    def save(self, path: Path) -> Path:
        """Write as JSON."""
        from ontarget.plan.run_folder import to_json, write_atomic

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json({"version": VERSION, **asdict(self)}))
        return path

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what `save` wrote. Raises RunError for what is no table, or one of another version."""
        try:
            content = json.loads(path.read_text())
            if content.pop("version") != VERSION:
                raise RunError(f"{path} is a latency table of another version.", next_step="make it anew")
            table = cls(**{
                **content,
                "setting": Setting(**content["setting"]),
                "agreement": Agreement(**{name: tuple(value) for name, value in content["agreement"].items()}),
            })  # fmt: skip
            for name, value in table.operators.items():
                if not (isinstance(value, int | float) and np.isfinite(value)):
                    raise RunError(f"{path}: the entry of {name} is {value!r}.", next_step="make the table anew")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} is no latency table ({type(error).__name__}: {error}).", option="--table",
                next_step="make one with ontarget device profile",
            ) from error  # fmt: skip
        return table


def check_output(path: Path) -> None:
    """Raises RunError, before any timing, where a table cannot be written to ``path``."""
    import tempfile

    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RunError(
            f"The latency table cannot be written to {path} ({error.strerror or error}).", option="--output",
            next_step="give the name of a file such as laptop.json",
        ) from error  # fmt: skip


def profile(
    space: ElasticNetwork,
    setting: Setting = Setting(),
    *,
    fitted: int | None = None,
    checked: int = 12,
    context: Context = Context(),
) -> LatencyTable:
    """Time every operator of a space on this device and correct the entries by ``fitted`` whole networks.

    fitted: random networks that the entries are corrected by; by default as many as there are operators, half as many
        where networks are large, 12 at least and 60 at most (choice); 0 keeps the operators' own times. checked:
        further ones, used for the agreement alone. Seeded by ``context.seed``.
    """
    start = time.monotonic()
    generator = np.random.default_rng(context.seed)
    found = operators_of(space)
    wanted = _fitted(space, len(found)) if fitted is None else fitted
    codes = _different(space, wanted + checked, generator)
    checked = min(checked, max(len(codes) - wanted, len(codes) // 2))  # a small space may have too few
    modules = list(found.values())
    total = len(modules) + len(codes)

    def made(done: int) -> None:
        if context.progress is not None:
            context.progress(done, total, "building operators and networks")

    from ontarget.device import describe
    from ontarget.search.operators import build_operator, operator_input

    makers = []
    for at, operator in enumerate(modules):
        made(at)
        makers.append(Maker(build_operator(operator), operator_input(operator, setting.batch_size), setting))
    # Operators and networks apart: after a large network an operator's data are out of the caches.
    alone = time_builds(makers, setting, context=context, what="timing operators")
    whole: list[float] = []
    anchor: list[Maker] = []
    while len(whole) < len(codes):  # as many networks together as memory should hold
        networks: list[Maker] = [*anchor]  # one that all have: by it they are set to the level of the first
        for code in codes[len(whole) :]:
            weights = sum(maker.weights for maker in networks)
            if len(networks) > len(anchor) and weights * (1 + 1 / len(networks)) > MOST_WEIGHTS:
                break
            made(len(modules) + len(whole) + len(networks) - len(anchor))
            networks.append(Maker(space.slice(code).eval(), space.example(setting.batch_size), setting))
        times = time_builds(networks, setting, context=context, what="timing whole networks")
        whole += [ms * whole[0] / times[0] for ms in times[1:]] if whole else times
        anchor = networks[:1]
    own = dict(zip(found, alone, strict=True))
    keys = [[operator.key for operator in space.operators(code)] for code in codes]
    kept = len(codes) - checked
    constant, entries = corrected(own, keys[:kept], whole[:kept])
    table = LatencyTable(describe(), setting, entries, constant, own, kept)
    predicted = tuple(table.predict(space.operators(code)) for code in codes[kept:])
    return replace(table, agreement=Agreement(predicted, tuple(whole[kept:])), seconds=time.monotonic() - start)


def _fitted(space: ElasticNetwork, operators: int) -> int:
    """How many whole networks correct a table."""
    from ontarget.search.space import draw

    network = space.slice(draw(space, np.random.default_rng(0)))
    few = sum(weight.numel() for weight in network.parameters()) < FEW_WEIGHTS
    return min(60, max(12, operators if few else operators // 2))


def operators_of(space: ElasticNetwork) -> dict[str, Operator]:
    """Key -> operator of everything that a space's networks may run.

    Found by changing one slot at a time from a few drawn codes, the largest and the smallest choice of every slot, so
    that what only shows at some depths is met too (choice).
    """
    from ontarget.search.space import draw

    generator = np.random.default_rng(0)
    starts = [
        space.canonical(tuple(slot.choices - 1 for slot in space.slots)),
        space.canonical(tuple(0 for _ in space.slots)),
        *(draw(space, generator) for _ in range(16)),
    ]
    found: dict[str, Operator] = {}
    for code in starts:
        for at, slot in enumerate(space.slots):
            for choice in range(slot.choices):
                changed = space.canonical((*code[:at], choice, *code[at + 1 :]))
                for operator in space.operators(changed):
                    found.setdefault(operator.key, operator)
    return found


def corrected(
    alone: Mapping[str, float], networks: Sequence[Sequence[str]], measured_ms: Sequence[float]
) -> tuple[float, dict[str, float]]:
    """(constant, entries), milliseconds, that explain whole networks, as near to the operators' own times as may be.

    alone: key -> own time. networks: the keys that each network runs. Without networks: the own times, constant 0.
    """
    if not len(networks):
        return 0.0, dict(alone)
    names = list(alone)
    own = np.array([alone[name] for name in names])
    counts = np.array([[keys.count(name) for name in names] for keys in map(list, networks)], dtype=float)
    measured = np.asarray(measured_ms, dtype=float)
    # One factor for all operators first, so that the ridge pulls towards the right scale.
    scale = float(np.median(measured / (counts @ own)))
    share = counts * own * scale / measured[:, None]  # of each operator in its network's time
    usual = np.median(measured)
    design = np.column_stack([share, 0.1 * usual / measured])  # the last column: a constant, 10% of a network's time
    rest = 1 - share.sum(axis=1)
    ridge = min(RIDGES, key=lambda strength: _left_out(design, rest, strength))
    gram = design.T @ design + ridge * np.eye(design.shape[1])
    delta = np.linalg.solve(gram, design.T @ rest)
    entries = own * scale * np.maximum(1 + delta[:-1], 0.05)  # no operator is free
    return float(delta[-1] * 0.1 * usual), dict(zip(names, entries.tolist(), strict=True))


def _left_out(design: Array, rest: Array, strength: float) -> float:
    """Mean squared leave-one-out error of ridge regression."""
    gram = design.T @ design + strength * np.eye(design.shape[1])
    hat = design @ np.linalg.solve(gram, design.T)
    residual = (rest - hat @ rest) / np.maximum(1 - np.diag(hat), 1e-6)
    return float(np.mean(residual**2))


def _different(space: ElasticNetwork, count: int, generator: np.random.Generator) -> list[Code]:
    """Up to ``count`` different codes, drawn."""
    from ontarget.search.space import draw

    found: dict[Code, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found.setdefault(draw(space, generator))
    return list(found)
