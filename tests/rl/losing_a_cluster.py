"""Run by a test: the command `samepath`, with a signal to a process of its cluster in one step: SIGNAL PROCESS STEP ARGUMENTS…"""

import os
import signal
import sys

from ray._private import worker as ray_worker

from samepath.rl import cli
from samepath.rl.learner import ray_cluster
from samepath.rl.loop import Loop
from samepath.rollout.pool import ray_calls

number, kind, at, *arguments = sys.argv[1:]
original = Loop.one_step


def one_step(self: Loop, step: int) -> dict[str, float]:
    if step == int(at):
        os.kill(ray_worker._global_node.all_processes[kind][0].process.pid, signal.Signals[number])
    return original(self, step)


if __name__ == "__main__":
    Loop.one_step = one_step  # type: ignore[method-assign]
    ray_cluster.STOP_LIMIT_S, ray_calls.GRACE_S = 8.0, 2.0
    sys.argv = ["samepath", *arguments]
    cli.main()
