"""What a pass is given: each sequence's own weight, dataset, place in the loss and records, however the mini-batch is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.mini_batches import MicroBatch, Preparation, split_groups
from samepath.rl.learner.pass_runner import BY_ITSELF
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import GROUPS, SAMPLES, rollout_batch


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Two datasets in turn, every third sequence out of the loss, each advantage its own."""
    batch = rollout_batch(character_tokenizer(ALPHABET))
    count = len(batch.sequences)
    return replace(
        batch,
        datasets=tuple("sums" if place // SAMPLES % 2 else "proofs" for place in range(count)),
        in_loss_B=np.arange(count) % 3 > 0,
        advantages_B=np.arange(count, dtype=np.float32),
    )


def prepared(batch: TrainBatch, rl: dict[str, object], **learner: object) -> list[list[MicroBatch]]:
    settings = AlgorithmSettings.model_validate({"prompts_per_step": GROUPS, "group_size": SAMPLES, **rl})
    chosen = LearnerSettings.model_validate(learner)
    return [
        list(one.own.values()) for one in Preparation(tiny_model(), settings, chosen, BY_ITSELF).mini_batches(batch, 0)
    ]


@pytest.mark.parametrize("max_tokens", [40, 10_000])
def test_every_sequence_keeps_its_own_beta_advantage_and_place_in_the_loss(batch: TrainBatch, max_tokens: int) -> None:
    objective = {"kl": {"beta": 0.5, "beta_by_dataset": {"proofs": 0.25}}}
    mini_batches = prepared(batch, {"objective": objective, "updates_per_rollout": 2}, max_tokens_per_pass=max_tokens)
    seen = []
    for part in (part for parts in mini_batches for part in parts):
        seen += part.plan.sequences
        for place, index in enumerate(part.plan.sequences):
            rows_M = part.inputs.rollout_M == place
            segment = batch.sequences[index].segment
            assert part.inputs.beta_B[place] == (0.25 if batch.datasets[index] == "proofs" else 0.5)
            assert part.inputs.advantages_B[place] == index
            assert part.inputs.in_loss_M[rows_M].tolist() == [index % 3 > 0] * segment.num_trained
            assert part.inputs.sampler_logprobs_M[rows_M].tolist() == segment.sampler_logprobs[segment.trained].tolist()
            # Sequences out of the loss stay in the denominators: 2 groups of 4 sequences each.
            assert part.inputs.weights_M[rows_M].tolist() == pytest.approx(
                [1 / (2 * SAMPLES * segment.num_trained)] * segment.num_trained
            )
    assert seen == list(range(len(batch.sequences)))
    assert len(mini_batches) == 2
    rows = sum(len(entry.segment.token_ids) - 1 for entry in batch.sequences[: 2 * SAMPLES])
    assert {part.plan.num_rows for part in mini_batches[0]} == {rows}


@pytest.mark.parametrize(
    "aggregation", [{"mode": "sequence_mean"}, {"mode": "token_mean"}, {"mode": "constant", "fixed_length": 16}]
)
def test_denominators_are_those_of_all_sequences_whatever_is_masked(
    batch: TrainBatch, aggregation: dict[str, object]
) -> None:
    """Also where every response of a mini-batch is masked: the first two groups are the first one."""
    rl = {"objective": {"aggregation": aggregation}, "updates_per_rollout": 2}
    weights = []
    for out in (0, 1, 2 * SAMPLES, len(batch.sequences)):
        masked = replace(batch, in_loss_B=np.arange(len(batch.sequences)) >= out)
        parts = [part for parts in prepared(masked, rl, max_tokens_per_pass=40) for part in parts]
        weights.append(torch.cat([part.inputs.weights_M for part in parts]))
    assert all(torch.equal(one, weights[0]) for one in weights)
    assert weights[0].min() > 0


def test_passes_are_as_many_as_asked_and_no_longer_than_max_tokens(batch: TrainBatch) -> None:
    one = {"updates_per_rollout": 1}
    assert [len(prepared(batch, one, min_passes=passes)[0]) for passes in (1, 2, 3)] == [1, 2, 3]
    short = prepared(batch, one, max_tokens_per_pass=60)[0]
    assert len(short) > 3
    assert max(part.packed.num_rows for part in short) <= 60


@pytest.mark.parametrize("old_policy", ["sampler", "learner"])
def test_ratio_is_taken_against_the_old_policy_that_was_asked_for(batch: TrainBatch, old_policy: str) -> None:
    """With the full vocabulary on the learner's side the two differ."""
    sampled = rollout_batch(character_tokenizer(ALPHABET), top_p=0.7)
    rl = {"updates_per_rollout": 1, "keep_sampling_mask": "off", "objective": {"old_policy": old_policy}}
    (part,) = prepared(sampled, rl)[0]
    assert torch.equal(part.inputs.old_logprobs_M, part.packed.sampler_logprobs_M) == (old_policy == "sampler")


def test_routes_to_follow_are_the_samplers_the_learners_own_or_none(batch: TrainBatch) -> None:
    (kept,) = prepared(batch, {"updates_per_rollout": 1})[0]
    assert kept.routes_LNX is not None
    assert torch.equal(kept.routes_LNX, kept.packed.routes_LNX)
    (live,) = prepared(batch, {"updates_per_rollout": 1, "keep_routing": "off"})[0]
    assert live.routes_LNX is None
    own = {"updates_per_rollout": 1, "keep_routing": "learner", "objective": {"old_policy": "learner"}}
    (first,) = prepared(batch, own)[0]
    assert first.routes_LNX is not None
    rows = first.packed.num_rows
    assert torch.equal(first.routes_LNX[:, :rows].sort(-1).values, first.packed.routes_LNX[:, :rows].sort(-1).values), (
        "at equal weights the learner chooses what the sampler chose"
    )


def test_split_groups_keeps_groups_whole_and_covers_all() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    parts = split_groups(labels, 3)
    assert parts == [[0, 1, 2, 3, 4], [5], [6, 7]]
    assert split_groups(labels[:2], 5) == [[0, 1]]
