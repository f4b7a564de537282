"""One request at a time: seeds, the ways to end, greedy decoding, refusals, counters."""

import re

import numpy as np
import pytest
import torch

from samepath.kernels.head.logprob import padded_logits
from samepath.rollout.builtin.drawing import kept_ids
from samepath.rollout.sampling import draw, setting_rows, uniforms
from samepath.rollout.sampling_settings import SamplingSettings
from tests.engine_runs import LEARNER, SAMPLINGS, TOKENIZER, assert_nothing_leaked, assert_same_samples, make_engine
from tests.tiny_runs import packed_input, request, run


def test_submit_equal_seeds_give_equal_samples_and_others_differ() -> None:
    prompt = (5, 6, 7)
    (group,) = make_engine().run([request("g", prompt, SAMPLINGS[0], (11, 12, 11))])
    texts = [rollout.segments[0].token_ids.tolist() for rollout in group.rollouts]
    assert texts[0] == texts[2] != texts[1]


def test_each_token_is_drawn_by_the_number_of_its_seed_and_position() -> None:
    """Worked out anew from what was recorded: the seed's n-th number, in the distribution of the learner's logits, falls on the n-th token."""
    sampling = SamplingSettings(max_new_tokens=20, temperature=1.2, top_k=9, top_p=0.9, ignore_stop=True)
    seeds = (11, 2**63 + 5)
    (group,) = make_engine().run([request("g", (5, 6, 7), sampling, seeds)])
    for seed, rollout in zip(seeds, group.rollouts, strict=True):
        (segment,) = rollout.segments
        with torch.no_grad():
            sequence = torch.from_numpy(segment.token_ids.astype(np.int64))
            hidden_ND, _ = run(LEARNER, packed_input(LEARNER.config, [sequence]))
            logits_NV = padded_logits(hidden_ND, LEARNER.head_weight)[2:22]
        numbers = uniforms(np.full(20, seed, np.uint64), np.arange(20))
        rows = torch.from_numpy(setting_rows([sampling] * 20))
        drawn = draw(logits_NV, rows, torch.from_numpy(numbers), truncates=True)
        assert drawn.tokens_B.tolist() == segment.token_ids[3:].tolist()
        assert drawn.words_BW is not None
        kept = [ids.tolist() for ids in kept_ids(drawn.words_BW.numpy())]
        assert segment.support is not None
        assert [ids.tolist() for ids in np.split(segment.support.ids, segment.support.counts.cumsum()[:-1])] == kept
        assert np.array_equal(segment.sampler_logprobs[3:], drawn.logprobs_B.numpy())


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
    # Two tokens of the alphabet in a row; control tokens stand in a text by their names, such as <bos>.
    (stop, *_) = re.findall(r"[0-9+=#;-]{2}", free[0][2])
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
    engine = make_engine(max_sequences=8, cache_tokens=120, page_size=8)
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


def test_mixed_settings_in_one_batch_change_nothing() -> None:
    """Groups with and without truncation, hot and greedy, decode side by side as they do alone."""
    greedy = SamplingSettings(temperature=0.0, max_new_tokens=11)
    entries = [request(f"g{n}", (n + 2, 5, 6), entry, (n, 50)) for n, entry in enumerate((*SAMPLINGS, greedy))]
    for group, entry in zip(make_engine().run(entries), entries, strict=True):
        assert_same_samples(group, make_engine().run([entry])[0])
        support = group.rollouts[0].segments[0].support
        assert (support is not None) == entry.sampling.truncates
