"""New weights while samples are under way, with their context computed anew: each token's record is its own version's, to the last bit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.model.files.checkpoint import published_tensors
from samepath.model.network.network import CausalLM
from samepath.rl.batch.pack import pack
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.prompt_queue import PromptQueue
from samepath.rollout.conservation import check_conservation, drift_cuts
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import (
    SAMPLINGS,
    assert_nothing_leaked,
    assert_same_samples,
    make_engine,
    mixed_requests,
    steps_until_done,
)
from tests.tiny_runs import request, train_sequences

LONG = SamplingSettings(max_new_tokens=30, top_p=0.9, ignore_stop=True)


def versions(count: int) -> list[CausalLM]:
    """Version 0 is the engine's own; each further one has a trained indexer of its own too."""
    return [tiny_model(), *(tiny_model(7 + number) for number in range(1, count))]


def sampled_over(engine: BuiltinEngine, models: Sequence[CausalLM], steps_each: int, *, recompute: bool) -> list[Group]:
    """Everything that was submitted, with the next model's weights after every so many steps."""
    groups = []
    for version, model in enumerate(models[1:], 1):
        for _ in range(steps_each):
            groups += engine.step()
        engine.load_weights(published_tensors(model), version, recompute=recompute)
    return groups + steps_until_done(engine)


def gap(groups: Sequence[Group], models: Sequence[CausalLM], temperature: float = 1.0) -> float:
    """Largest difference of a token's record to what its own version scores it with, each segment behind its own context."""
    worst = 0.0
    for version, model in enumerate(models):
        for entry in train_sequences(groups, temperature):
            if (entry.segment.weight_version == version).any():
                batch = pack([entry], model.config)
                with torch.no_grad():
                    seen = run_policy(model, batch, routes_LNX=batch.routes_LNX, use_support=True, fingerprints=True)
                own_M = batch.version_M == version
                worst = max(worst, float((seen.logprobs_M - batch.sampler_logprobs_M)[own_M].abs().max()))
                if bool(own_M.all()):
                    rows = slice(0, batch.num_rows)
                    assert torch.equal(torch.stack(seen.trace.live_routes)[:, rows], batch.routes_LNX[:, rows])
                    assert batch.fingerprints_NL is not None
                    assert torch.equal(seen.trace.stacked_fingerprints()[rows], batch.fingerprints_NL[rows])
    return worst


@pytest.mark.parametrize("changes", [{}, {"page_size": 4, "cache_tokens": 144, "max_batch_tokens": 16}])
def test_recompute_gives_every_token_a_gap_of_zero_to_its_own_version(changes: dict[str, int]) -> None:
    """Three updates in mid-answer; in the small cache also with samples that wait, and prompts and contexts that are half prefilled."""
    models = versions(4)
    engine = make_engine(**changes)
    entries = [request(f"g{n}", (2, 3 + n, 4, 5, 6), LONG, range(n, n + 3)) for n in range(4)]
    for entry in entries:
        assert engine.submit(entry) is None
    groups = sampled_over(engine, models, 7, recompute=True)
    assert gap(groups, models) == 0.0
    assert_nothing_leaked(engine)
    if changes:
        assert engine.counters.preempted > 0
    several = [rollout for group in groups for rollout in group.rollouts if len(rollout.segments) > 1]
    assert len(several) > 6
    for group in groups:
        assert len(group.rollouts) == 3
        for rollout in group.rollouts:
            check_conservation(rollout.segments, "here")
            assert drift_cuts(rollout.segments) == []
            assert rollout.num_trained == LONG.max_new_tokens
            assert [one.finish_reason for one in rollout.segments] == ["weights"] * (len(rollout.segments) - 1) + [
                "length"
            ]
            for segment in rollout.segments:
                assert len(set(segment.weight_version[segment.trained].tolist())) == 1


def test_continue_is_the_control_that_has_a_gap() -> None:
    models = versions(2)
    engine = make_engine()
    engine.submit(request("g", (2, 3, 4, 5, 6), LONG, range(3)))
    groups = sampled_over(engine, models, 9, recompute=False)
    assert all(len(rollout.segments) == 1 for group in groups for rollout in group.rollouts)
    assert gap(groups, models) > 1e-3


def test_recompute_with_equal_weights_draws_what_an_undisturbed_engine_draws() -> None:
    """Supports, stop strings and every kind of draw: segments hold the same tokens and log-probabilities as one segment does."""
    engine, whole = make_engine(page_size=4), {group.group_id: group for group in make_engine().run(mixed_requests())}
    for entry in mixed_requests():
        engine.submit(entry)
    for group in sampled_over(engine, [tiny_model()] * 3, 4, recompute=True):
        for rollout, wanted in zip(group.rollouts, whole[group.group_id].rollouts, strict=True):
            assert (rollout.text, rollout.num_trained) == (wanted.text, wanted.num_trained)
            for name in ("token_ids", "sampler_logprobs"):
                drawn = [getattr(one, name)[one.trained] for one in rollout.segments]
                assert np.array_equal(
                    np.concatenate(drawn), getattr(wanted.segments[0], name)[wanted.segments[0].trained]
                )
            supports = [one.support for one in rollout.segments if one.support is not None]
            if supports:
                support = wanted.segments[0].support
                assert support is not None
                assert np.array_equal(np.concatenate([one.counts for one in supports]), support.counts)
                assert np.array_equal(np.concatenate([one.ids for one in supports]), support.ids)
                assert [len(one.counts) for one in supports] == [one.num_trained for one in rollout.segments]
    assert_nothing_leaked(engine)


def test_recompute_before_anything_is_drawn_is_a_fresh_engine() -> None:
    entry = request("g", tuple(range(2, 18)) * 2, SAMPLINGS[0], (1, 2))
    engine = make_engine(max_batch_tokens=16)
    engine.submit(entry)
    engine.step()
    engine.load_weights(published_tensors(tiny_model(7)), 1, recompute=True)
    fresh = make_engine(tiny_model(7))
    fresh.weight_version = 1
    assert_same_samples(steps_until_done(engine)[0], fresh.run([entry])[0])


def test_two_updates_without_a_token_between_them_leave_one_cut() -> None:
    models = versions(3)
    engine = make_engine()
    engine.submit(request("g", (2, 3, 4), LONG, (1,)))
    for _ in range(5):
        engine.step()
    for version in (1, 2):
        engine.load_weights(published_tensors(models[version]), version, recompute=True)
    groups = steps_until_done(engine)
    (rollout,) = groups[0].rollouts
    assert [set(one.weight_version[one.trained].tolist()) for one in rollout.segments] == [{0}, {2}]
    assert gap(groups, models) == 0.0


def test_abort_right_behind_new_weights_gives_back_what_the_old_ones_drew() -> None:
    engine = make_engine()
    engine.submit(replace(request("g", (2, 3, 4), LONG, (1, 2)), keep_keys=True))
    for _ in range(5):
        engine.step()
    engine.load_weights(published_tensors(tiny_model(7)), 1, recompute=True)
    (group,) = engine.abort()
    for rollout in group.rollouts:
        assert [(one.finish_reason, one.num_trained) for one in rollout.segments] == [("abort", 5)]
        check_conservation(rollout.segments, "here")
    assert_nothing_leaked(engine)


@pytest.mark.parametrize(
    ("changes", "prompt", "shared"),
    [
        ({}, 37, 32),
        ({"prefix_cache": False}, 37, 32),
        ({}, 32, 32),
        ({}, 7, 0),
        pytest.param({"prefix_cache": False}, 32, 32, marks=pytest.mark.slow),
        pytest.param({"prefix_cache": False}, 7, 0, marks=pytest.mark.slow),
    ],
)
def test_recompute_runs_a_groups_prompt_once_with_the_bits_of_running_it_for_each_sample(
    changes: dict[str, int], prompt: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [request(f"g{n}", [2 + (n + place) % 9 for place in range(prompt)], LONG, range(4)) for n in range(2)]

    def sampled() -> tuple[list[Group], int]:
        engine = make_engine(page_size=8, **changes)
        for entry in entries:
            engine.submit(entry)
        groups = sampled_over(engine, versions(3), 12, recompute=True)
        assert_nothing_leaked(engine)
        return sorted(groups, key=lambda group: group.group_id), engine.counters.rerun_tokens

    groups, ran = sampled()
    assert gap(groups, versions(3)) == 0.0
    monkeypatch.setattr(PromptQueue, "_prefix_of", lambda *arguments: [])
    alone, ran_for_each = sampled()
    for group, other in zip(groups, alone, strict=True):
        assert_same_samples(group, other)
    # Of four samples of each of two groups three find the prompt's full pages, at each of two updates.
    assert ran_for_each - ran == 2 * 2 * 3 * shared


def test_recompute_shares_a_prompt_whose_prefill_takes_several_passes() -> None:
    """Samples are admitted while the pages that they share are still to be run, and some of them in another pass than the oldest."""
    engine = make_engine(page_size=8, max_batch_tokens=16, cache_tokens=256)
    for number in range(2):
        engine.submit(request(f"g{number}", [2 + (number + place) % 9 for place in range(37)], LONG, range(4)))
    groups = sampled_over(engine, versions(3), 12, recompute=True)
    assert gap(groups, versions(3)) == 0.0
    assert_nothing_leaked(engine)
    contexts = sum(len(one.token_ids) for group in groups for rollout in group.rollouts for one in rollout.segments[1:])
    assert 0 < engine.counters.rerun_tokens < contexts / 2


def test_prompt_that_older_weights_ran_is_not_shared_with_a_sample_that_runs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that come with `continue`: who had given its pages back is computed anew beside others whose prompt is of the old ones."""

    def sampled() -> Group:
        engine = make_engine(page_size=4, cache_tokens=96, prefix_cache=False)
        short = LONG.model_copy(update={"max_new_tokens": 12})
        engine.submit(request("short", (2, 3, 4), short, range(4)))
        engine.submit(request("g", tuple(range(2, 15)), LONG, range(3)))
        while engine.counters.preempted == 0:
            assert engine.step() == []
        engine.load_weights(published_tensors(tiny_model(7)), 1)
        groups = {group.group_id: group for group in steps_until_done(engine)}
        assert engine.counters.rerun_tokens > 0
        return groups["g"]

    group = sampled()
    monkeypatch.setattr(PromptQueue, "_prefix_of", lambda *arguments: [])
    assert_same_samples(group, sampled())
