"""The first failure of every kind, with its message: what a count cannot say."""

from collections.abc import Iterable, Iterator, Mapping

from samepath.rewards.settings import RewardPart
from samepath.rl.tracking.alert import Alert
from samepath.rollout.types import Group, Rollout

RULE = "first_failure"


def failures(groups: Iterable[Group], parts: Mapping[str, RewardPart], step: int) -> Iterator[Alert]:
    """A note for each rollout that failed in sampling, or in scoring with the function that failed; `parts` are the recipe's, by name."""
    for group in groups:
        for rollout in group.rollouts:
            if rollout.failure:
                about = f"rollout/failure.{rollout.failure}"
                detail = f": {rollout.failure_detail}" if rollout.failure_detail else ""
                yield _note(step, about, f"{_key(rollout)}, prompt {rollout.prompt_id}{detail}")
            elif rollout.score is not None and rollout.score.status != "ok":
                about, detail = f"reward/status.{rollout.score.status}", rollout.score.detail
                part = parts.get(detail.partition(":")[0])
                function = f" of {part.function}" if part is not None else ""
                yield _note(step, about, f"{_key(rollout)}: {detail}", function)


def _note(step: int, about: str, what: str, function: str = "") -> Alert:
    return Alert(step=step, rule=RULE, event="note", seen=f"first {about}{function}, rollout {what}", about=about)


def _key(rollout: Rollout) -> str:
    return f"{rollout.group_id}/{rollout.sample_index}"
