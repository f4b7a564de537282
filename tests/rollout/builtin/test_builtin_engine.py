"""The engine samples on a path that the learner walks again to the last bit, whatever batch, order or cache it happened in."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.files.checkpoint import published_tensors
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
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
from tests.tiny_runs import random_prompt, request

NEW_WEIGHTS = published_tensors(tiny_model(7))


@dataclass(frozen=True)
class Workload:
    """Random requests, in submission order, with the number of steps run before each."""

    requests: tuple[GroupRequest, ...]
    pauses: tuple[int, ...]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Prompts of 1 to 50 tokens, often with a shared beginning, so that pages are found again."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    stems = [random_prompt(rng, 18, 40) for _ in range(2)]
    sampling = draw(st.sampled_from(SAMPLINGS))
    requests = []
    for number in range(draw(st.integers(1, 6))):
        stem = stems[draw(st.integers(0, 1))][: draw(st.integers(0, 40))]
        prompt = (*stem, *random_prompt(rng, 18, draw(st.integers(1, 10))))
        seeds = [int(seed) for seed in rng.integers(0, 2**63, draw(st.integers(1, 4)))]
        requests.append(request(f"g{number}", prompt, sampling, seeds))
    pauses = draw(st.lists(st.integers(0, 9), min_size=len(requests), max_size=len(requests)))
    return Workload(requests=tuple(draw(st.permutations(requests))), pauses=tuple(pauses))


engine_settings = st.builds(
    BuiltinSettings,
    max_sequences=st.sampled_from([4, 5, 64]),
    max_batch_tokens=st.sampled_from([16, 23, 1024]),
    page_size=st.sampled_from([1, 4, 7, 16]),
    cache_tokens=st.sampled_from([96, 320, 4096]),
    prefix_cache=st.booleans(),
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(workload=workloads(), sizes=engine_settings)
def test_engine_any_schedule_equals_the_learner_and_every_other_schedule_bit_for_bit(
    workload: Workload, sizes: BuiltinSettings
) -> None:
    engine = BuiltinEngine(tiny_model(), TOKENIZER, sizes)
    done = []
    for entry, pause in zip(workload.requests, workload.pauses, strict=True):
        for _ in range(pause):
            done += engine.step()
        assert engine.submit(entry) is None
    done += steps_until_done(engine)
    assert_nothing_leaked(engine)
    groups = {group.group_id: group for group in done}
    temperature = workload.requests[0].sampling.temperature
    assert_learner_walks_the_same_path([groups[entry.group_id] for entry in workload.requests], temperature)
    for wanted in make_engine().run(sorted(workload.requests, key=lambda entry: entry.group_id)):
        assert_same_samples(groups[wanted.group_id], wanted)


def long_requests(count: int, sampling: SamplingSettings = SAMPLINGS[0], stem_length: int = 40) -> list[GroupRequest]:
    """Different ends after one shared beginning."""
    rng = np.random.default_rng(0)
    stem = random_prompt(rng, 18, stem_length)
    return [request(f"g{n}", (*stem, *random_prompt(rng, 18, 3)), sampling, (n, n + 100)) for n in range(count)]


def test_run_repeated_long_prompts_reuse_their_prefix_and_change_nothing() -> None:
    entries = long_requests(4)
    cached, plain = make_engine(page_size=4), make_engine(page_size=4, prefix_cache=False)
    first = [cached.run([entry])[0] for entry in entries]
    assert cached.counters.reused_tokens == 3 * 40
    assert cached.counters.prefill_tokens == 43 + 3 * 3
    for group, wanted in zip(first, plain.run(entries), strict=True):
        assert_same_samples(group, wanted)
    assert plain.counters.reused_tokens == 0
    assert_learner_walks_the_same_path(first, 1.0)


def test_run_whole_prompt_cached_still_runs_its_last_token() -> None:
    prompt = random_prompt(np.random.default_rng(0), 18, 16)
    engine = make_engine(page_size=4)
    one, other = (engine.run([request("g", prompt, SAMPLINGS[0])])[0] for _ in range(2))
    assert engine.counters.reused_tokens == 12
    assert_same_samples(one, other)


def test_run_small_cache_evicts_prefixes_and_stays_exact() -> None:
    """Twelve prompts with different beginnings through 24 pages: every prefix is evicted before it comes back."""
    rng = np.random.default_rng(1)
    entries = [request(f"g{n}", random_prompt(rng, 18, 25), SAMPLINGS[0], (n,)) for n in range(12)]
    engine, roomy = make_engine(page_size=4, cache_tokens=96), make_engine()
    for _ in range(2):
        groups = [engine.run([entry])[0] for entry in entries]
    for group, wanted in zip(groups, roomy.run(entries), strict=True):
        assert_same_samples(group, wanted)
    assert_nothing_leaked(engine)


def test_load_weights_equals_a_fresh_engine_with_these_weights() -> None:
    entries = long_requests(3)
    engine = make_engine(page_size=4)
    engine.run(entries)
    engine.load_weights(NEW_WEIGHTS, version=1)
    fresh = make_engine(tiny_model(7), page_size=4)
    fresh.weight_version = 1
    for group, wanted in zip(engine.run(entries), fresh.run(entries), strict=True):
        assert_same_samples(group, wanted)


def test_load_weights_without_dropping_old_prefixes_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: prefixes of the old weights give other log-probabilities."""
    entries = long_requests(1)
    engine = make_engine(page_size=4)
    engine.run(entries)
    monkeypatch.setattr(PagePool, "forget_all", lambda self: None)
    engine.load_weights(NEW_WEIGHTS, version=1)
    stale, fresh = engine.run(entries)[0], make_engine(tiny_model(7), page_size=4).run(entries)[0]
    assert engine.counters.reused_tokens > 0
    for one, other in zip(stale.rollouts, fresh.rollouts, strict=True):
        assert not np.array_equal(one.segments[0].sampler_logprobs, other.segments[0].sampler_logprobs)


@pytest.mark.parametrize("steps_before", [0, 1, 2])
@pytest.mark.parametrize("prefix_known", [False, True])
def test_load_weights_during_a_prefill_publishes_no_stale_prefix(steps_before: int, prefix_known: bool) -> None:
    """A prompt that is half run when the weights change holds old keys; the next group must not find them."""
    blocker, *entries = long_requests(3, stem_length=60)
    engine = make_engine(page_size=4, max_batch_tokens=16)
    if prefix_known:
        engine.run([blocker])
    engine.submit(entries[0])
    for _ in range(steps_before):
        engine.step()
    engine.load_weights(NEW_WEIGHTS, version=1)
    steps_until_done(engine)
    fresh = make_engine(tiny_model(7))
    fresh.weight_version = 1
    assert_same_samples(engine.run(entries[1:])[0], fresh.run(entries[1:])[0])
    assert_nothing_leaked(engine)


def test_load_weights_in_flight_stamps_each_token_with_its_version() -> None:
    engine = make_engine()
    engine.submit(request("g", (2, 3, 4), SAMPLINGS[0], (1, 2, 3)))
    for version, steps in ((1, 5), (2, 3)):
        for _ in range(steps):
            assert engine.step() == []
        engine.load_weights(NEW_WEIGHTS, version)
    (group,) = steps_until_done(engine)
    for rollout in group.rollouts:
        assert rollout.segments[0].weight_version.tolist() == [-1] * 3 + [0] * 5 + [1] * 3 + [2] * 6


def test_load_weights_misfit_leaves_the_engine_as_it_was() -> None:
    engine = make_engine()
    wanted = engine.run(long_requests(1))[0]
    with pytest.raises(ValueError, match="missing"):
        engine.load_weights({}, version=5)
    assert engine.weight_version == 0
    assert_same_samples(engine.run(long_requests(1))[0], wanted)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(workload=workloads(), sizes=engine_settings, steps=st.integers(0, 25))
def test_abort_returns_every_group_as_far_as_it_got_and_leaks_nothing(
    workload: Workload, sizes: BuiltinSettings, steps: int
) -> None:
    engine = BuiltinEngine(tiny_model(), TOKENIZER, sizes)
    for entry in workload.requests:
        engine.submit(entry)
    finished = [group for _ in range(steps) for group in engine.step()]
    aborted = engine.abort()
    assert_nothing_leaked(engine)
    assert sorted(group.group_id for group in finished + aborted) == sorted(e.group_id for e in workload.requests)
    wanted = {group.group_id: group for group in make_engine().run(workload.requests)}
    for group in aborted:
        for partial, whole in zip(group.rollouts, wanted[group.group_id].rollouts, strict=True):
            if partial.failure:
                assert (partial.failure, partial.segments) == ("aborted", ())
                continue
            segment, full = partial.segments[0], whole.segments[0]
            length = len(segment.token_ids)
            assert segment.finish_reason == ("abort" if length < len(full.token_ids) else full.finish_reason)
            assert np.array_equal(segment.token_ids, full.token_ids[:length])
            assert np.array_equal(segment.sampler_logprobs, full.sampler_logprobs[:length])
            assert np.array_equal(segment.routes[:-1], full.routes[: length - 1])
    usable = [replace(g, rollouts=tuple(r for r in g.rollouts if not r.failure)) for g in aborted]
    if any(group.rollouts for group in usable):
        assert_learner_walks_the_same_path(usable, workload.requests[0].sampling.temperature)
    again = engine.run(workload.requests)
    for group in again:
        assert_same_samples(group, wanted[group.group_id])
