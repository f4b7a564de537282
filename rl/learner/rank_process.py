"""A rank of the learner as a child process, for `runtime: inline`.

The parent (`rl/learner/rank_children.py`) starts `python -m samepath.rl.learner.rank_process FD PARENT`; calls and answers are pickled over that socket.
"""

import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from samepath.rewards.sandbox.tree import signal_at_death_of
from samepath.rl.learner.rank_host import RankHost, RankOf
from samepath.rl.learner.ranks import TOLD
from samepath.rollout.pool.process_calls import Answer, Call

SAMPLER = "sampler."
"""What calls of the rank's engine begin with."""


def serve(channel: Connection) -> None:
    """Answer calls until the parent goes away. After a failure the ranks are no longer together, so this one ends."""
    host: RankOf[Any] | None = None
    while True:
        try:
            call: Call = channel.recv()
        except EOFError:
            return
        try:
            if call.method == "start":
                make, rank, meeting = call.arguments
                host = make()
                answer = Answer(value=host.start(rank, meeting))
            elif call.method.startswith(SAMPLER):
                assert isinstance(host, RankHost)
                answer = Answer(value=host.sample(call.method.removeprefix(SAMPLER), *call.arguments))
            else:
                assert host is not None
                answer = Answer(value=host.call(call.method, *call.arguments))
        except TOLD as error:
            failure = f"{type(error).__name__}: {error}"
            channel.send(Answer(failure=failure, details={"traceback": traceback.format_exc()}))
            return
        channel.send(answer)


if __name__ == "__main__":
    # Whatever ends the parent, and however long a pass takes.
    signal_at_death_of(int(sys.argv[2]), signal.SIGKILL)
    serve(Connection(int(sys.argv[1])))
