"""What a person must hear of while a run goes on, once each: the first failure of every kind, and steps that teach nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from samepath.rewards.settings import RewardPart
from samepath.rollout.types import Group, Rollout

PATIENCE = 5
"""Steps in a row without any spread of rewards before that is said."""


@dataclass(slots=True, kw_only=True)
class Notices:
    """Remembers what was said."""

    parts: Mapping[str, RewardPart] = field(default_factory=dict)
    """The recipe's reward functions by part, which failures are said to be of."""
    _said: set[str] = field(default_factory=set)
    _flat_steps: int = 0

    def failures(self, groups: Iterable[Group]) -> Iterator[str]:
        """The first failure of each kind: of sampling, or of scoring with the function that failed."""
        for group in groups:
            for rollout in group.rollouts:
                if rollout.failure:
                    detail = f": {rollout.failure_detail}" if rollout.failure_detail else ""
                    yield from self._once(
                        f"rollout/failure.{rollout.failure}",
                        f"first rollout/failure.{rollout.failure}, rollout {_key(rollout)}, prompt {rollout.prompt_id}{detail}",
                    )
                elif rollout.score is not None and rollout.score.status != "ok":
                    status, detail = rollout.score.status, rollout.score.detail
                    part = self.parts.get(detail.partition(":")[0])
                    function = f" of {part.function}" if part is not None else ""
                    yield from self._once(
                        f"reward/status.{status}",
                        f"first reward/status.{status}{function}, rollout {_key(rollout)}: {detail}",
                    )

    def step(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """What the metrics of a step show that teaches nothing."""
        if metrics.get("rollout/truncated") == 1:
            yield from self._once(
                "truncated",
                "every response of a step ran into sampling.max_new_tokens (rollout/truncated = 1): raise it, or lead the model to shorter "
                "answers by a cold start; with rl.truncated.mode=mask nothing is learned from them",
            )
        flat = metrics.get("reward/groups_no_spread", 0.0) + metrics.get("reward/groups_unusable", 0.0)
        self._flat_steps = self._flat_steps + 1 if flat >= 1 else 0
        if self._flat_steps == PATIENCE:
            yield from self._once(
                "flat",
                f"in {PATIENCE} steps no group had two different rewards (reward/groups_no_spread = 1), so every advantage is 0: look at the reward "
                "and at rollouts/, take easier or harder rows, or raise sampling.temperature or rl.group_size",
            )

    def task(self, num_train: int) -> Iterator[str]:
        """What the task itself shows."""
        if num_train == 1:
            yield from self._once(
                "one row",
                "there is one training row, so every group of every step answers the same prompt: eval/accuracy will say nothing of others. "
                "Give the task more rows",
            )

    def _once(self, kind: str, text: str) -> Iterator[str]:
        if kind not in self._said:
            self._said.add(kind)
            yield text


def _key(rollout: Rollout) -> str:
    return f"{rollout.group_id}/{rollout.sample_index}"
