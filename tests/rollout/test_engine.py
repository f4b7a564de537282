"""The engine samples on a path that the learner walks again to the last bit, whatever batch, order or cache it happened in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.checkpoint import published_tensors
from samepath.model.network import CausalLM
from samepath.model.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.policy_pass import run_policy
from samepath.rollout.engine import Engine, EngineSettings
from samepath.rollout.pages import PagePool
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import ALPHABET, tiny_model
from tests.tiny_runs import learner_batch, packed_input, random_prompt, request, run

TOKENIZER = character_tokenizer(ALPHABET)
LEARNER = tiny_model()
"""Never touched by an engine: the learner's own copy of the weights."""
NEW_WEIGHTS = published_tensors(tiny_model(7))

SAMPLINGS = (
    SamplingSettings(max_new_tokens=14, ignore_stop=True),
    SamplingSettings(max_new_tokens=20, temperature=0.7, top_p=0.8),
    SamplingSettings(max_new_tokens=9, temperature=1.3, top_k=5, min_p=0.02),
    SamplingSettings(max_new_tokens=12, top_p=0.9, support_cap=12),
)


def make_engine(model: CausalLM | None = None, **changes: object) -> Engine:
    return Engine(model or tiny_model(), TOKENIZER, EngineSettings.model_validate(changes))


def steps_until_done(engine: Engine) -> list[Group]:
    groups = []
    while engine.busy:
        groups += engine.step()
    return groups


def assert_same_samples(left: Group, right: Group) -> None:
    """Everything recorded is equal to the last bit, except times."""
    assert left.group_id == right.group_id
    for one, other in zip(left.rollouts, right.rollouts, strict=True):
        assert (one.text, one.failure, one.sample_index) == (other.text, other.failure, other.sample_index)
        for first, second in zip(one.segments, other.segments, strict=True):
            assert first.finish_reason == second.finish_reason
            for name in (
                "token_ids",
                "trained",
                "sampler_logprobs",
                "routes",
                "selection_fingerprint",
                "weight_version",
            ):
                assert np.array_equal(getattr(first, name), getattr(second, name)), name
            assert (first.support is None) == (second.support is None)
            if first.support is not None and second.support is not None:
                assert np.array_equal(first.support.counts, second.support.counts)
                assert np.array_equal(first.support.ids, second.support.ids)


def assert_learner_walks_the_same_path(groups: Sequence[Group], temperature: float, model: CausalLM = LEARNER) -> None:
    """Log-probabilities, routes and attended sets of the packed pass equal the record, with and without replay."""
    batch = learner_batch(groups, temperature, model.config)
    assert batch.missing_routes == 0
    for routes_LNX in (batch.routes_LNX, None):
        with torch.no_grad():
            seen = run_policy(model, batch, routes_LNX=routes_LNX, use_support=True, fingerprints=True)
        assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
        rows = slice(0, batch.num_rows)
        assert torch.equal(torch.stack(seen.trace.live_routes)[:, rows], batch.routes_LNX[:, rows])
        assert torch.equal(seen.trace.stacked_fingerprints()[rows], batch.fingerprints_NL[rows])


def assert_nothing_leaked(engine: Engine) -> None:
    assert not engine.busy
    assert engine._pages.available == engine._pages.num_pages
    assert sorted(engine._free_rows) == list(range(engine.settings.max_sequences))


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
    EngineSettings,
    max_sequences=st.sampled_from([4, 5, 64]),
    max_batch_tokens=st.sampled_from([16, 23, 1024]),
    page_size=st.sampled_from([1, 4, 7, 16]),
    cache_tokens=st.sampled_from([320, 4096]),
    prefix_cache=st.booleans(),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(workload=workloads(), sizes=engine_settings)
def test_engine_any_schedule_equals_the_learner_and_every_other_schedule_bit_for_bit(
    workload: Workload, sizes: EngineSettings
) -> None:
    engine = Engine(tiny_model(), TOKENIZER, sizes)
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


def test_submit_equal_seeds_give_equal_samples_and_others_differ() -> None:
    prompt = (5, 6, 7)
    (group,) = make_engine().run([request("g", prompt, SAMPLINGS[0], (11, 12, 11))])
    texts = [rollout.segments[0].token_ids.tolist() for rollout in group.rollouts]
    assert texts[0] == texts[2] != texts[1]


def test_finish_at_max_new_tokens_has_reason_length() -> None:
    (group,) = make_engine().run([request("g", (5, 6), SamplingSettings(max_new_tokens=7, ignore_stop=True))])
    for rollout in group.rollouts:
        assert rollout.segments[0].finish_reason == "length"
        assert rollout.truncated
        assert rollout.num_trained == 7


def answers(sampling: SamplingSettings, count: int = 40) -> list[tuple[str, list[int], str]]:
    """(finish reason, sampled ids, text) of many samples of one prompt."""
    (group,) = make_engine().run([request("g", (5, 6), sampling, range(count))])
    return [
        (rollout.segments[0].finish_reason, rollout.segments[0].token_ids[2:].tolist(), rollout.text)
        for rollout in group.rollouts
    ]


def test_finish_at_the_end_token_keeps_it_as_a_trained_token() -> None:
    results = answers(SamplingSettings(max_new_tokens=30))
    assert {reason for reason, _, _ in results} == {"stop", "length"}
    for reason, ids, text in results:
        assert (TOKENIZER.end_id in ids[:-1]) is False
        assert (ids[-1] == TOKENIZER.end_id) == (reason == "stop")
        assert "<eos>" not in text


def test_finish_at_a_stop_token_id() -> None:
    for reason, ids, _ in answers(SamplingSettings(max_new_tokens=30, stop_token_ids=(9, 4))):
        assert not {1, 4, 9} & set(ids[:-1])
        assert (ids[-1] in (1, 4, 9)) == (reason == "stop")


def test_finish_at_a_stop_string_that_spans_tokens() -> None:
    free = answers(SamplingSettings(max_new_tokens=30, ignore_stop=True), count=10)
    stop = free[0][2][3:5]
    assert len(stop) == 2
    results = answers(SamplingSettings(max_new_tokens=30, stop_strings=(stop,)))
    assert any(text.endswith(stop) for _, _, text in results)
    for reason, ids, text in results:
        assert stop not in text[:-1]
        assert (stop in text or ids[-1] == TOKENIZER.end_id) == (reason == "stop")


def test_ignore_stop_runs_past_the_end_token() -> None:
    results = answers(SamplingSettings(max_new_tokens=30, ignore_stop=True, stop_token_ids=(9,), stop_strings=("1",)))
    assert all(reason == "length" and len(ids) == 30 for reason, ids, _ in results)
    assert any(TOKENIZER.end_id in ids[:-1] for _, ids, _ in results)


def test_greedy_takes_the_learners_best_token_whatever_the_seed() -> None:
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=12, ignore_stop=True)
    (group,) = make_engine().run([request("g", (5, 6, 7), greedy, (1, 2))])
    one, other = (rollout.segments[0] for rollout in group.rollouts)
    assert np.array_equal(one.token_ids, other.token_ids)
    sequence = torch.from_numpy(one.token_ids.astype(np.int64))
    with torch.no_grad():
        hidden_ND, _ = run(LEARNER, packed_input(LEARNER.config, [sequence]))
    best_N = (hidden_ND @ LEARNER.head.T).argmax(-1)
    assert torch.equal(best_N[2:14], sequence[3:])


@pytest.mark.parametrize(
    ("prompt", "seeds", "max_new_tokens", "failure"),
    [
        ((), (1, 2), 4, "no_tokens"),
        ((2,) * 125, (1, 2), 4, "prompt_too_long"),
        ((2, 18), (1, 2), 4, "token_out_of_range"),
        ((2, -1), (1, 2), 4, "token_out_of_range"),
        ((2,) * 90, (1, 2, 3), 38, "out_of_cache"),
        ((2, 3), tuple(range(9)), 4, "out_of_cache"),
    ],
)
def test_submit_request_that_can_never_run_fails_as_typed_rollouts(
    prompt: tuple[int, ...], seeds: tuple[int, ...], max_new_tokens: int, failure: str
) -> None:
    engine = make_engine(max_sequences=8, cache_tokens=128, page_size=8)
    sampling = SamplingSettings(max_new_tokens=max_new_tokens)
    failed, fine = engine.run([request("bad", prompt, sampling, seeds), request("good", (2, 3), sampling)])
    assert [rollout.failure for rollout in failed.rollouts] == [failure] * len(seeds)
    assert all(rollout.segments == () and rollout.num_trained == 0 for rollout in failed.rollouts)
    assert [rollout.failure for rollout in fine.rollouts] == ["", ""]
    assert_nothing_leaked(engine)


def test_submit_longest_request_that_fits_runs() -> None:
    sampling = SamplingSettings(max_new_tokens=4, ignore_stop=True)
    (group,) = make_engine().run([request("g", (2,) * 124, sampling)])
    assert [rollout.num_trained for rollout in group.rollouts] == [4, 4]


def test_group_request_without_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        request("g", (2, 3), SAMPLINGS[0], ())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(workload=workloads(), sizes=engine_settings, steps=st.integers(0, 25))
def test_abort_returns_every_group_as_far_as_it_got_and_leaks_nothing(
    workload: Workload, sizes: EngineSettings, steps: int
) -> None:
    engine = Engine(tiny_model(), TOKENIZER, sizes)
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
    usable = [
        Group(group_id=g.group_id, prompt=g.prompt, rollouts=tuple(r for r in g.rollouts if not r.failure))
        for g in aborted
    ]
    if any(group.rollouts for group in usable):
        assert_learner_walks_the_same_path(usable, workload.requests[0].sampling.temperature)
    again = engine.run(workload.requests)
    for group in again:
        assert_same_samples(group, wanted[group.group_id])


def test_counters_add_up() -> None:
    engine = make_engine(max_batch_tokens=16)
    engine.run([request("g", (2,) * 40, SamplingSettings(max_new_tokens=5, ignore_stop=True), (1, 2, 3))])
    counters = engine.counters
    assert (counters.prefill_tokens, counters.sampled_tokens, counters.reused_tokens) == (40, 15, 0)
    assert counters.steps == 3 + 4
    assert counters.seconds > 0


def test_step_idle_engine_does_nothing() -> None:
    engine = make_engine()
    assert engine.step() == []
    assert engine.counters.steps == 0
    assert engine.abort() == []


def test_mixed_settings_in_one_batch_change_nothing(tokenizer: Tokenizer) -> None:
    """Groups with and without truncation, hot and greedy, decode side by side as they do alone."""
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=11)
    entries = [request(f"g{n}", (n + 2, 5, 6), entry, (n, 50)) for n, entry in enumerate((*SAMPLINGS, greedy))]
    for group, entry in zip(make_engine().run(entries), entries, strict=True):
        assert_same_samples(group, make_engine().run([entry])[0])
        support = group.rollouts[0].segments[0].support
        assert (support is not None) == entry.sampling.truncates
