"""Accuracy on the held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.tasks.requests import answered, group_request, seed_of
from samepath.rl.tasks.row import Task
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result on the held-out prompts.

    Example:
        Evaluation(accuracy=0.91, num_scored=256, num_failed=0, mean_length=31.5, groups=(…))
    """

    accuracy: float
    """Share of scored responses whose first reward part is at least `evaluation.full_reward`."""
    num_scored: int
    """Responses with a usable reward."""
    num_failed: int
    """Responses without one; they are not in the accuracy."""
    mean_length: float
    """Sampled tokens per response."""
    groups: tuple[Group, ...]
    """The responses."""

    def metrics(self) -> dict[str, float]:
        """`eval/…`."""
        return {
            "eval/accuracy": self.accuracy,
            "eval/failed": float(self.num_failed),
            "eval/length_mean": self.mean_length,
        }


def held_out_requests(
    task: Task, tokenizer: Tokenizer, sampling: SamplingSettings, samples: int, seed: int
) -> list[GroupRequest | Group]:
    """Every held-out prompt, to be answered `samples` times with seeds that depend on the run's seed and the prompt's place alone.

    Where a row cannot be asked stands the group of its failed samples.
    """
    return [
        group_request(
            row,
            tokenizer,
            sampling,
            f"eval-{index}",
            tuple(seed_of(seed, "eval", index, sample) for sample in range(samples)),
        )
        for index, row in enumerate(task.held_out)
    ]


def evaluate(
    asked: Sequence[GroupRequest | Group], pool: RolloutPool, scorer: GroupScorer, main_part: str, full_reward: float
) -> Evaluation:
    """Answer what is asked with the pool's current weights; a response is right if the reward's main part is at least `full_reward`."""
    groups = scorer.collect(answered(pool, asked, scorer.submit))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [rollout.score for rollout in rollouts if rollout.score is not None and rollout.score.status == "ok"]
    right = sum(_first_value(score.parts, main_part) >= full_reward for score in scored)
    return Evaluation(
        accuracy=right / len(scored) if scored else float("nan"),
        num_scored=len(scored),
        num_failed=len(rollouts) - len(scored),
        mean_length=sum(rollout.num_trained for rollout in rollouts) / max(len(rollouts), 1),
        groups=tuple(groups),
    )


def _first_value(parts: object, name: str) -> float:
    """The part of that name, or its first entry where the function returned several (`name/entry`)."""
    assert isinstance(parts, dict)
    if name in parts:
        return float(parts[name])
    return float(next(value for key, value in parts.items() if key.startswith(f"{name}/")))
