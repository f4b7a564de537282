"""Accuracy, mean reward and pass@k on prompts that are not trained on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.evaluation.outcomes import Outcomes, digest_of
from samepath.rl.evaluation.pass_at import pass_at_k
from samepath.rl.evaluation.sets import AskedSet
from samepath.rl.tasks.requests import answered, group_request
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result on the prompts of one set. What nothing was measured for is NaN.

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
    mean_reward: float = math.nan
    """Mean total of the scored responses."""
    truncated: float = math.nan
    """Share of the sampled responses that ran into their length limit."""
    pass_at: Mapping[int, float] = field(default_factory=dict)
    """k → mean pass@k of the prompts with at least k scored responses."""
    outcomes: Outcomes = field(default_factory=Outcomes)
    """Prompt by prompt."""

    def metrics(self) -> dict[str, float]:
        """`eval/…`."""
        return {
            "eval/accuracy": self.accuracy,
            "eval/scored": float(self.num_scored),
            "eval/failed": float(self.num_failed),
            "eval/length_mean": self.mean_length,
        }

    def set_metrics(self, name: str) -> dict[str, float]:
        """`evaluation/<name>/…`."""
        return {f"evaluation/{name}/{key}": value for key, value in self.values().items()}

    def values(self) -> dict[str, float]:
        """All that was measured."""
        return {
            "accuracy": self.accuracy,
            "reward_mean": self.mean_reward,
            **{f"pass_at_{k}": value for k, value in self.pass_at.items()},
            "failed": float(self.num_failed),
            "length_mean": self.mean_length,
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """Results on all sets of a recipe.

    Example:
        Evaluations(sets={"math500": Evaluation(…), "aime": Evaluation(…)})
    """

    sets: Mapping[str, Evaluation]
    """By name, in the recipe's order; the only one of a recipe that names none is called ""."""

    @property
    def headline(self) -> Evaluation:
        """The first set's."""
        return next(iter(self.sets.values()))

    @property
    def outcomes(self) -> dict[str, Outcomes]:
        """Prompt by prompt, of each set."""
        return {name: one.outcomes for name, one in self.sets.items()}

    @property
    def groups(self) -> list[Group]:
        """All responses."""
        return [group for one in self.sets.values() for group in one.groups]

    @property
    def accuracies(self) -> dict[str, float]:
        """Of the named sets."""
        return {name: one.accuracy for name, one in self.sets.items() if name}

    def lines(self) -> list[str]:
        """The accuracies for people."""
        return [
            f"{f'accuracy on {name}' if name else 'held-out accuracy'} {_shown(one.accuracy)} ({one.num_scored} responses)"
            for name, one in self.sets.items()
        ]

    def metrics(self) -> dict[str, float]:
        """`eval/…` of the headline, and `evaluation/<name>/…` of each named set."""
        named = [one.set_metrics(name) for name, one in self.sets.items() if name]
        return {**self.headline.metrics(), **{key: value for metrics in named for key, value in metrics.items()}}


def set_requests(
    asked: AskedSet, tokenizer: Tokenizer, seed: int, max_samples: int
) -> list[tuple[int, Request | Group]]:
    """(place of the row, request) for every prompt, to be answered n times with seeds that depend on run, set, place and sample alone.

    A request has at most `max_samples` samples, since an engine decodes it together; a prompt with more of them is asked in several. Where a
    row cannot be asked stands the group of its failed samples.
    """
    made: list[tuple[int, Request | Group]] = []
    named = (asked.name,) if asked.name else ()
    for index, row in enumerate(asked.rows):
        seeds = tuple(seed_of(seed, "eval", *named, index, sample) for sample in range(asked.num_samples))
        group_id = "-".join(["eval", *named, str(index)])
        for first in range(0, len(seeds), max_samples):
            part = f"{group_id}.{first // max_samples}" if first else group_id
            made.append(
                (index, group_request(row, tokenizer, asked.sampling, part, seeds[first : first + max_samples]))
            )
    return made


def evaluate(
    asked: AskedSet,
    requests: Sequence[tuple[int, Request | Group]],
    pool: RolloutPool,
    scorer: GroupScorer,
    main_part: str,
    full_reward: float,
) -> Evaluation:
    """Answer the set's requests with the pool's current weights; a response is right if the reward's main part is at least `full_reward`."""
    groups = scorer.collect(answered(pool, [request for _, request in requests], scorer.submit))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    right_of_row: dict[int, list[bool]] = {}
    totals_of_row: dict[int, list[float]] = {}
    for (row, _), group in zip(requests, groups, strict=True):
        right, row_totals = right_of_row.setdefault(row, []), totals_of_row.setdefault(row, [])
        for rollout in group.rollouts:
            if rollout.score is not None and rollout.score.status == "ok":
                right.append(_first_value(rollout.score.parts, main_part) >= full_reward)
                row_totals.append(rollout.score.total)
    totals = [total for row_totals in totals_of_row.values() for total in row_totals]
    return Evaluation(
        accuracy=_mean([float(right) for row in right_of_row.values() for right in row]),
        num_scored=len(totals),
        num_failed=len(rollouts) - len(totals),
        mean_length=sum(rollout.num_trained for rollout in rollouts) / max(len(rollouts), 1),
        groups=tuple(groups),
        mean_reward=_mean(totals),
        truncated=_mean([float(rollout.truncated) for rollout in rollouts if not rollout.failure]),
        pass_at={
            k: _mean([pass_at_k(len(right), sum(right), k) for right in right_of_row.values() if len(right) >= k])
            for k in asked.pass_at
        },
        outcomes=Outcomes(
            prompts=tuple(digest_of(asked.rows[row]) for row in right_of_row),
            scored=tuple(len(right) for right in right_of_row.values()),
            right=tuple(sum(right) for right in right_of_row.values()),
            rewards=tuple(_mean(row_totals) for row_totals in totals_of_row.values()),
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _shown(share: float) -> str:
    return "none" if math.isnan(share) else f"{share:.3f}"


def _first_value(parts: object, name: str) -> float:
    """The part of that name, or its first entry where the function returned several (`name/entry`); without a name the first of all."""
    assert isinstance(parts, dict)
    if not name:
        return float(next(iter(parts.values())))
    if name in parts:
        return float(parts[name])
    return float(next(value for key, value in parts.items() if key.startswith(f"{name}/")))
