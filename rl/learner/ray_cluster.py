"""The Ray cluster of a run: one on this machine that ends with it, listening on loopback alone, or a running one that is joined."""

import atexit
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from samepath.rl.machine import set_missing_variables
from samepath.rl.recipe.cluster import LOOPBACK, RaySettings
from samepath.rollout.bounded_call import OverdueError, bounded, overdue
from samepath.rollout.pool.ray_calls import RAY, hangs, stopped

STOP_LIMIT_S = 15.0
"""Longest wait for Ray to end by itself; it takes some 7 s where its head is gone."""

logger = logging.getLogger("samepath.cluster")


class ClusterStartError(ConnectionError):
    """No cluster can be had as the recipe asks for it; the message says what to do."""


@contextmanager
def running_cluster(settings: RaySettings) -> Iterator[None]:
    """A cluster to work on; one that this process is part of already is taken, and left, as it is."""
    if not _calls_ended():
        raise ClusterStartError(
            "a call of an earlier run still hangs in Ray, which cannot be used again in this process. Start another process."
        )
    if ray.is_initialized():
        yield
        return
    started_by = start_cluster(settings)
    try:
        yield
    finally:
        stop_cluster(started_by)


def start_cluster(settings: RaySettings) -> threading.Event:
    """Start or join the cluster; returns what lets go of it (see `stop_cluster`).

    Raises:
        ClusterStartError: it does not start in time, or a local one cannot listen where it should.
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
    options: dict[str, Any] = {"address": settings.address, "logging_level": "ERROR", "log_to_driver": False}
    local = settings.address == "local"
    if local and settings.listen_address not in own_addresses():
        raise ClusterStartError(
            f"ray.listen_address must be an address of this machine, one of {', '.join(own_addresses())}; got {settings.listen_address}"
        )
    if local:
        options |= {
            "include_dashboard": False,
            "object_store_memory": settings.object_store_bytes,
            "_node_ip_address": settings.listen_address,
        }
    over = threading.Event()
    try:
        # The kernel ends Ray's processes with the thread that started them, so that one stays.
        bounded(RAY, settings.start_timeout_s, lambda: ray.init(**options), stays_until=over)
    except OverdueError as error:
        over.set()
        atexit.unregister(ray_worker.shutdown)
        raise ClusterStartError(
            f"waited ray.start_timeout_s={settings.start_timeout_s:.0f} s for Ray to {'start' if local else f'join {settings.address}'}. Raise "
            "the limit, look at the logs in /tmp/ray/session_latest/logs, or set runtime=inline."
        ) from error
    if local and (listens := ray_worker._global_node.node_ip_address) != settings.listen_address:
        stop_cluster(over)
        raise ClusterStartError(
            f"Ray {ray.__version__} must listen on ray.listen_address={settings.listen_address}; it listens on {listens}, and was ended. "
            "Install a version that pyproject.toml names, or set runtime=inline."
        )
    return over


def stop_cluster(over: threading.Event) -> None:
    """Leave the cluster; one that was started here ends. Waits for at most 2 × STOP_LIMIT_S. `over` is what `start_cluster` gave.

    A cluster that does not end by then is left to the system, which ends it with this process: to kill the raylet under a call that waits
    for it would end this process at once, without a word.
    """
    below, ended = _below_cluster(), False
    if _calls_ended():
        with contextlib.suppress(OverdueError):
            bounded(RAY, STOP_LIMIT_S, ray.shutdown)
            ended = True
    if ended:
        over.set()
    else:
        # Ray would try once more when the interpreter ends, and hang there.
        atexit.unregister(ray_worker.shutdown)
        logger.warning(
            "waited %.0f s for Ray to end%s: its workers are killed, and the rest ends with this process",
            STOP_LIMIT_S,
            stopped(),
        )
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _calls_ended() -> bool:
    """Wait for calls that nobody waits for any more, as after Ctrl-C: Ray must not be ended under them. False if they do not come back."""
    deadline = time.monotonic() + STOP_LIMIT_S
    for thread in overdue(RAY):
        thread.join(0.0 if hangs() else max(0.0, deadline - time.monotonic()))
    return not overdue(RAY)


def _below_cluster() -> list[psutil.Process]:
    """Workers and agents below the processes that this one has started for the cluster; nothing of a cluster that was joined."""
    node = ray_worker._global_node
    found: list[psutil.Process] = []
    for _, process in [] if node is None else node.live_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(process.pid).children(recursive=True)
    return found


def own_addresses() -> list[str]:
    """IP addresses of this machine's interfaces, loopback first."""
    found = {
        entry.address.split("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    return sorted(found, key=lambda address: (address != LOOPBACK, address))
