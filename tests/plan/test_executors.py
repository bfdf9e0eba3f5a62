"""The two executors give the same results; Ray on a real local cluster of two nodes, where a
whole `fit` decides as it does in this process."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ontarget
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
    # Ray's workers step back for any other process; on two busy cores they would hardly run at all.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
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


def write_table(path: Path) -> Path:
    """400 rows of two classes of words, one in ten labelled wrongly: held-out validation and fine-tuning rungs."""
    generator = np.random.default_rng(1)
    words = {"animal": ["cat", "dog", "horse", "sheep", "goose"], "tool": ["hammer", "saw", "drill", "file", "plane"]}
    lines = ["text,label"]
    for row in range(400):
        label = str(generator.choice(list(words)))
        chosen = generator.choice(words[label], 2)
        shown = label if generator.random() > 0.1 else next(name for name in words if name != label)
        lines.append(f"a {chosen[0]} and the {chosen[1]} of number {row},{shown}")
    path.write_text("\n".join(lines) + "\n")
    return path


def outcome(run: Path) -> dict[str, Any]:
    """The chosen trial, and what every trial was and reached."""
    trials = [json.loads(path.read_text()) for path in sorted((run / "trials").glob("*/trial.json"))]
    kept = ("source", "method", "settings", "state", "metric", "curve")
    decision = json.loads((run / "stages" / "decision.json").read_text())["value"]
    return {
        "chosen": decision["number"],
        "trials": {row["number"]: {name: row[name] for name in kept} for row in trials},
    }


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_cluster_decides_as_this_process_does(cluster: str, tmp_path: Path) -> None:
    data = write_table(tmp_path / "rows.csv")
    found = {}
    for executor, address in (("local", None), ("ray", cluster)):
        run = ontarget.fit(
            data, input="text", target="label", pool=["zoo:wordllama"], budget_s=600, threads=1,
            executor=executor, ray_address=address, run=tmp_path / executor,
        )  # fmt: skip
        found[executor] = outcome(run.path)
    assert found["local"]["chosen"] == found["ray"]["chosen"]
    common = found["local"]["trials"].keys() & found["ray"]["trials"].keys()
    assert len(common) >= 4
    for number in common:  # the budget is ample, so that no measured time decides what is run
        assert found["local"]["trials"][number] == found["ray"]["trials"][number]
