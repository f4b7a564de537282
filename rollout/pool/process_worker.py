"""A rollout worker in a process of its own, for `runtime: inline` with an engine that changes its process.

The parent (`rollout/pool/process_pool.py`) starts `python -m samepath.rollout.pool.process_worker FD`; calls and answers are pickled over that socket.
"""

import sys
import traceback
from multiprocessing.connection import Connection

from samepath.rollout.pool.process_calls import Answer, Call
from samepath.rollout.pool.worker import RolloutWorker


def serve(channel: Connection) -> None:
    """Answer calls until the parent goes away. After a failure the worker's state is unknown, so it ends."""
    worker: RolloutWorker | None = None
    while True:
        try:
            call: Call = channel.recv()
        except EOFError:
            return
        try:
            if call.method == "start":
                worker = RolloutWorker(*call.arguments)
                answer = Answer(value=worker.process_id())
            else:
                answer = Answer(value=getattr(worker, call.method)(*call.arguments))
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            failure = f"{type(error).__name__}: {error}"
            channel.send(Answer(failure=failure, details={"traceback": traceback.format_exc()}))
            return
        channel.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
