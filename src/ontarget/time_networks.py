"""Milliseconds of a call of each of several networks on this device, side by side.

Timings go in alternating rounds: what disturbs one network disturbs all; rounds far off are left out. On a machine that
others use too a core's speed may change by half within a tenth of a second, so that every short call is timed between
calls of one and the same reference, and counts as a multiple of it (choice; see `rounds_of_calls`). Small networks are
built anew for the rounds, as where their memory lies may change their time by a tenth.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ontarget.errors import LimitError
from ontarget.values import Array, Context

if TYPE_CHECKING:
    import torch

    from ontarget.latency_table import Setting

ROUNDS = 9  # of all timings in turn (choice)
ROUND_MS = 6.0  # that an operator runs in a round at least (choice)
BLOCK_MS = 2.0  # that an operator runs between two timings of the reference (choice)
REFERENCE_MS = 1.0  # that a timing of the reference takes, one call at least, beside one to warm up (choice)
PAIRED_MS = 50.0  # of the reference up to which calls are timed beside it; longer ones even the speed out (choice)
# Builds of a small network, over which the rounds are spread, one each at least (choice). PyTorch's are copies, which
# cost next to nothing, and differ more from each other.
BUILDS = {"onnxruntime": 9, "pytorch": 18}
FEW_WEIGHTS = 5_000_000  # of a network up to which building it again is cheap (choice)
WARM_UP_CALLS = 3
OUTLIER = 3.5  # times the median absolute deviation, scaled to a normal's, that a round may be off (choice)


def make_call(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...], setting: Setting) -> Callable[[], Any]:
    """A function that runs the network once on ``inputs`` in the given setting; see `Maker`."""
    return Maker(network, inputs, setting).call()


class Maker:
    """A network ready to be built for its runtime, again and again: where its memory lies is then drawn anew.

    network: in evaluation mode. Raises LimitError naming what the runtime cannot run.
    """

    def __init__(self, network: torch.nn.Module, inputs: tuple[torch.Tensor, ...], setting: Setting) -> None:
        import torch

        self.setting, self.inputs = setting, inputs
        self.weights = sum(weight.numel() for weight in network.parameters())
        self.network: torch.nn.Module | None = network.eval()
        self.built = False
        if setting.runtime == "pytorch":
            if setting.precision == "bfloat16":
                self.network = network.to(torch.bfloat16)
                self.inputs = tuple(value.to(torch.bfloat16) if value.is_floating_point() else value
                                    for value in inputs)  # fmt: skip
            return
        import tempfile

        self.folder = tempfile.TemporaryDirectory()  # gone with this object
        self.path = self._exported(network, Path(self.folder.name))
        self.network = None

    def call(self) -> Callable[[], Any]:
        """Build it and return a function that runs it once."""
        import copy

        import torch

        if self.network is not None:
            network, inputs = copy.deepcopy(self.network) if self.built else self.network, self.inputs
            self.built = True

            def run_torch() -> None:
                with torch.inference_mode():
                    network(*inputs)

            return run_torch
        from ontarget.runtime.session import make_session

        session = self._told(lambda: make_session(self.path, threads=self.setting.threads))
        feeds = {f"input_{at}": value.numpy() for at, value in enumerate(self.inputs)}
        names = {entry.name for entry in session.get_inputs()}  # an input that is not used is no input
        feeds = {name: value for name, value in feeds.items() if name in names}
        return lambda: session.run(None, feeds)

    def _exported(self, network: torch.nn.Module, folder: Path) -> Path:
        from ontarget.compress.export import trace
        from ontarget.compress.quantize import int8_dynamic

        def export() -> Path:
            path = folder / "network.onnx"
            trace(network, self.inputs, path, input_names=[f"input_{at}" for at in range(len(self.inputs))])
            return int8_dynamic(path, folder / "int8.onnx") if self.setting.precision == "int8" else path

        self.name = type(network).__name__
        path: Path = self._told(export)
        return path

    def _told(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except Exception as error:  # torch's and ONNX Runtime's errors have no common root
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LimitError(
                f"ONNX Runtime cannot run {self.name}: {first}", option="--runtime",
                next_step="use --runtime pytorch, or leave this operator out of the space",
            ) from error  # fmt: skip


def time_builds(
    makers: Sequence[Maker], setting: Setting, *, context: Context = Context(), what: str = "timing"
) -> list[float]:
    """Milliseconds of one call of each, over `BUILDS` builds where networks are small; see `time_calls`.

    The same network built twice may differ by a tenth for as long as it lives, by where its memory lies.
    """
    builds = BUILDS[setting.runtime] if sum(maker.weights for maker in makers) < FEW_WEIGHTS * len(makers) else 1
    found = []
    for build in range(builds):
        order = np.random.default_rng(build).permutation(len(makers))
        calls: list[Any] = [None] * len(makers)
        for at in order:
            calls[at] = makers[at].call()
        found.append(
            rounds_of_calls(calls, setting, rounds=-(-ROUNDS // builds), seed=build, context=context, what=what)
        )
    return averaged(np.concatenate(found))


def time_calls(
    calls: Sequence[Callable[[], Any]],
    setting: Setting,
    *,
    rounds: int = ROUNDS,
    context: Context = Context(),
    what: str = "timing",
) -> list[float]:
    """Milliseconds of one call of each: the median of a round's calls, averaged over rounds that are not far off."""
    return averaged(rounds_of_calls(calls, setting, rounds=rounds, context=context, what=what))


def averaged(found: Array) -> list[float]:
    """(rounds, calls) milliseconds -> those of each call over the rounds.

    A round that was slow for all of them (geometric mean) is no outlier of any: calls and rounds are averaged apart.
    """
    level = np.exp(np.log(found).mean(1))
    return [without_outliers(found[:, at] / level) * without_outliers(level) for at in range(found.shape[1])]


def rounds_of_calls(
    calls: Sequence[Callable[[], Any]],
    setting: Setting,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    context: Context = Context(),
    what: str = "timing",
) -> Array:
    """(rounds, calls) milliseconds of one call: medians of each round, in which the calls take turns in a drawn order.

    Between timings of the reference, which is the call at the first quartile of durations: a call's share of it, times
    the reference's median of the round. Without one: a single call, and where it would take longer than `PAIRED_MS`.
    """
    import torch

    before = torch.get_num_threads()
    if setting.runtime == "pytorch":
        torch.set_num_threads(setting.threads)
    collecting = gc.isenabled()
    gc.disable()
    try:
        found = np.zeros((rounds, len(calls)))
        lasted = [min(_clocked(call, WARM_UP_CALLS)) for call in calls]
        quartile = int(np.argsort(lasted)[len(calls) // 4])
        reference = calls[quartile] if len(calls) > 1 and lasted[quartile] <= PAIRED_MS else None
        beside = int(np.clip(REFERENCE_MS / lasted[quartile], 1, 50))
        for turn in range(rounds):
            if context.progress is not None:
                context.progress(turn, rounds, what)
            references: list[float] = []
            for at in np.random.default_rng((seed, turn)).permutation(len(calls)):
                repeats = int(np.clip(ROUND_MS / lasted[at], 3, 200))
                if reference is None:
                    found[turn, at] = np.median(_clocked(calls[at], repeats))
                    continue
                shares = []
                block = int(np.clip(BLOCK_MS / lasted[at], 1, repeats))
                last = float(np.median(_clocked(reference, beside)))
                for _ in range(-(-repeats // block)):
                    times = _clocked(calls[at], block)
                    now = float(np.median(_clocked(reference, beside)))
                    shares += [2 * ms / (last + now) for ms in times]
                    references.append(now)
                    last = now
                found[turn, at] = np.median(shares)
            if reference is not None:
                found[turn] *= np.median(references)
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(before)
    return found


def _clocked(call: Callable[[], Any], times: int) -> list[float]:
    """Milliseconds of each of several calls, after one of them: what others pushed out of the caches comes back."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(max(1000 * (time.perf_counter() - start), 1e-6))
    return found


def without_outliers(times: Array) -> float:
    """Mean of what lies within 3.5 scaled median absolute deviations of the median."""
    middle = float(np.median(times))
    spread = 1.4826 * float(np.median(np.abs(times - middle)))
    return float(np.mean(times[np.abs(times - middle) <= OUTLIER * spread + 1e-12]))
