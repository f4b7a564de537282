"""Where Ray is told to listen, with stand-ins for Ray."""

from unittest.mock import MagicMock

import pytest

pytest.importorskip("ray")

from samepath.rl.learner import ray_cluster
from samepath.rl.learner.ray_cluster import ClusterStartError, start_cluster
from samepath.rl.recipe.cluster import RaySettings


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A Ray that listens on 127.0.0.1 whatever it is told, on a machine with two addresses."""
    fake = MagicMock(__version__="2.60")
    monkeypatch.setattr(ray_cluster, "ray", fake)
    monkeypatch.setattr(ray_cluster, "ray_worker", MagicMock(_global_node=MagicMock(node_ip_address="127.0.0.1")))
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
    assert ray.init.call_args.kwargs == {"address": "127.0.0.1:6379", "logging_level": "ERROR", "log_to_driver": False}


def test_own_addresses_begin_with_loopback() -> None:
    assert ray_cluster.own_addresses()[0] == "127.0.0.1"
