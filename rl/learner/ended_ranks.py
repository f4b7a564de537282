"""Which ranks of a learner under Ray have ended, the first of them first: those after it ended for want of it."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

RANK_ENDED = "DEAD"
"""How Ray's table of actors calls one whose process is no more."""
HINTS = "Some common causes"
"""Where Ray's guesses begin, behind what it knows."""


def ended_ranks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A phrase for each rank that has ended, in the order in which they did: its number, its process, and what Ray says of it.

    Args:
        records: The ranks' entries of Ray's table of actors, that of rank 0 first; the table has the time of every end, in ms. Ray sees that a
            process is gone, not by which signal.
    """
    ended = [(record["EndTime"], rank, record) for rank, record in enumerate(records) if _has_ended(record)]
    return [
        f"{f'learner rank {rank}' if len(records) > 1 else 'the learner'} (process {record['Pid']} on {record['Address']['IPAddress']}) ended"
        f"{_reason(record)}"
        for _, rank, record in sorted(ended, key=operator.itemgetter(0, 1))
    ]


def _has_ended(record: Mapping[str, Any]) -> bool:
    return record.get("State") == RANK_ENDED


def _reason(record: Mapping[str, Any]) -> str:
    """Ray's own words in brackets, or "" if it has none."""
    said = record["DeathCause"].actor_died_error_context.error_message
    known = said.partition(HINTS)[0].rpartition("Worker exit detail:")[2].strip().rstrip(".")
    return f" (Ray: {known})" if known else ""
