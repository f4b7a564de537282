"""Calls into a Ray that hangs, that is dead, and that is elsewhere, with stand-ins for its processes."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest.mock import MagicMock

import psutil
import pytest

pytest.importorskip("ray")

from ray.exceptions import RayActorError

from samepath.rollout.engine_errors import ClusterLostError
from samepath.rollout.pool import ray_calls
from samepath.rollout.pool.ray_calls import ask, end_actor, hangs


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def node(raylet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Ray's node of a cluster that was started here, its raylet being `raylet`."""
    made = MagicMock(all_processes={"raylet": [MagicMock(process=raylet)]}, gcs_address="127.0.0.1:1")
    made.dead_processes.side_effect = lambda: [("raylet", raylet)] if raylet.poll() is not None else []
    made.live_processes.side_effect = lambda: [("raylet", raylet)] if raylet.poll() is None else []
    monkeypatch.setattr(ray_calls, "ray_worker", MagicMock(_global_node=made))
    monkeypatch.setattr(ray_calls, "GRACE_S", 0.1)
    monkeypatch.setattr(ray_calls, "_hung", [])
    return made


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


def test_ask_a_ray_that_hangs_says_what_for_how_long_and_whose_process_is_stopped(
    node: MagicMock, raylet: subprocess.Popen[bytes]
) -> None:
    stop(raylet)
    hanging = threading.Event()
    said = (
        rf"waited 1 s for the weights, and Ray does not answer \(Ray's raylet, process {raylet.pid}, is stopped\)\. .*"
        "`samepath resume`"
    )
    with pytest.raises(ClusterLostError, match=said):
        ask("the weights", 0.5, hanging.wait)
    assert hangs()
    hanging.set()
    ray_calls._hung[0].join(10.0)
    assert not hangs()


def test_ask_a_dead_cluster_makes_no_call(node: MagicMock, raylet: subprocess.Popen[bytes]) -> None:
    kill(raylet)
    with pytest.raises(
        ClusterLostError, match=rf"raylet \(process {raylet.pid}\) has ended \(signal SIGKILL\), while .* for this"
    ):
        ask("this", 5.0, lambda: pytest.fail("a call into a dead cluster may end this process"))


def test_ask_a_cluster_that_dies_meanwhile_ends_the_wait(node: MagicMock, raylet: subprocess.Popen[bytes]) -> None:
    hanging = threading.Event()

    def call() -> None:
        raylet.kill()
        hanging.wait()

    with pytest.raises(ClusterLostError, match="has ended"):
        ask("this", 300.0, call)
    assert not hangs(), "it was in time"
    hanging.set()


def test_ask_names_the_cluster_where_an_actor_died_with_it(node: MagicMock, raylet: subprocess.Popen[bytes]) -> None:
    def call() -> None:
        raise RayActorError

    with pytest.raises(RayActorError):
        ask("this", 5.0, call)

    def dying() -> None:
        kill(raylet)
        raise RayActorError

    with pytest.raises(ClusterLostError):
        ask("this", 5.0, dying)


def test_ask_a_joined_cluster_knows_its_end_by_its_address(node: MagicMock) -> None:
    node.all_processes = {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        node.gcs_address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ask("this", 5.0, lambda: 7) == 7
    with pytest.raises(ClusterLostError, match=f"the Ray cluster at {node.gcs_address} has ended"):
        ask("this", 5.0, lambda: 7)


def test_ask_a_joined_cluster_that_cannot_be_reached_leaves_the_wait_to_its_bound(
    node: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.all_processes = {}
    monkeypatch.setattr(ray_calls.socket, "create_connection", MagicMock(side_effect=TimeoutError))
    assert ask("this", 5.0, lambda: 7) == 7


def test_end_actor_asks_a_ray_that_lives_and_no_other(
    node: MagicMock, raylet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = MagicMock()
    monkeypatch.setattr(ray_calls, "ray", fake)
    end_actor("a")
    fake.kill.assert_called_once_with("a", no_restart=True)
    hanging = threading.Event()
    with pytest.raises(ClusterLostError):
        ask("this", 0.0, hanging.wait)
    end_actor("b")
    hanging.set()
    ray_calls._hung[0].join(10.0)
    kill(raylet)
    end_actor("c")
    assert fake.kill.call_count == 1
