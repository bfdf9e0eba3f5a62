"""Where trials run: in this process, or on a Ray cluster. Same jobs, same results, in the order of the jobs.

A job is a picklable value and the function a module-level one, so that neither needs a shared disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ontarget.errors import OnTargetError, SettingError, require_extra

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


class Executor(Protocol):
    """Runs jobs; yields ``(position, outcome)`` as they finish, in any order.

    slots: jobs that run at the same time. cores: CPU cores that one job may use, 0 for all of this machine's.
    """

    slots: int
    cores: int

    def run(self, function: Callable[..., Outcome], jobs: Sequence[Job], shared: Any) -> Iterator[tuple[int, Outcome]]:
        """``function(job, shared)`` for every job. ``shared`` is sent once to each place that works."""
        ...


class LocalExecutor:
    """One job after the other in this process: each has all cores, and nothing is pickled."""

    slots = 1
    cores = 0

    def run(self, function: Callable[..., Outcome], jobs: Sequence[Job], shared: Any) -> Iterator[tuple[int, Outcome]]:
        for position, job in enumerate(jobs):
            yield position, function(job, shared)


class RayExecutor:
    """Jobs as Ray tasks. A task whose node dies is run again elsewhere (it has no side effect).

    address: of a running cluster ("auto", "ray://host:10001"); None starts one on this machine.
    cores: CPU cores that each job asks for; fewer where no node has so many, since such a job would wait for ever.
    """

    def __init__(self, address: str | None = None, *, cores: int = 1) -> None:
        require_extra("ray", "ray", "The executor 'ray'")
        import ray

        self._ray = ray
        if not ray.is_initialized():
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        self.cores = max(1, min(cores, max(nodes, default=1)))
        self.slots = max(1, sum(count // self.cores for count in nodes))

    def run(self, function: Callable[..., Outcome], jobs: Sequence[Job], shared: Any) -> Iterator[tuple[int, Outcome]]:
        ray = self._ray
        reference = ray.put(shared)
        task = ray.remote(num_cpus=self.cores, max_retries=3)(function)
        pending = {task.remote(job, reference): position for position, job in enumerate(jobs)}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1)
                try:
                    outcome = ray.get(ready[0])
                except ray.exceptions.RayTaskError as error:
                    # The job's own error, as the local executor raises it.
                    raise error.cause if isinstance(error.cause, OnTargetError) else error from None
                yield pending.pop(ready[0]), outcome
        finally:
            for left in pending:
                ray.cancel(left, force=True)


def make_executor(name: str, *, address: str | None = None, cores: int = 1) -> Executor:
    """The executor called ``name``: "local" or "ray" (``ray`` with an address: a cluster that runs already)."""
    if name == "local":
        return LocalExecutor()
    if name == "ray":
        return RayExecutor(address, cores=cores)
    raise SettingError(f"Unknown executor '{name}'.", allowed="local, ray", option="--executor")
