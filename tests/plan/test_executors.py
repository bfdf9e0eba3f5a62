"""The two executors give the same results; Ray on a real local cluster of two nodes."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from ontarget.errors import SettingError
from ontarget.plan.executors import LocalExecutor, make_executor


def scaled_sum(job: int, shared: np.ndarray) -> tuple[float, str]:
    """Module-level, as executors ask for; says where it ran."""
    node = os.environ.get("RAY_NODE_ID", "")
    try:
        import ray

        if ray.is_initialized():
            node = ray.get_runtime_context().get_node_id()
    except ImportError:
        pass
    return float(job * shared.sum()), node


def failing(job: int, shared: object) -> None:
    raise SettingError(f"job {job} is wrong", option="--nothing")


def test_local_runs_in_order() -> None:
    results = list(LocalExecutor().run(scaled_sum, [1, 2, 3], np.ones(4)))
    assert [(position, value) for position, (value, _) in results] == [(0, 4.0), (1, 8.0), (2, 12.0)]


def test_unknown_executor_is_named() -> None:
    with pytest.raises(SettingError, match="Unknown executor 'spark'"):
        make_executor("spark")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # Workers import the jobs' functions by module name.
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.cluster
def test_ray_on_two_nodes_gives_what_local_gives(cluster: str) -> None:
    executor = make_executor("ray", address=cluster)
    assert executor.slots == 2
    jobs, shared = list(range(8)), np.arange(5.0)
    there = dict(executor.run(scaled_sum, jobs, shared))
    here = dict(LocalExecutor().run(scaled_sum, jobs, shared))
    assert {position: value for position, (value, _) in there.items()} == {
        position: value for position, (value, _) in here.items()
    }


@pytest.mark.cluster
def test_ray_tells_a_job_s_own_error(cluster: str) -> None:
    executor = make_executor("ray", address=cluster)
    with pytest.raises(SettingError, match="job 0 is wrong"):
        list(executor.run(failing, [0], None))
