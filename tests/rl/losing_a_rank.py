"""Run by a test: the command `samepath` under Ray, with SIGKILL to a rank of its learner before the updates of one version: RANK VERSION ARGUMENTS…"""

import os
import signal
import sys

from ray._private import state as ray_state

from samepath.rl import cli
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.ray_learner import RayLearner

rank, at, *arguments = sys.argv[1:]
original, versions = RayLearner.update, iter(range(1 << 20))


def update(self: RayLearner, batch: TrainBatch) -> UpdateReport:
    if next(versions) == int(at):
        process = ray_state.actors(self._actors[int(rank)]._actor_id.hex())["Pid"]
        print(f"killing process {process}", flush=True)
        os.kill(process, signal.SIGKILL)
    return original(self, batch)


if __name__ == "__main__":
    RayLearner.update = update  # type: ignore[method-assign]
    sys.argv = ["samepath", *arguments]
    cli.main()
