"""What a finished sample carries: shapes, the row that is never run, and supports that the learner can renormalise over."""

import numpy as np
import pytest
import torch

from samepath.kernels.head.logprob import SupportRows, sampling_logprobs
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.recording import finish_reason
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.record import SampledTokens, SegmentParts, failed_rollouts, sampled_rollout
from samepath.rollout.request import GroupState
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.tiny_runs import learner_batch, packed_input, request, run

PROMPT = (5, 6, 7, 8, 9)


def sampled(tokenizer: Tokenizer, sampling: SamplingSettings) -> tuple[BuiltinEngine, Group]:
    engine = BuiltinEngine(tiny_model(), tokenizer, BuiltinSettings())
    (group,) = engine.run([request("g", PROMPT, sampling, range(6))])
    return engine, group


def test_finished_rollout_record_has_the_documented_form(tokenizer: Tokenizer) -> None:
    _, group = sampled(tokenizer, SamplingSettings(max_new_tokens=10))
    for index, rollout in enumerate(group.rollouts):
        (segment,) = rollout.segments
        total = len(segment.token_ids)
        assert (rollout.prompt_id, rollout.group_id, rollout.sample_index) == ("p-g", "g", index)
        assert tuple(segment.token_ids[:5]) == PROMPT
        assert segment.trained.tolist() == [False] * 5 + [True] * (total - 5)
        assert rollout.text == tokenizer.decode(segment.token_ids[5:].tolist())
        assert segment.support is None
        assert not segment.sampler_logprobs[:5].any()
        assert bool((segment.sampler_logprobs[5:] < 0).all())
        assert segment.weight_version.tolist() == [-1] * 5 + [0] * (total - 5)
        assert rollout.generate_s > 0
        assert [span.seconds for span in rollout.segments[0].calls] == [rollout.generate_s]
        types = (segment.token_ids, segment.sampler_logprobs, segment.routes, segment.selection_fingerprint)
        assert [array.dtype.name for array in types] == ["int32", "float32", "int16", "uint64"]
        assert segment.routes.shape == (total, 2, 2)
        assert segment.selection_fingerprint.shape == (total, 3)


def test_finished_rollout_last_token_is_never_run(tokenizer: Tokenizer) -> None:
    _, group = sampled(tokenizer, SamplingSettings(max_new_tokens=10))
    for rollout in group.rollouts:
        (segment,) = rollout.segments
        assert bool((segment.routes[-1] == -1).all())
        assert bool((segment.routes[:-1] >= 0).all())
        assert not segment.selection_fingerprint[-1].any()
        assert bool(segment.selection_fingerprint[:-1].all())


def test_support_holds_the_token_in_ascending_order_and_renormalises(tokenizer: Tokenizer) -> None:
    """The recorded log-probability is that of the token among the recorded candidates at temperature 0.8."""
    sampling = SamplingSettings(max_new_tokens=12, temperature=0.8, top_k=6, top_p=0.9)
    _, group = sampled(tokenizer, sampling)
    model = tiny_model()
    for rollout in group.rollouts:
        (segment,) = rollout.segments
        assert segment.support is not None
        counts = segment.support.counts
        assert len(counts) == segment.num_trained
        assert 1 <= counts.min() <= counts.max() <= 6
        sequence = torch.from_numpy(segment.token_ids.astype(np.int64))
        with torch.no_grad():
            hidden_ND, _ = run(model, packed_input(model.config, [sequence]))
            probs_NV = (hidden_ND @ model.head.T / 0.8).double().softmax(-1)
        for place, ids in enumerate(np.split(segment.support.ids, counts.cumsum()[:-1])):
            position = 5 + place
            assert segment.token_ids[position] in ids
            assert bool((np.diff(ids) > 0).all())
            kept = probs_NV[position - 1, ids.astype(np.int64)]
            wanted = probs_NV[position - 1, int(segment.token_ids[position])] / kept.sum()
            assert segment.sampler_logprobs[position] == pytest.approx(float(wanted.log()), abs=1e-5)
            assert float(kept.min()) >= float(probs_NV[position - 1].sort().values[-6]) - 1e-9


def test_support_over_its_cap_is_the_full_vocabulary_counted_and_replayed_exactly(tokenizer: Tokenizer) -> None:
    sampling = SamplingSettings(max_new_tokens=15, top_p=0.9, support_cap=12, ignore_stop=True)
    engine, group = sampled(tokenizer, sampling)
    counts = np.concatenate([r.segments[0].support.counts for r in group.rollouts if r.segments[0].support is not None])
    assert len(counts) == 6 * 15
    assert engine.counters.over_cap == int((counts == 0).sum())
    assert 0 < engine.counters.over_cap < len(counts)
    assert counts.max() == 12
    model = tiny_model()
    batch = learner_batch([group], 1.0, model.config)
    with torch.no_grad():
        seen = run_policy(model, batch, routes_LNX=batch.routes_LNX, use_support=True)
        full = run_policy(model, batch, routes_LNX=batch.routes_LNX, use_support=False)
    assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
    over_M = torch.from_numpy(counts == 0)
    assert torch.equal(seen.logprobs_M[over_M], full.logprobs_M[over_M])
    torch.testing.assert_close(seen.head.kept_mass_M[over_M], torch.ones(int(over_M.sum())))
    assert bool((seen.head.kept_mass_M[~over_M] < 1).all())
    assert bool((seen.logprobs_M[~over_M] > full.logprobs_M[~over_M]).all())


def test_support_rows_of_a_single_candidate_have_log_probability_zero(tokenizer: Tokenizer) -> None:
    _, group = sampled(tokenizer, SamplingSettings(max_new_tokens=6, top_k=1))
    for rollout in group.rollouts:
        (segment,) = rollout.segments
        assert segment.support is not None
        assert np.array_equal(segment.support.ids, segment.token_ids[5:])
        assert not segment.sampler_logprobs.any()


def test_support_rows_excluded_marks_exactly_the_tokens_left_out() -> None:
    support = SupportRows(counts_N=torch.tensor([2, 0, 1]), ids=torch.tensor([0, 3, 2]))
    wanted = [[False, True, True, False], [False] * 4, [True, True, False, True]]
    assert support.excluded(0, 3, 4).tolist() == wanted
    assert support.excluded(2, 3, 4).tolist() == wanted[2:]
    logprobs = sampling_logprobs(torch.zeros(3, 4), torch.ones(3), support.excluded(0, 3, 4)).exp()
    assert logprobs[0].tolist() == pytest.approx([0.5, 0, 0, 0.5])


def test_failed_rollouts_are_typed_and_empty() -> None:
    group = failed_rollouts(request("g", (), SamplingSettings(), (1, 2, 3)), "no_tokens")
    assert [(r.sample_index, r.failure, r.segments, r.score) for r in group.rollouts] == [
        (index, "no_tokens", (), None) for index in range(3)
    ]


def test_finish_reason_stop_string_that_names_a_special_token_fires(tokenizer: Tokenizer) -> None:
    """Ids 0 and 1 are start and end; 2 … are the digits."""
    sampling = SamplingSettings(max_new_tokens=9, stop_strings=("<bos>",))
    ids = np.array([3, 4, 0, 5], np.int32)
    assert [finish_reason(sampling, ids[:count], tokenizer) for count in (1, 2, 3)] == ["", "", "stop"]
    across = SamplingSettings(max_new_tokens=9, stop_strings=("12",))
    assert finish_reason(across, np.array([3, 0, 4], np.int32), tokenizer) == ""


@pytest.mark.parametrize(
    ("ids", "sampling", "text"),
    [
        ([3, 0, 2, 1], SamplingSettings(), "1<bos>0"),
        ([3, 0, 2], SamplingSettings(), "1<bos>0"),
        ([3, 2, 0], SamplingSettings(stop_token_ids=(0,)), "10"),
        ([3, 2, 0], SamplingSettings(stop_token_ids=(2,)), "10<bos>"),
        ([3, 2], SamplingSettings(stop_token_ids=(2,)), "10"),
        ([3, 1, 1], SamplingSettings(ignore_stop=True), "1<eos>"),
        ([1], SamplingSettings(), ""),
    ],
)
def test_sampled_rollout_text_is_all_that_was_sampled_but_the_token_that_ended_it(
    tokenizer: Tokenizer, ids: list[int], sampling: SamplingSettings, text: str
) -> None:
    sampled = SampledTokens(
        token_ids=np.array(ids, np.int32),
        logprobs=-np.arange(1, len(ids) + 1, dtype=np.float32),
        versions=np.zeros(len(ids), np.int32),
    )
    routes = np.full((5 + len(ids), 0, 1), -1, np.int16)
    parts = SegmentParts(routes_TLX=routes, fingerprints_TL=None, support=None, finish_reason="stop")
    state = GroupState(request=request("g", PROMPT, sampling), submitted_s=0.0)
    rollout = sampled_rollout(state, 0, sampled, [parts], tokenizer)
    assert rollout.text == text
    (segment,) = rollout.segments
    assert segment.token_ids[segment.trained].tolist() == ids
    assert segment.sampler_logprobs[segment.trained].tolist() == sampled.logprobs.tolist()
