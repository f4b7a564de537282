"""Samples give their pages back to older ones and are prefilled again, and nothing that is drawn or recorded changes by it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.files.checkpoint import published_tensors
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.page_demand import most_pages
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import (
    TOKENIZER,
    assert_learner_walks_the_same_path,
    assert_nothing_leaked,
    assert_same_samples,
    make_engine,
    steps_until_done,
)
from tests.rollout.builtin.test_builtin_engine import Workload, workloads
from tests.rollout.builtin.test_conversations import repeat
from tests.tiny_runs import random_prompt, request

FREE = SamplingSettings(max_new_tokens=24, ignore_stop=True)


def entries(count: int = 3, samples: int = 3, sampling: SamplingSettings = FREE) -> list[GroupRequest]:
    rng = np.random.default_rng(4)
    return [
        request(f"g{n}", random_prompt(rng, 18, 5 + 3 * n), sampling, range(10 * n, 10 * n + samples))
        for n in range(count)
    ]


def tight_engine(by_graph: bool = False, **changes: object) -> BuiltinEngine:
    """A cache of 64 tokens in pages of 4."""
    sizes = BuiltinSettings.model_validate({"page_size": 4, "cache_tokens": 64, **changes})
    return BuiltinEngine(tiny_model(), TOKENIZER, sizes, repeat if by_graph else None)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    workload=workloads(),
    page_size=st.sampled_from([1, 3, 4, 16]),
    spare_pages=st.integers(0, 6),
    max_batch_tokens=st.sampled_from([16, 1024]),
    prefix_cache=st.booleans(),
    by_graph=st.booleans(),
)
def test_preemption_in_the_smallest_cache_changes_nothing(
    workload: Workload, page_size: int, spare_pages: int, max_batch_tokens: int, prefix_cache: bool, by_graph: bool
) -> None:
    """A cache that holds the longest sample and hardly more, in any order of arrival."""
    longest = max(
        most_pages(len(one.prompt.token_ids), one.sampling.max_new_tokens, page_size) for one in workload.requests
    )
    engine = tight_engine(
        by_graph,
        page_size=page_size,
        cache_tokens=max(64, page_size * (longest + spare_pages)),
        max_batch_tokens=max_batch_tokens,
        prefix_cache=prefix_cache,
    )
    done = []
    for entry, pause in zip(workload.requests, workload.pauses, strict=True):
        done += [group for _ in range(pause) for group in engine.step()]
        assert engine.submit(entry) is None
    done += steps_until_done(engine)
    assert_nothing_leaked(engine)
    groups = {group.group_id: group for group in done}
    for wanted in make_engine().run(workload.requests):
        assert_same_samples(groups[wanted.group_id], wanted)


@pytest.mark.parametrize("by_graph", [False, True])
def test_preemption_gives_back_the_youngest_and_is_counted(by_graph: bool) -> None:
    engine = tight_engine(by_graph)
    groups = engine.run(entries())
    assert engine.counters.preempted > 3
    assert engine.counters.rerun_tokens > 0
    assert_nothing_leaked(engine)
    roomy = make_engine()
    for group, wanted in zip(groups, roomy.run(entries()), strict=True):
        assert_same_samples(group, wanted)
    assert (roomy.counters.preempted, roomy.counters.rerun_tokens) == (0, 0)
    assert engine.counters.sampled_tokens == roomy.counters.sampled_tokens
    assert_learner_walks_the_same_path(groups, 1.0)


def test_preemption_never_holds_up_the_oldest_sample() -> None:
    """It ends in the step in which it would end alone: one for its prompt and first token, one for each of the others."""
    engine = tight_engine()
    for entry in entries():
        engine.submit(replace(entry, apart=True))
    ends: dict[tuple[str, int], int] = {}
    while engine.busy:
        for group in engine.step():
            ends[group.group_id, group.rollouts[0].sample_index] = engine.counters.steps
    assert engine.counters.preempted > 3
    assert ends["g0", 0] == FREE.max_new_tokens
    assert list(ends) == sorted(ends), "older samples end first"
    assert len(set(ends.values())) > 3


@pytest.mark.parametrize("max_new_tokens", [1, 24])
def test_preemption_of_a_group_that_no_cache_page_is_left_for_begins_its_samples_one_after_the_other(
    max_new_tokens: int,
) -> None:
    """Sixteen samples in eight pages: most find none when the prompt is done, and draw their first token without."""
    (entry,) = entries(1, 16, SamplingSettings(max_new_tokens=max_new_tokens, ignore_stop=True))
    engine = tight_engine(page_size=8)
    (group,) = engine.run([entry])
    assert engine.counters.preempted >= 16 - 8
    assert_same_samples(group, make_engine().run([entry])[0])


def test_submit_takes_what_fits_alone_to_the_last_token_and_refuses_one_more() -> None:
    """16 pages of 4: prompt 40 and 25 new tokens, of which the last is never run."""
    fits, too_long = (SamplingSettings(max_new_tokens=count, ignore_stop=True) for count in (25, 26))
    prompt = random_prompt(np.random.default_rng(0), 18, 40)
    engine = tight_engine()
    group, refused = engine.run([request("fits", prompt, fits, (1, 2, 3)), request("not", prompt, too_long, (1,))])
    assert [rollout.num_trained for rollout in group.rollouts] == [25] * 3
    assert refused.rollouts[0].failure == "out_of_cache"
    assert_same_samples(group, make_engine().run([request("fits", prompt, fits, (1, 2, 3))])[0])


def before(group: Group, index: int, version: int) -> tuple[list[int], list[float], bytes, bytes]:
    """Tokens that a version drew, their log-probabilities, and routes and selections of the rows that they were drawn from."""
    segment = group.rollouts[index].segments[0]
    drawn = (segment.weight_version == version).nonzero()[0]
    prints = segment.selection_fingerprint
    assert prints is not None
    return (
        segment.token_ids[drawn].tolist(),
        segment.sampler_logprobs[drawn].tolist(),
        segment.routes[drawn - 1].tobytes(),
        prints[drawn - 1].tobytes(),
    )


@pytest.mark.parametrize("by_graph", [False, True])
def test_preemption_keeps_the_record_of_the_weights_that_drew_each_token(by_graph: bool) -> None:
    """A sample that waits while the weights change is prefilled with the new ones: what the old ones drew keeps their routes."""
    (entry,) = entries(1, 4)
    engine, whole = tight_engine(by_graph), make_engine().run([entry])[0]
    engine.submit(entry)
    while engine.counters.preempted == 0:
        assert engine.step() == []
    engine.load_weights(published_tensors(tiny_model(7)), version=1)
    (group,) = steps_until_done(engine)
    assert engine.counters.rerun_tokens > 0
    for index in range(4):
        old = before(group, index, 0)
        count = len(old[0])
        assert 0 < count < FREE.max_new_tokens
        start = len(entry.prompt.token_ids)
        segment = whole.rollouts[index].segments[0]
        assert segment.selection_fingerprint is not None
        assert old == (
            segment.token_ids[start : start + count].tolist(),
            segment.sampler_logprobs[start : start + count].tolist(),
            segment.routes[start - 1 : start - 1 + count].tobytes(),
            segment.selection_fingerprint[start - 1 : start - 1 + count].tobytes(),
        )


@pytest.mark.parametrize(
    ("by_graph", "half_prefilled"),
    [
        (False, True),
        (True, False),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_abort_of_samples_that_wait_or_are_prefilled_again_gives_back_what_they_drew(
    half_prefilled: bool, by_graph: bool
) -> None:
    """Chunks of 16 tokens, so that some are half prefilled; keys that they had not run are never found."""
    asked = [replace(entry, keep_keys=True) for entry in entries()]
    engine = tight_engine(by_graph, max_batch_tokens=16)
    whole = {group.group_id: group for group in make_engine().run(asked)}
    for entry in asked:
        engine.submit(entry)
    groups = []
    while not (
        any(prefill.sample for prefill in engine._queue._running) if half_prefilled else engine.counters.preempted > 2
    ):
        groups += engine.step()
    groups += engine.abort()
    assert_nothing_leaked(engine)
    assert sorted(group.group_id for group in groups) == ["g0", "g1", "g2"]
    begun = 0
    for group in groups:
        for partial, full in zip(group.rollouts, whole[group.group_id].rollouts, strict=True):
            if partial.failure:
                assert partial.failure == "aborted"
                continue
            begun += 1
            (segment,), (other,) = partial.segments, full.segments
            length = len(segment.token_ids)
            assert np.array_equal(segment.token_ids, other.token_ids[:length])
            assert np.array_equal(segment.sampler_logprobs, other.sampler_logprobs[:length])
            assert np.array_equal(segment.routes[:-1], other.routes[: length - 1])
    assert begun >= 3
    for group in engine.run(asked):
        assert_same_samples(group, whole[group.group_id])


def test_preemption_a_younger_group_never_begins_before_the_samples_of_an_older_one() -> None:
    """Two prompts end in one pass, after another sample took eight pages: 15 are left for the 19 that the older needs, so the younger waits."""
    engine = tight_engine(cache_tokens=160, max_batch_tokens=16, max_sequences=32)
    rng = np.random.default_rng(0)
    short = SamplingSettings(max_new_tokens=4, ignore_stop=True)
    asked = [
        request("d", random_prompt(rng, 18, 2), SamplingSettings(max_new_tokens=100, ignore_stop=True), (1,)),
        replace(request("older", random_prompt(rng, 18, 17), short, range(20)), apart=True),
        replace(request("younger", random_prompt(rng, 18, 10), short, (5,)), apart=True),
    ]
    engine.submit(asked[0])
    for _ in range(34):
        engine.step()
    for entry in asked[1:]:
        engine.submit(entry)
    groups = steps_until_done(engine)
    assert engine.counters.preempted == 4 + 1
    assert [group.group_id for group in groups] == ["older"] * 20 + ["younger", "d"]
    wanted = {group.group_id: group for group in make_engine().run(asked)}
    for group in groups:
        whole = wanted[group.group_id]
        indices = {rollout.sample_index for rollout in group.rollouts}
        own = tuple(rollout for rollout in whole.rollouts if rollout.sample_index in indices)
        assert_same_samples(group, replace(whole, rollouts=own))


def test_preemption_takes_a_prompts_pages_before_those_of_a_sample() -> None:
    """Fourteen samples leave room for one or two tokens of the next prompt in each pass; their growth takes its pages, and none of theirs."""
    engine = tight_engine(cache_tokens=180, max_batch_tokens=16, max_sequences=15)
    rng = np.random.default_rng(0)
    grows = SamplingSettings(max_new_tokens=12, ignore_stop=True)
    first = request("first", random_prompt(rng, 18, 4), grows, range(14))
    second = request("second", random_prompt(rng, 18, 30), grows, (1,))
    engine.submit(first)
    engine.step()
    engine.submit(second)
    groups = []
    while not groups:
        groups = engine.step()
    assert engine.counters.steps == 12
    assert engine.counters.preempted == 1
    groups += steps_until_done(engine)
    for group, wanted in zip(groups, make_engine().run([first, second]), strict=True):
        assert_same_samples(group, wanted)


def test_preempted_sample_begins_again_beside_those_that_hold_its_prompt() -> None:
    """It needs pages for its own tokens alone, which the first that ends leaves: not for the whole prompt, which its siblings hold."""
    engine = tight_engine(cache_tokens=104)
    prompt = random_prompt(np.random.default_rng(0), 18, 40)
    older = replace(request("older", prompt, SamplingSettings(max_new_tokens=60, ignore_stop=True), (1,)), apart=True)
    younger = SamplingSettings(max_new_tokens=12, ignore_stop=True)
    engine.submit(older)
    engine.step()
    engine.submit(replace(request("younger", prompt, younger, (2, 3, 4)), apart=True))
    names = [(group.group_id, group.rollouts[0].sample_index) for group in steps_until_done(engine)]
    assert engine.counters.preempted > 0
    assert names == [("younger", 0), ("younger", 1), ("younger", 2), ("older", 0)]
