"""The frozen reference: which experts and candidates it takes, and how far from it the learner is over the whole vocabulary."""

import pytest
import torch
from torch import Tensor

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.batch.pack import PackedBatch, pack
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import GROUPS, SAMPLES, Descent, rollout_batch


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Rollouts with recorded candidates."""
    return rollout_batch(character_tokenizer(ALPHABET), top_p=0.8)


def metrics_against(reference: CausalLM, batch: TrainBatch, **rl: object) -> dict[str, float]:
    """A step in several passes that moves no weight."""
    settings = AlgorithmSettings.model_validate(
        {"prompts_per_step": GROUPS, "group_size": SAMPLES, "updates_per_rollout": 2, **rl}
    )
    model = tiny_model()
    learner = LearnerSettings(max_tokens_per_pass=150)
    return PolicyUpdater(model, reference, settings, learner).run(batch, 0, Descent(model, 0.0)).metrics


def logits(model: CausalLM, packed: PackedBatch, routes_LNX: Tensor | None) -> Tensor:
    """[M, V] in float64, at the sampling temperature."""
    with torch.no_grad():
        seen = run_policy(model, packed, routes_LNX=routes_LNX, use_support=False)
    hidden_MD = seen.hidden_UD[packed.scored_M].double()
    return hidden_MD @ model.head_weight.detach().double().T / packed.temperature_M[:, None]


def full_kl(reference: CausalLM, batch: TrainBatch) -> float:
    """Mean over the trained tokens of Σ_v π·(log π − log π_ref), in one pass."""
    packed = pack(batch.sequences, reference.shape)
    now_MV = logits(tiny_model(), packed, packed.routes_LNX).log_softmax(-1)
    reference_MV = logits(reference, packed, None).log_softmax(-1)
    return float((now_MV.exp() * (now_MV - reference_MV)).sum(-1).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_full_kl_equals_its_definition_at_the_sampling_temperature(temperature: float) -> None:
    sampled = rollout_batch(character_tokenizer(ALPHABET), top_p=0.8, temperature=temperature)
    reference = tiny_model(seed=1)
    metrics = metrics_against(reference, sampled)
    assert metrics["kl/reference_full"] == pytest.approx(full_kl(reference, sampled), rel=1e-5)
    assert metrics["kl/reference_full"] > 0.01


def test_full_kl_to_itself_is_exactly_zero(batch: TrainBatch) -> None:
    assert metrics_against(tiny_model(), batch)["kl/reference_full"] == 0.0


def test_full_kl_sees_a_collapse_that_the_sampled_candidates_hide() -> None:
    """With one candidate a token every policy gives it probability 1 over the candidates, however far apart the two are."""
    greedy = rollout_batch(character_tokenizer(ALPHABET), top_k=1)
    assert all(bool((entry.segment.support.counts == 1).all()) for entry in greedy.sequences if entry.segment.support)
    reference = tiny_model(seed=1)
    metrics = metrics_against(reference, greedy)
    for name in ("unbiased", "k1", "k3"):
        assert metrics[f"kl/reference_{name}"] == 0.0
    assert metrics["kl/reference_full"] == pytest.approx(full_kl(reference, greedy), rel=1e-5)
    assert metrics["kl/reference_full"] > 0.01


@pytest.mark.parametrize("support", ["sampled", "full"])
def test_reference_takes_the_sampled_candidates_or_the_full_vocabulary(batch: TrainBatch, support: str) -> None:
    reference = tiny_model(seed=1)
    metrics = metrics_against(reference, batch, reference_support=support)
    packed = pack(batch.sequences, reference.shape)
    with torch.no_grad():
        seen = run_policy(reference, packed, routes_LNX=None, use_support=support == "sampled")
    expected = float((packed.sampler_logprobs_M - seen.logprobs_M).mean())
    assert metrics["kl/reference_k1"] == pytest.approx(expected, rel=1e-5)


def test_reference_routes_live_and_not_as_the_sampler_did(batch: TrainBatch) -> None:
    reference = tiny_model(seed=1)
    packed = pack(batch.sequences, reference.shape)
    means = []
    for routes_LNX in (None, packed.routes_LNX):
        with torch.no_grad():
            seen = run_policy(reference, packed, routes_LNX=routes_LNX, use_support=True)
        means.append(float((packed.sampler_logprobs_M - seen.logprobs_M).mean()))
    live, replayed = means
    assert abs(live - replayed) > 1e-3
    assert metrics_against(reference, batch)["kl/reference_k1"] == pytest.approx(live, rel=1e-5)
