"""Which rank is to blame, by hand-made entries of Ray's table of actors."""

from typing import Any

import pytest

pytest.importorskip("ray")

from ray.core.generated.common_pb2 import ActorDeathCause

from samepath.rl.learner.ended_ranks import ended_ranks

SAID = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    "connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer."
)


def record(process: int, end_ms: int = 0, said: str = SAID) -> dict[str, Any]:
    cause = ActorDeathCause()
    if end_ms:
        cause.actor_died_error_context.error_message = said
    state = "DEAD" if end_ms else "ALIVE"
    return {
        "State": state,
        "EndTime": end_ms,
        "Pid": process,
        "Address": {"IPAddress": "192.0.2.7"},
        "DeathCause": cause,
    }


def test_ranks_that_ended_are_named_in_the_order_of_their_ends() -> None:
    assert ended_ranks([record(50, 2000, said=""), record(51), record(52, 1999)]) == [
        "learner rank 2 (process 52 on 192.0.2.7) ended (Ray: Worker unexpectedly exits with a connection error code 2. End of file)",
        "learner rank 0 (process 50 on 192.0.2.7) ended",
    ]


def test_nobody_has_ended() -> None:
    assert ended_ranks([record(50), record(51), {}]) == []


def test_learner_of_one_rank_has_no_number() -> None:
    assert ended_ranks([record(50, 1, said="It was killed by `ray.kill`.")]) == [
        "the learner (process 50 on 192.0.2.7) ended (Ray: It was killed by `ray.kill`)"
    ]
