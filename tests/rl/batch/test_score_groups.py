"""A prompt's own sampling settings reach the sampler and the learner alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.rewards.score import Score
from samepath.rl.batch.pack import pack
from samepath.rl.batch.score_groups import GroupScorer, training_batch
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt
from tests.engine_runs import LEARNER, assert_same_samples, make_engine
from tests.rl.sampled import Children, group
from tests.tiny_runs import request

OWN = {"temperature": 0.5, "top_p": 0.6, "max_new_tokens": 5}
RECIPE = SamplingSettings(temperature=1.4, max_new_tokens=12, ignore_stop=True)


def overriding(sampling: SamplingSettings, **own: object) -> GroupRequest:
    prompt = Prompt(prompt_id="p-own", text="", token_ids=(5, 6, 7), sampling=own)
    return GroupRequest(group_id="own", prompt=prompt, sampling=sampling, seeds=(1, 2, 3))


def scored(group: Group) -> Group:
    """Rewards 0, 1, 2 …, so that there is something to learn."""
    rollouts = [
        replace(rollout, score=Score(total=float(index), parts={"own": float(index)}, status="ok"))
        for index, rollout in enumerate(group.rollouts)
    ]
    return replace(group, rollouts=tuple(rollouts))


def test_overrides_of_one_prompt_are_sampled_and_learned_with_at_equal_probabilities() -> None:
    """Beside a prompt without any: its samples are those of a recipe that says the same for all, and the gap is 0."""
    plain = request("plain", (5, 6, 7), RECIPE, (1, 2, 3))
    groups = [scored(group) for group in make_engine().run([plain, overriding(RECIPE, **OWN)])]
    (alone,) = make_engine().run([request("own", (5, 6, 7), RECIPE.model_copy(update=OWN), (1, 2, 3))])
    assert_same_samples(
        replace(groups[1], rollouts=tuple(replace(one, score=None) for one in groups[1].rollouts)), alone
    )
    assert [{rollout.num_trained for rollout in group.rollouts} for group in groups] == [{12}, {5}]
    assert [group.rollouts[0].segments[0].support is None for group in groups] == [True, False]
    batch, _ = training_batch(groups, AlgorithmSettings())
    assert batch is not None
    assert [sequence.temperature for sequence in batch.sequences] == [1.4] * 3 + [0.5] * 3
    packed = pack(batch.sequences, LEARNER.config)
    with torch.no_grad():
        seen = run_policy(LEARNER, packed, routes_LNX=packed.routes_LNX, use_support=True)
    assert torch.equal(seen.logprobs_M, packed.sampler_logprobs_M)


def test_overrides_are_checked_when_the_request_is_made() -> None:
    with pytest.raises(ValueError, match="top_p"):
        overriding(RECIPE, top_p=1.5)
    with pytest.raises(ValueError, match="temprature"):
        overriding(RECIPE, temprature=0.5)


def test_training_batch_refuses_best_tokens_which_were_not_drawn() -> None:
    (group,) = make_engine().run([overriding(RECIPE, temperature=0.0)])
    with pytest.raises(ValueError, match=r"own: best tokens \(temperature 0\)"):
        training_batch([scored(group)], AlgorithmSettings())


def test_failed_groups_say_what_they_would_have_been_drawn_with() -> None:
    (group,) = make_engine().run(
        [replace(overriding(RECIPE, **OWN), prompt=Prompt(prompt_id="p", text="", token_ids=()))]
    )
    assert group.rollouts[0].failure == "no_tokens"
    assert np.isclose(group.sampling.temperature, 0.5)


def test_group_scorer_hands_rewards_the_very_tokens_that_are_trained_on() -> None:
    children = Children()
    sampled = group("g", None, None)
    GroupScorer(children).submit(sampled)  # type: ignore[arg-type]
    assert [one.token_ids for one in children.requests] == [(4,), (4, 5)]
    assert [one.num_tokens for one in children.requests] == [1, 2]
    batch, _ = training_batch([scored(sampled)], AlgorithmSettings())
    assert batch is not None
    for one, sequence in zip(children.requests, batch.sequences, strict=True):
        assert one.token_ids == tuple(sequence.segment.token_ids[sequence.segment.trained].tolist())
