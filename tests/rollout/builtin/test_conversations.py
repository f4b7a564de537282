"""Calls that go on from one another find their keys again, and nothing that is drawn or recorded changes by it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.files.checkpoint import published_tensors
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.graph_capture import Capture, Work
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import (
    SAMPLINGS,
    TOKENIZER,
    assert_learner_walks_the_same_path,
    assert_nothing_leaked,
    assert_same_samples,
    make_engine,
    steps_until_done,
)
from tests.families import family_model
from tests.held_conversations import Talk, hold, talks
from tests.tiny_runs import random_prompt, request

LONG = {"max_position_embeddings": 512}
NEW_WEIGHTS = published_tensors(tiny_model(7, **LONG))
FREE = SamplingSettings(max_new_tokens=8, ignore_stop=True)

RAGGED = SamplingSettings(max_new_tokens=20, stop_token_ids=(4, 9, 12))


def repeat(work: Work) -> Work:
    """A capture without a graph: the same work on the same memory."""
    work()
    return work


def long_engine(capture: Capture | None = None, **changes: object) -> BuiltinEngine:
    return BuiltinEngine(tiny_model(**LONG), TOKENIZER, BuiltinSettings.model_validate(changes), capture)


def long_talks(count: int, calls: int) -> tuple[Talk, ...]:
    """Openings of 20 tokens, answers of 8, and 4 between an answer and the next message."""
    rng = np.random.default_rng(count)
    return tuple(
        Talk(
            name=str(number),
            opening=random_prompt(rng, 18, 20),
            bridges=tuple(random_prompt(rng, 18, 4) for _ in range(calls - 1)),
            sampling=FREE,
        )
        for number in range(count)
    )


def found_share(counters: EngineCounters) -> float:
    return counters.reused_tokens / (counters.reused_tokens + counters.prefill_tokens)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    entries=talks(),
    page_size=st.sampled_from([1, 4, 7, 16]),
    cache_tokens=st.sampled_from([160, 4096]),
    max_batch_tokens=st.sampled_from([16, 1024]),
    by_graph=st.booleans(),
)
def test_keep_keys_any_conversation_equals_one_whose_prompts_are_run_whole(
    entries: tuple[Talk, ...], page_size: int, cache_tokens: int, max_batch_tokens: int, by_graph: bool
) -> None:
    """Tokens, log-probabilities, routes, fingerprints and candidates; also where keys are evicted, and under captured passes."""
    keeping = long_engine(
        repeat if by_graph else None,
        page_size=page_size,
        cache_tokens=cache_tokens,
        max_batch_tokens=max_batch_tokens,
    )
    groups = hold(keeping, entries, keep_keys=True)
    assert_nothing_leaked(keeping)
    plain = long_engine(prefix_cache=False)
    for group, wanted in zip(groups, hold(plain, entries, keep_keys=False), strict=True):
        assert_same_samples(group, wanted)
    assert plain.counters.reused_tokens == 0
    if not keeping.counters.preempted:
        assert keeping.counters.prefill_tokens + keeping.counters.reused_tokens == plain.counters.prefill_tokens
    assert_learner_walks_the_same_path(groups, entries[0].sampling.temperature, tiny_model(**LONG))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "llama"])
def test_keep_keys_of_other_families_equals_the_learner_bit_for_bit(name: str) -> None:
    engine = BuiltinEngine(family_model(name, **LONG), TOKENIZER, BuiltinSettings(page_size=4))
    groups = hold(engine, long_talks(2, 4), keep_keys=True)
    assert found_share(engine.counters) > 0.5
    assert_learner_walks_the_same_path(groups, 1.0, family_model(name, **LONG))


def test_keep_keys_runs_only_the_tail_page_and_what_is_new() -> None:
    """Call k finds the full pages of what ran before: prompt and response but its last token. 20 + 8 drawn + 4, pages of 8."""
    engine = long_engine(page_size=8)
    hold(engine, long_talks(1, 2), keep_keys=True)
    assert (engine.counters.prefill_tokens, engine.counters.reused_tokens) == (20 + 8, 24)


def test_keep_keys_most_of_a_long_conversation_comes_from_the_cache() -> None:
    keeping, prompts_alone = long_engine(page_size=4), long_engine(page_size=4)
    groups = hold(keeping, long_talks(2, 13), keep_keys=True)
    for group, wanted in zip(groups, hold(prompts_alone, long_talks(2, 13), keep_keys=False), strict=True):
        assert_same_samples(group, wanted)
    assert found_share(keeping.counters) >= 0.85
    assert prompts_alone.counters.prefill_tokens > 1.4 * keeping.counters.prefill_tokens


def test_keep_keys_evicted_by_others_are_computed_anew() -> None:
    """A cache that holds one conversation: the others push its keys out before its next call."""
    engine = long_engine(page_size=4, cache_tokens=96)
    entries = long_talks(3, 4)
    for group, wanted in zip(
        hold(engine, entries, keep_keys=True), hold(long_engine(), entries, keep_keys=True), strict=True
    ):
        assert_same_samples(group, wanted)
    assert_nothing_leaked(engine)
    assert found_share(engine.counters) < 0.5


def next_call(engine: BuiltinEngine, group: Group) -> Group:
    """Go on from the group's only answer."""
    prompt = (*group.rollouts[0].segments[0].token_ids.tolist(), 5, 6)
    return engine.run([replace(request("next", prompt, FREE, (9,)), keep_keys=True)])[0]


@pytest.mark.parametrize("steps_before", [1, 5])
@pytest.mark.parametrize("by_graph", [False, True])
def test_keep_keys_of_a_response_that_saw_new_weights_are_never_found(steps_before: int, by_graph: bool) -> None:
    engine = long_engine(repeat if by_graph else None, page_size=4)
    engine.submit(replace(request("first", (2, 3, 4, 5, 6), FREE, (1,)), keep_keys=True))
    for _ in range(steps_before):
        assert engine.step() == []
    engine.load_weights(NEW_WEIGHTS, version=1)
    (group,) = steps_until_done(engine)
    fresh = BuiltinEngine(tiny_model(7, **LONG), TOKENIZER, BuiltinSettings())
    fresh.weight_version = 1
    assert_same_samples(next_call(engine, group), next_call(fresh, group))
    assert engine.counters.reused_tokens == 0


def test_keep_keys_are_found_again_by_the_first_call_after_new_weights_that_began_under_them() -> None:
    """A request that still waited when the weights changed has keys of the new ones alone."""
    engine = long_engine(page_size=4, max_sequences=1)
    engine.submit(request("before", (2, 3, 4), FREE, (1,)))
    engine.submit(replace(request("waits", (7, 8, 9, 10, 11), FREE, (2,)), keep_keys=True))
    engine.step()
    engine.load_weights(NEW_WEIGHTS, version=1)
    _, group = steps_until_done(engine)
    next_call(engine, group)
    assert engine.counters.reused_tokens == 12


def test_keep_keys_without_prefix_cache_is_refused_with_what_to_set() -> None:
    engine = make_engine(prefix_cache=False)
    with pytest.raises(ValueError, match=r"talk: keep_keys .* Set engine\.prefix_cache=true"):
        engine.submit(replace(request("talk", (2, 3), FREE), keep_keys=True))
    assert not engine.busy


def ragged(*, apart: bool) -> list:
    """Groups whose samples end at different times."""
    return [
        replace(request(f"g{number}", (5, 6, number + 3), RAGGED, (11, 12, 13, 14)), apart=apart) for number in range(3)
    ]


@pytest.mark.parametrize("by_graph", [False, True])
def test_apart_each_sample_comes_back_in_the_step_that_ends_it(by_graph: bool) -> None:
    engine, whole = long_engine(repeat if by_graph else None), long_engine()
    for entry in ragged(apart=True):
        engine.submit(entry)
    seen: dict[tuple[str, int], int] = {}
    wanted = {group.group_id: group for group in whole.run(ragged(apart=False))}
    while engine.busy:
        for group in engine.step():
            (rollout,) = group.rollouts
            seen[group.group_id, rollout.sample_index] = engine.counters.steps
            own = replace(wanted[group.group_id], rollouts=(wanted[group.group_id].rollouts[rollout.sample_index],))
            assert_same_samples(group, own)
    assert_nothing_leaked(engine)
    lengths = {
        (name, index): rollout.num_trained
        for name, group in wanted.items()
        for index, rollout in enumerate(group.rollouts)
    }
    assert len(set(lengths.values())) > 3
    assert seen == lengths


def test_run_puts_samples_that_came_apart_together_again() -> None:
    for group, wanted in zip(
        make_engine().run(ragged(apart=True)), make_engine().run(ragged(apart=False)), strict=True
    ):
        assert_same_samples(group, wanted)


def test_run_of_a_request_apart_that_can_never_run_gives_its_failures_whole() -> None:
    entry = replace(request("g", (), SAMPLINGS[0], (1, 2, 3)), apart=True)
    (group,) = make_engine().run([entry])
    assert [(one.sample_index, one.failure) for one in group.rollouts] == [
        (0, "no_tokens"),
        (1, "no_tokens"),
        (2, "no_tokens"),
    ]


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_abort_of_samples_apart_gives_back_each_that_had_not_come_back_once(steps: int) -> None:
    engine = make_engine(max_sequences=8)
    for entry in ragged(apart=True):
        engine.submit(entry)
    groups = [group for _ in range(steps) for group in engine.step()]
    groups += engine.abort()
    assert_nothing_leaked(engine)
    assert sorted((group.group_id, rollout.sample_index) for group in groups for rollout in group.rollouts) == [
        (f"g{number}", index) for number in range(3) for index in range(4)
    ]
    assert all(len(group.rollouts) == 1 for group in groups)
    if steps < 2:
        waited = [rollout.failure for group in groups for rollout in group.rollouts if group.group_id == "g2"]
        assert waited == ["aborted"] * 4
