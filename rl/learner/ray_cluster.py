"""The Ray cluster of a run: one on this machine that ends with it, listening on loopback alone, or a running one that is joined."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from samepath.rl.machine import set_missing_variables
from samepath.rl.recipe.cluster import LOOPBACK, RaySettings


class ClusterStartError(ConnectionError):
    """No cluster can be had as the recipe asks for it; the message says what to do."""


@contextmanager
def running_cluster(settings: RaySettings) -> Iterator[None]:
    """A cluster to work on; one that this process is part of already is taken, and left, as it is."""
    if ray.is_initialized():
        yield
        return
    start_cluster(settings)
    try:
        yield
    finally:
        stop_cluster()


def start_cluster(settings: RaySettings) -> None:
    """Start or join the cluster.

    Raises:
        ClusterStartError: a local one cannot listen where it should.
        ConnectionError: the address does not answer (from Ray).
    """
    set_missing_variables(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
    )
    # Where Ray thinks of clusters of several machines, it reads 127.0.0.1 as this machine's other address, and what is asked to listen on
    # loopback listens everywhere. What RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 says, said to a Ray that may have been imported long ago.
    ray_constants.ENABLE_RAY_CLUSTER = False
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if settings.address != "local":
        ray.init(address=settings.address, **options)
        return
    if settings.listen_address not in own_addresses():
        raise ClusterStartError(
            f"ray.listen_address must be an address of this machine, one of {', '.join(own_addresses())}; got {settings.listen_address}"
        )
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=settings.object_store_bytes,
        _node_ip_address=settings.listen_address,
        **options,
    )
    if (listens := ray_worker._global_node.node_ip_address) != settings.listen_address:
        stop_cluster()
        raise ClusterStartError(
            f"Ray {ray.__version__} must listen on ray.listen_address={settings.listen_address}; it listens on {listens}, and was ended. "
            "Install a version that pyproject.toml names, or set runtime=inline."
        )


def stop_cluster() -> None:
    """Leave the cluster; one that was started here ends."""
    ray.shutdown()


def own_addresses() -> list[str]:
    """IP addresses of this machine's interfaces, loopback first."""
    found = {
        entry.address.split("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    return sorted(found, key=lambda address: (address != LOOPBACK, address))
