"""The updates on real rollouts of the engine: exact at lag 0, off-policy after, and refusing a path that was not walked."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import pack
from samepath.rl.batch.route_check import RouteError
from samepath.rl.diagnostics.numerics import NumericsMismatchError
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.engine_settings import BuiltinSettings
from tests.conftest import tiny_model
from tests.update_runs import GROUPS, SAMPLES, Descent, rollout_batch, updater


def test_run_at_lag_0_has_no_gap_and_the_second_update_is_off_policy(tokenizer: Tokenizer) -> None:
    model = tiny_model()
    report = updater(model).run(rollout_batch(tokenizer, top_p=0.8), 0, Descent(model, 0.5))
    assert report.metrics["policy/gap_at_lag_0"] == 0.0
    assert report.metrics["routing/flip_rate_at_lag_0"] == 0.0
    assert report.metrics["learner/updates"] == 2
    first, second = report.off_policy_B[:8], report.off_policy_B[8:]
    assert not first.any(), "the first mini-batch is at lag 0"
    assert second.any(), "the second is not"


def test_run_with_routes_of_another_layer_is_stopped(tokenizer: Tokenizer) -> None:
    model, batch = tiny_model(), rollout_batch(tokenizer)
    rolled = [
        replace(entry, segment=replace(entry.segment, routes=np.roll(entry.segment.routes, 1, axis=1)))
        for entry in batch.sequences
    ]
    with pytest.raises(NumericsMismatchError, match="stale weights"):
        updater(model).run(replace(batch, sequences=tuple(rolled)), 0, Descent(model, 0.1))


def test_run_with_stale_sampler_weights_is_stopped(tokenizer: Tokenizer) -> None:
    model = tiny_model(seed=3)
    with pytest.raises(NumericsMismatchError):
        updater(model).run(rollout_batch(tokenizer), 0, Descent(model, 0.1))


def test_run_of_a_dense_model_with_stale_weights_is_stopped_without_keep_routing(tokenizer: Tokenizer) -> None:
    """Where nothing is routed, nothing excuses a gap."""
    engine = BuiltinEngine(tiny_model(first_k_dense_replace=3), tokenizer, BuiltinSettings())
    batch = rollout_batch(tokenizer, engine)
    settings = AlgorithmSettings.model_validate(
        {"prompts_per_step": GROUPS, "group_size": SAMPLES, "keep_routing": "off", "objective": {"kl": {"beta": 0.0}}}
    )
    for seed, stale in ((0, False), (3, True)):
        model = tiny_model(seed, first_k_dense_replace=3)
        with pytest.raises(NumericsMismatchError) if stale else nullcontext():
            PolicyUpdater(model, None, settings, LearnerSettings()).run(batch, 0, Descent(model, 0.1))


def test_run_with_too_many_missing_routes_is_stopped(tokenizer: Tokenizer) -> None:
    model, batch = tiny_model(), rollout_batch(tokenizer)
    holed = [
        replace(entry, segment=replace(entry.segment, routes=np.full_like(entry.segment.routes, -1)))
        for entry in batch.sequences
    ]
    with pytest.raises(RouteError, match="max_missing_routes"):
        updater(model).run(replace(batch, sequences=tuple(holed)), 0, Descent(model, 0.1))


def test_run_in_small_passes_gives_the_gradient_of_one_pass(tokenizer: Tokenizer) -> None:
    batch = rollout_batch(tokenizer, top_p=0.9)
    gradients = []
    for tokens in (16, 100_000):
        model = tiny_model()
        descent = Descent(model, 0.0)
        updater(model, {"updates_per_rollout": 1}, max_tokens_per_pass=tokens).run(batch, 0, descent)
        gradients.append(descent.first)
    for small, whole in zip(*gradients):
        assert (small is None) == (whole is None)
        if small is not None:
            torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-7)


def test_run_without_advantages_and_kl_changes_nothing(tokenizer: Tokenizer) -> None:
    model, batch = tiny_model(), rollout_batch(tokenizer)
    descent = Descent(model, 1.0)
    quiet = replace(batch, advantages_B=np.zeros_like(batch.advantages_B))
    updater(model, {"objective": {"kl": {"beta": 0.0}}}).run(quiet, 0, descent)
    assert all(gradient is None or not gradient.any() for gradient in descent.first)


def test_run_with_router_replay_still_trains_the_router(tokenizer: Tokenizer) -> None:
    model = tiny_model()
    descent = Descent(model, 0.1)
    updater(model).run(rollout_batch(tokenizer), 0, descent)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("router" in name for name in names)
    before = dict(tiny_model().named_parameters())
    assert all(
        not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters() if "router" in name
    )


def test_run_of_masked_sequences_keeps_kl_and_drops_the_surrogate(tokenizer: Tokenizer) -> None:
    model, batch = tiny_model(), rollout_batch(tokenizer)
    strict = {"objective": {"off_policy_mask": {"enabled": True, "delta": 1e-9}}}
    report = updater(model, strict).run(batch, 0, Descent(model, 2.0))
    negative = batch.advantages_B < 0
    assert report.masked_B[8:][negative[8:] & (report.off_policy_B[8:] > 1e-9)].all()
    assert not report.masked_B[~negative].any()
    assert report.masked_B.any()


def test_run_policy_without_the_sampling_mask_has_ratio_equal_to_the_kept_mass(tokenizer: Tokenizer) -> None:
    batch = rollout_batch(tokenizer, top_p=0.7)
    packed = pack(batch.sequences, tiny_model().config)
    with torch.no_grad():
        masked = run_policy(tiny_model(), packed, routes_LNX=packed.routes_LNX, use_support=True)
        full = run_policy(tiny_model(), packed, routes_LNX=packed.routes_LNX, use_support=False)
    assert torch.equal(masked.logprobs_M, packed.sampler_logprobs_M), "ratio exactly 1 with the mask"
    ratio_M = (full.logprobs_M - packed.sampler_logprobs_M).exp()
    assert (ratio_M < 1 - 1e-4).float().mean() > 0.9
    torch.testing.assert_close(ratio_M, masked.head.kept_mass_M, rtol=1e-4, atol=1e-5)


def test_run_policy_with_live_routes_after_an_update_differs_from_replay(tokenizer: Tokenizer) -> None:
    packed = pack(rollout_batch(tokenizer).sequences, tiny_model().config)
    moved = tiny_model()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if "router" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        replayed = run_policy(moved, packed, routes_LNX=packed.routes_LNX, use_support=True)
        live = run_policy(moved, packed, routes_LNX=None, use_support=True)
    gap_replayed = (replayed.logprobs_M - packed.sampler_logprobs_M).abs().mean()
    gap_live = (live.logprobs_M - packed.sampler_logprobs_M).abs().mean()
    assert not torch.equal(replayed.logprobs_M, live.logprobs_M)
    assert gap_replayed < gap_live
