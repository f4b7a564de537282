"""A run on a Ray cluster of three nodes, all of this machine and on loopback: where its actors stand, and what the loss of a node costs."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("ray")

import ray
from ray._private import ray_constants
from ray._private import state as ray_state
from ray.cluster_utils import Cluster

from samepath.rl.loop import Loop
from samepath.rl.machine import set_missing_variables
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.run_folder import step_of
from samepath.rollout.pool.ray_bundles import NoRoomError, RayBundles
from samepath.rollout.pool.settings import Placing
from tests.rl.attempts import Attempts
from tests.rl.test_killed_runs import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RUN: dict[str, Any] = {
    **SMALL,
    "reward": {"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 16}}},
    "evaluation": {"every": 0},
    "learner": {"min_passes": 2},
    "checkpoint": {"every": 1, "keep": 8},
}
NODE = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
SPREAD = ("rollout.placing=spread", "ray.learner_placing=spread", "rollout.num_workers=2")


class Nodes:
    """A head with one CPU and two nodes with two."""

    def __init__(self) -> None:
        set_missing_variables({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})
        # As for a run's own cluster: else Ray listens on all interfaces.
        ray_constants.ENABLE_RAY_CLUSTER = False
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            self.add()

    def add(self) -> None:
        """One more node."""
        self.cluster.add_node(**NODE, num_cpus=2)

    def kill(self, node_id: str) -> None:
        """SIGKILL to the processes of a node, as when its machine loses power."""
        (node,) = [one for one in self.cluster.worker_nodes if one.node_id == node_id]
        raylet = psutil.Process(node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            os.kill(process.pid, signal.SIGKILL)

    def listening(self) -> list[str]:
        """Addresses on which anything of the cluster listens."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                connections = process.net_connections("inet")
            except psutil.Error:
                continue
            found += [str(one.laddr.ip) for one in connections if one.status == psutil.CONN_LISTEN]
        return found


def living(kind: str) -> list[str]:
    """The nodes of the living actors of a class."""
    found = [ray_state.actors(one) for one in ray_state.actors()]
    return [one["Address"]["NodeID"] for one in found if one["State"] == "ALIVE" and kind in str(one["ActorClassName"])]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of its own for each test, because tests lose nodes."""
    made = Nodes()
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()


def recipe(folder: Path, name: str, *settings: str) -> Recipe:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return load_recipe(path, [f"runs_dir={folder / 'runs'}", f"name={name}", *settings], Recipe)


def on(nodes: Nodes, folder: Path, name: str, *settings: str) -> Recipe:
    """The recipe of a run that joins the cluster."""
    address = f"ray.address={nodes.cluster.address}"
    return recipe(folder, name, "runtime=ray", address, "rollout.stall_timeout_s=60", *SPREAD, *settings)


def learned(of: Recipe) -> bytes:
    return (of.run_dir / "checkpoints" / "step-000003" / "model.safetensors").read_bytes()


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Callable[[], None]) -> None:
    """Do something once, at the beginning of a step."""
    original, left = Loop.one_step, [act]

    def one_step(self: Loop, step: int) -> dict[str, float]:
        if step == wanted and left:
            left.pop()()
        return original(self, step)

    monkeypatch.setattr(Loop, "one_step", one_step)


def test_run_on_three_nodes_spreads_ranks_and_workers_and_learns_what_one_process_learns(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(tmp_path, "whole", "runtime=inline")
    start_run(whole, tmp_path)
    seen: dict[str, list[str]] = {}
    addresses: list[str] = []

    def look() -> None:
        seen.update({kind: living(kind) for kind in ("RankHost", "RolloutWorker")})
        addresses.extend(nodes.listening())

    at_step(monkeypatch, 1, look)
    spread = on(nodes, tmp_path, "spread", "learner.ranks=2")
    start_run(spread, tmp_path)
    assert [len(set(seen[kind])) for kind in ("RankHost", "RolloutWorker")] == [2, 2], seen
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert learned(spread) == learned(whole)


def test_run_that_loses_a_node_with_a_worker_has_it_on_another_node_and_goes_on(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(tmp_path, "whole", "runtime=inline")
    start_run(whole, tmp_path)
    lost: list[str] = []

    def lose() -> None:
        head, ranks = nodes.cluster.head_node.node_id, living("RankHost")
        lost.extend(node for node in living("RolloutWorker") if node not in (head, *ranks))
        assert lost
        nodes.kill(lost[0])

    at_step(monkeypatch, 1, lose)
    cut = on(nodes, tmp_path, "cut")
    summary = start_run(cut, tmp_path)
    # Twice where Ray puts it on the lost node once more, before it knows.
    assert summary["failures"]["rollout/replaced_workers"] in (1.0, 2.0)
    assert learned(cut) == learned(whole)


def test_run_that_loses_the_node_of_its_learner_says_so_and_goes_on_elsewhere(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray may put it on the lost node once more, before it knows of the loss: that costs a restart."""
    whole = recipe(tmp_path, "whole", "runtime=inline")
    start_run(whole, tmp_path)
    # Two CPUs for the rank: it cannot stand on the head.
    cut = on(nodes, tmp_path, "cut", "ray.learner_cpus=2", "rollout.num_workers=1", "learner.restarts=3")
    at_step(monkeypatch, 1, lambda: nodes.kill(living("RankHost")[0]))
    start_run(cut, tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"the learner \(process \d+ on 127\.0\.0\.1\) ended|a rank of the learner cannot be reached", said)
    assert "restart 1 of learner.restarts=3" in said
    assert learned(cut) == learned(whole)


def test_run_that_reserves_more_than_the_nodes_have_is_refused_with_what_there_is(nodes: Nodes, tmp_path: Path) -> None:
    much = on(nodes, tmp_path, "much", "rollout.cpus=3", "rollout.start_timeout_s=5")
    with pytest.raises(NoRoomError, match=r"room for 2 rollout workers .* of \{'CPU': 3\.0\} each; waited 5 s"):
        start_run(much, tmp_path)


@pytest.mark.parametrize(("placing", "distinct"), [("pack", 1), ("spread", 2)])
def test_bundles_stand_on_few_nodes_or_on_many(nodes: Nodes, placing: Placing, distinct: int) -> None:
    ray.init(address=nodes.cluster.address, logging_level="ERROR", log_to_driver=False)
    room = RayBundles("actors", 2, {"CPU": 1.0}, placing, 60.0)
    where = ray.remote(Where)
    actors = [where.options(**room.options(number)).remote() for number in range(2)]
    found = ray.get([actor.node.remote() for actor in actors], timeout=60)
    assert len(set(found)) == distinct
    for actor in actors:
        ray.kill(actor)
    room.close()
    deadline = time.monotonic() + 60
    while ray.available_resources()["CPU"] < 5:
        assert time.monotonic() < deadline, "the room must be given back"
        time.sleep(0.1)


class Where:
    """Says on which node it stands."""

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def test_run_whose_cluster_elsewhere_ends_says_so_and_goes_on_with_another(nodes: Nodes, tmp_path: Path) -> None:
    attempt, path = Attempts(), tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RUN))
    joined = ("runtime=ray", f"ray.address={nodes.cluster.address}", "rollout.stall_timeout_s=20", "rl.steps=100000")
    run_dir = tmp_path / "lost"
    ended: list[dict[str, Any]] = []
    thread = Thread(
        target=lambda: ended.append(attempt("run", str(path), f"runs_dir={tmp_path}", "name=lost", *joined)),
        daemon=True,
    )
    thread.start()
    await_step(run_dir, 2)
    nodes.cluster.head_node.kill_gcs_server(check_alive=False)
    thread.join(200)
    (end,) = ended
    assert end["status"] == 2, end["output"]
    assert "samepath resume" in end["output"]
    done = newest(run_dir)
    other = Nodes()
    try:
        more = (f"ray.address={other.cluster.address}", f"rl.steps={done + 1}")
        again = attempt("resume", str(run_dir), *more)
    finally:
        other.cluster.shutdown()
    assert again["status"] == 0, again["output"]
    whole = attempt("run", str(path), f"runs_dir={tmp_path}", "name=whole", "runtime=inline", f"rl.steps={done + 1}")
    assert whole["status"] == 0
    attempt.close()
    model = Path("checkpoints") / f"step-{done + 1:06d}" / "model.safetensors"
    assert (run_dir / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def newest(run_dir: Path) -> int:
    """Step of the newest checkpoint."""
    return max((step_of(path) for path in run_dir.glob("checkpoints/step-*")), default=0)


def await_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while newest(run_dir) < step:
        assert time.monotonic() < deadline
        time.sleep(0.1)
