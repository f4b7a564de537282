"""Calls into Ray, each with a bound that holds even where Ray itself hangs, as it does when its raylet is stopped or its head is gone.

Ray's own timeouts need a cluster that answers. Beside them every call runs in a thread that is left behind when it does not come back, and a
cluster whose processes have ended is seen at once: a call into a dead one may end this process without a word.
"""

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from samepath.rollout.bounded_call import OverdueError, bounded
from samepath.rollout.engine_errors import ClusterLostError

Answer = TypeVar("Answer")

RAY = "Ray"
"""Whose code the threads are in (`samepath.rollout.bounded_call.overdue`)."""
GRACE_S = 15.0
"""How much longer than its own timeout a call may take before Ray is held to hang."""
KILL_LIMIT_S = 15.0
"""Longest wait for Ray to take the order to end an actor."""
CONNECT_LIMIT_S = 1.0
"""Longest wait for a cluster elsewhere to take a connection."""
WHAT_NOW = (
    "What was learned since the newest checkpoint is lost; `samepath resume` with the run's folder goes on from there, on a new cluster. "
    "What Ray's processes said last stands in its session folder, by default /tmp/ray/session_latest/logs."
)
VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
"""Processes of a cluster without which nothing goes on."""

_hung: list[threading.Thread] = []


def ask(what: str, limit_s: float, call: Callable[[], Answer]) -> Answer:
    """What `call`, a call into Ray that should be back within `limit_s`, returns or raises; `what` says what it waits for.

    Raises:
        ClusterLostError: the cluster has ended, or Ray was not back GRACE_S after that.
    """

    def look() -> None:
        if reason := cluster_ended():
            raise ClusterLostError(f"{reason}, while the run waited for {what}. {WHAT_NOW}")

    look()
    try:
        return bounded(RAY, limit_s + GRACE_S, call, look)
    except OverdueError as error:
        _hung.append(error.thread)
        raise ClusterLostError(
            f"waited {limit_s + GRACE_S:.0f} s for {what}, and Ray does not answer{stopped()}. {WHAT_NOW}"
        ) from error
    except RayError:
        # What Ray complains of may follow from the cluster's end.
        look()
        raise


def end_actor(handle: Any) -> None:
    """End an actor; without a cluster that answers it ends with the cluster, and nothing is asked."""
    if cluster_ended() or hangs():
        return
    ask("an actor's end", KILL_LIMIT_S, lambda: ray.kill(handle, no_restart=True))


def hangs() -> bool:
    """True while a call is inside Ray that should have been back long ago. To end what it waits for would end this process without a word."""
    return any(thread.is_alive() for thread in _hung)


def cluster_ended() -> str:
    """Which part of the cluster is no more, or ""."""
    node = ray_worker._global_node
    if node is None:
        return ""
    for kind, process in node.dead_processes():
        if kind in VITAL:
            return f"Ray's {kind} (process {process.pid}) has ended ({_ending(process.returncode)})"
    if node.all_processes:
        return ""
    host, _, port = node.gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_LIMIT_S).close()
    except ConnectionRefusedError:
        return f"the Ray cluster at {node.gcs_address} has ended"
    except OSError:
        # Slow or out of reach for now: the call's own bound decides.
        return ""
    return ""


def stopped() -> str:
    """Which of the processes that matter are stopped, to be added to a sentence."""
    node = ray_worker._global_node
    processes = (
        [] if node is None else [(kind, process.pid) for kind, process in node.live_processes() if kind in VITAL]
    )
    found = [f"Ray's {kind}, process {pid}, is stopped" for kind, pid in processes if _is_stopped(pid)]
    return f" ({'; '.join(found)})" if found else ""


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _ending(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"
