"""Functions run on several learner ranks at once, in processes that are forked from one warm interpreter."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from samepath.rl.learner.ranks import Meeting, Ranks, joined, opened
from samepath.rl.machine import keep_to_loopback
from samepath.rl.recipe.cluster import LOOPBACK

LIMIT_S = 200.0
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(
    ["tests.rank_cases", "tests.sharded_cases", "tests.expert_cases", "tests.collective_cases"]
)


def on_ranks(
    size: int, case: Callable[..., Any], *arguments: Any, timeout_s: float = LIMIT_S, lost: int = -1
) -> list[Any]:
    """What `case(ranks, *arguments)` returns, or the text of what it raises, on each rank but the `lost` one, which is not asked.

    The case must stand in a module that can be imported.
    """
    keep_to_loopback()
    meeting, store = opened(LOOPBACK, size, timeout_s)
    pipes = [_WARM.Pipe(duplex=False) for _ in range(size)]
    started = [
        _WARM.Process(target=_rank, args=(theirs, meeting, rank, case, arguments), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    try:
        for process in started:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        return [_answer(ours) for rank, (ours, _) in enumerate(pipes) if rank != lost]
    finally:
        for process in started:
            process.kill()
            process.join(LIMIT_S)
        for ours, _ in pipes:
            ours.close()
        del store


def _answer(pipe: Connection) -> Any:
    assert pipe.poll(LIMIT_S), "a rank must answer"
    return pickle.loads(pipe.recv_bytes())


def _rank(pipe: Connection, meeting: Meeting, rank: int, case: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    ranks: Ranks = joined(meeting, rank, "cpu")
    try:
        # Whole: multiprocessing would send handles of tensors, and this process ends.
        pipe.send_bytes(pickle.dumps(case(ranks, *arguments)))
    except (RuntimeError, ValueError) as error:
        pipe.send_bytes(pickle.dumps(f"{type(error).__name__}: {error} {''.join(getattr(error, '__notes__', ()))}"))
    except BaseException:
        pipe.send_bytes(pickle.dumps(traceback.format_exc()))
        raise
    finally:
        ranks.leave()
