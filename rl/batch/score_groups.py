"""From sampled groups to scored ones, and from scored ones to a training batch.

Axes: B rollouts.
"""

from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace

import numpy as np
import torch

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.score import Score
from samepath.rl.batch.failed_share import FailedShare
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.segment_check import check_segments
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.objective.advantage import advantages, apply_truncation, informative_groups
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rollout.types import Group, Rollout


class GroupScorer:
    """Hands each group to the reward children as soon as it is sampled, so that scoring overlaps with sampling."""

    def __init__(self, runner: RewardRunner, max_failed_share: float = 1.0) -> None:
        """`max_failed_share` as in the recipe (`reward.max_failed_share`); 1 allows every reward to fail."""
        self._runner = runner
        self._share = FailedShare(max_failed_share)
        self._pending: dict[tuple[str, int], Future[Score]] = {}

    def submit(self, group: Group) -> None:
        """Start scoring a group's usable rollouts, but for those that their environment has judged."""
        for rollout in group.rollouts:
            if rollout.environment_score is not None and not rollout.failure:
                judged: Future[Score] = Future()
                judged.set_result(rollout.environment_score)
                self._pending[group.group_id, rollout.sample_index] = judged
            elif not rollout.failure:
                drawn = [segment.token_ids[segment.trained] for segment in rollout.segments]
                request = RewardRequest(
                    prompt_text=group.prompt.text,
                    response_text=rollout.text,
                    answer=group.prompt.answer,
                    dataset=group.prompt.dataset,
                    finish_reason=rollout.segments[-1].finish_reason,
                    num_tokens=rollout.num_trained,
                    token_ids=tuple(np.concatenate(drawn).tolist()),
                    rollout_key=f"{group.group_id}/{rollout.sample_index}",
                )
                self._pending[group.group_id, rollout.sample_index] = self._runner.submit(request)

    def known(self, group: Group) -> bool:
        """Whether every score of a group that was submitted is there: `collect` does not wait for it."""
        keys = [(rollout.group_id, rollout.sample_index) for rollout in group.rollouts]
        return all(self._pending[key].done() for key in keys if key in self._pending)

    def peek(self, group: Group) -> Group:
        """The group with its scores, which `collect` gives once more; waits for them within the runner's own limits."""
        keys = [(rollout.group_id, rollout.sample_index) for rollout in group.rollouts]
        scored = [
            replace(rollout, score=self._pending[key].result()) if key in self._pending else rollout
            for key, rollout in zip(keys, group.rollouts, strict=True)
        ]
        return replace(group, rollouts=tuple(scored))

    def collect(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with their scores. The runner's own limits bound the wait: every future ends as a typed status.

        Raises TooManyFailuresError as soon as more of them have failed than may.
        """
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        keys = [(rollout.group_id, rollout.sample_index) for rollout in rollouts]
        names = {self._pending[key]: f"{key[0]}/{key[1]}" for key in keys if key in self._pending}
        broken = [rollout for rollout in rollouts if rollout.failure.startswith("environment_")]
        self._share.begin(len(names) + len(broken))
        for rollout in broken:
            self._share.add_failure(_name(rollout), rollout.failure, rollout.failure_detail)
        for future in as_completed(names):
            self._share.add(names[future], future.result())
        self._share.end()
        return [replace(group, rollouts=tuple(self._scored(rollout) for rollout in group.rollouts)) for group in groups]

    def _scored(self, rollout: Rollout) -> Rollout:
        future = self._pending.pop((rollout.group_id, rollout.sample_index), None)
        return rollout if future is None else replace(rollout, score=future.result())


def training_batch(
    groups: Sequence[Group], settings: AlgorithmSettings
) -> tuple[TrainBatch | None, dict[str, np.ndarray]]:
    """The batch of all scored rollouts with their advantages (None if there is nothing to learn), and each group's advantages by id.

    A rollout without a usable reward is left out of baseline, loss and denominators. Raises SegmentError for segments that are not what
    was sampled, and with `strict_segments` for one that no rule of the context asked for.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for rollout in rollouts:
        check_segments(rollout, strict=settings.strict_segments, one_version=settings.recomputes)
    labels = {group.group_id: number for number, group in enumerate(groups)}
    group_B = torch.tensor([labels[rollout.group_id] for rollout in rollouts])
    scored_B = torch.tensor([rollout.score is not None and rollout.score.status == "ok" for rollout in rollouts])
    rewards_B = torch.tensor(
        [rollout.score.total if rollout.score is not None else float("nan") for rollout in rollouts],
        dtype=torch.float32,
    )
    outcome = apply_truncation(rewards_B, torch.tensor([rollout.truncated for rollout in rollouts]), settings.truncated)
    advantages_B = advantages(outcome.rewards_B, group_B, scored_B, settings.advantage)
    by_group = {group.group_id: advantages_B[group_B == labels[group.group_id]].numpy() for group in groups}
    # A response of no token has nothing to train; it stays in its group's baseline.
    used_B = scored_B & torch.tensor([_has_tokens(rollout) for rollout in rollouts])
    if settings.drop_uninformative:
        used_B &= informative_groups(outcome.rewards_B, group_B, scored_B)[group_B]
    used = used_B.nonzero().flatten().tolist()
    if not used:
        return None, by_group
    group_of = {group.group_id: group for group in groups}
    chosen = [(place, rollouts[index]) for place, index in enumerate(used)]
    sequences = [
        (place, entry)
        for place, rollout in chosen
        for entry in _train_sequences(rollout, group_of[rollout.group_id].sampling.temperature)
    ]
    batch = TrainBatch(
        sequences=tuple(entry for _, entry in sequences),
        rollout_S=np.array([place for place, _ in sequences], np.int64),
        names=tuple(_name(rollout) for _, rollout in chosen),
        advantages_B=advantages_B[used_B].float().numpy(),
        group_B=group_B[used_B].numpy(),
        datasets=tuple(group_of[rollout.group_id].prompt.dataset for _, rollout in chosen),
        in_loss_B=outcome.in_loss_B[used_B].numpy(),
    )
    return batch, by_group


def _name(rollout: Rollout) -> str:
    return f"{rollout.group_id}/{rollout.sample_index}"


def _train_sequences(rollout: Rollout, temperature: float) -> list[TrainSequence]:
    """The segments of a rollout in which there is something to train. Raises ValueError for one that was not drawn."""
    if temperature == 0:
        raise ValueError(
            f"{rollout.group_id}: best tokens (temperature 0) were not drawn, so they have no probability to train on"
        )
    name, several = _name(rollout), len(rollout.segments) > 1
    return [
        TrainSequence(segment=segment, temperature=temperature, name=f"{name}, segment {number}" if several else name)
        for number, segment in enumerate(rollout.segments)
        if segment.trained[1:].any()
    ]


def _has_tokens(rollout: Rollout) -> bool:
    """Whether a row predicts any of its sampled tokens; the first token of a segment has no row before it."""
    return any(bool(segment.trained[1:].any()) for segment in rollout.segments)
