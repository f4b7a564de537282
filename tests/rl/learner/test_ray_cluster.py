"""Where Ray is told to listen, and how long anybody waits for it, with stand-ins for Ray."""

import threading
from unittest.mock import MagicMock

import pytest

pytest.importorskip("ray")

from samepath.rl.learner import ray_cluster
from samepath.rl.learner.ray_cluster import ClusterStartError, running_cluster, start_cluster, stop_cluster
from samepath.rl.recipe.cluster import RaySettings
from samepath.rollout.bounded_call import bounded, overdue
from samepath.rollout.engine_errors import ClusterLostError
from samepath.rollout.pool import ray_calls
from samepath.rollout.pool.ray_calls import RAY


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A Ray that listens on 127.0.0.1 whatever it is told, on a machine with two addresses."""
    for thread in overdue(RAY):
        # Of the test before, which has let it go.
        thread.join(10.0)
    fake = MagicMock(__version__="2.60")
    node = MagicMock(node_ip_address="127.0.0.1")
    node.live_processes.return_value = []
    monkeypatch.setattr(ray_cluster, "ray", fake)
    monkeypatch.setattr(ray_cluster, "ray_worker", MagicMock(_global_node=node))
    monkeypatch.setattr(ray_cluster, "own_addresses", lambda: ["127.0.0.1", "192.0.2.7"])
    return fake


def test_start_cluster_tells_ray_where_to_listen_and_opens_no_dashboard(ray: MagicMock) -> None:
    start_cluster(RaySettings(object_store_bytes=90 << 20))
    told = ray.init.call_args.kwargs
    assert (told["address"], told["_node_ip_address"], told["include_dashboard"]) == ("local", "127.0.0.1", False)
    assert told["object_store_memory"] == 90 << 20


def test_start_cluster_that_listens_elsewhere_is_ended_and_refused(ray: MagicMock) -> None:
    with pytest.raises(ClusterStartError, match=r"must listen on ray\.listen_address=192\.0\.2\.7; it listens on 127"):
        start_cluster(RaySettings(listen_address="192.0.2.7"))
    assert ray.init.call_args.kwargs["_node_ip_address"] == "192.0.2.7"
    ray.shutdown.assert_called_once_with()


def test_start_cluster_at_an_address_of_another_machine_is_refused(ray: MagicMock) -> None:
    with pytest.raises(ClusterStartError, match=r"must be an address of this machine, one of 127\.0\.0\.1, 192"):
        start_cluster(RaySettings(listen_address="203.0.113.9"))
    ray.init.assert_not_called()


def test_start_cluster_joins_where_the_recipe_says(ray: MagicMock) -> None:
    start_cluster(RaySettings(address="127.0.0.1:6379"))
    told = ray.init.call_args.kwargs
    assert told == {"address": "127.0.0.1:6379", "logging_level": "ERROR", "log_to_driver": False}


def test_own_addresses_begin_with_loopback() -> None:
    assert ray_cluster.own_addresses()[0] == "127.0.0.1"


def test_start_cluster_that_hangs_ends_with_a_sentence(ray: MagicMock) -> None:
    hanging = threading.Event()
    ray.init.side_effect = lambda **options: hanging.wait()
    with pytest.raises(ClusterStartError, match=r"waited ray\.start_timeout_s=0 s for Ray to join auto"):
        start_cluster(RaySettings(address="auto", start_timeout_s=0.1))
    hanging.set()


def test_start_cluster_in_a_thread_that_lives_as_long_as_the_cluster(ray: MagicMock) -> None:
    """The kernel kills what a thread has started, and asked to end with it, when that thread ends."""
    threads = []
    ray.init.side_effect = lambda **options: threads.append(threading.current_thread())
    ray.is_initialized.return_value = False
    with running_cluster(RaySettings()):
        assert threads[0].is_alive()
    threads[0].join(10.0)
    assert not threads[0].is_alive()
    ray.shutdown.assert_called_once_with()


def test_stop_cluster_that_hangs_leaves_it_to_the_end_of_this_process(
    ray: MagicMock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, over, ends = threading.Event(), threading.Event(), MagicMock()
    monkeypatch.setattr(ray_cluster, "STOP_LIMIT_S", 0.1)
    monkeypatch.setattr(ray_cluster.atexit, "unregister", ends)
    ray.shutdown.side_effect = hanging.wait
    stop_cluster(over)
    assert "waited 0 s for Ray to end" in caplog.text
    assert ends.called, "Ray's own end at the end of the interpreter would hang too"
    assert not over.is_set(), "the raylet would be killed under the call that waits for it"
    hanging.set()


def test_stop_cluster_waits_for_calls_that_were_interrupted(ray: MagicMock) -> None:
    answered, order = threading.Event(), []

    def call() -> None:
        answered.wait(10)
        order.append("call")

    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded(RAY, 10.0, call, look)
    threading.Timer(0.2, answered.set).start()
    ray.shutdown.side_effect = lambda: order.append("shutdown")
    stop_cluster(threading.Event())
    assert order == ["call", "shutdown"]


def test_stop_cluster_under_a_call_that_hangs_ends_nothing_by_force(
    ray: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(ray_calls, "_hung", [])
    monkeypatch.setattr(ray_calls, "GRACE_S", 0.1)
    monkeypatch.setattr(ray_calls, "cluster_ended", lambda: "")
    with pytest.raises(ClusterLostError):
        ray_calls.ask("this", 0.0, hanging.wait)
    stop_cluster(threading.Event())
    ray.shutdown.assert_not_called()
    with pytest.raises(ClusterStartError, match="Start another process"), running_cluster(RaySettings()):
        pass
    hanging.set()
