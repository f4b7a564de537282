"""What the conversations of a batch did: messages and tool calls, how they ended, what could not be read, which tools gave no result."""

from collections.abc import Mapping, Sequence
from typing import get_args

from samepath.model.text.conversation import FORM_KINDS, ProblemKind
from samepath.rollout.types import Ended, Group, Rollout, ToolError


def conversation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """`conversation/…` of all rollouts with messages that did not fail; nothing where there are none."""
    held = [one for group in groups for one in group.rollouts if one.messages and not one.failure]
    if not held:
        return {}
    turns = sum(_turns(rollout) for rollout in held)
    errors = [record.error for rollout in held for record in rollout.tool_calls]
    problems = [kind for rollout in held for kind in rollout.problems]
    malformed = sum(not FORM_KINDS.isdisjoint(rollout.problems) for rollout in held)
    return {
        "conversation/turns_mean": turns / len(held),
        "conversation/calls_mean": len(errors) / len(held),
        **{
            f"conversation/ended.{kind}": sum(one.ended == kind for one in held) / len(held) for kind in get_args(Ended)
        },
        "conversation/malformed": malformed / len(held),
        **{f"conversation/problem.{kind}": problems.count(kind) / max(turns, 1) for kind in get_args(ProblemKind)},
        "conversation/tool_errors": sum(error != "" for error in errors) / max(len(errors), 1),
        **{
            f"conversation/tool_error.{kind}": errors.count(kind) / max(len(errors), 1)
            for kind in get_args(ToolError)
            if kind
        },
    }


def cache_share(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """`rollout/cache_share` between two of a pool's statistics, and `rollout/rerun_share` where samples gave their pages back.

    Nothing where no prompt was read, or a lost worker took its totals along.
    """
    names = ("reused_tokens", "prefill_tokens", "rerun_tokens")
    found, run, again = (after.get(name, 0.0) - before.get(name, 0.0) for name in names)
    lost = after.get("replaced_workers", 0.0) != before.get("replaced_workers", 0.0) or min(found, run, again) < 0
    if lost or not found + run:
        return {}
    rerun = {"rollout/rerun_share": again / (run + again)} if again else {}
    return {"rollout/cache_share": found / (found + run), **rerun}


def _turns(rollout: Rollout) -> int:
    """Messages that the model drew."""
    return sum(span.kind == "act" and not span.goes_on for segment in rollout.segments for span in segment.calls)
