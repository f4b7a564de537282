"""What a request asks is what it gets: ends, seeds, greedy, chunks, cached prompts, aborts, and weights that change in mid-response."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from samepath.model.text.tokenizer import load_tokenizer
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Segment, Support
from tests.tiny_runs import random_prompt, request
from tests.vllm.conftest import EXACT
from tests.vllm.test_vllm_engine import SAMPLINGS, assert_equal_records, prompts, segments
from tests.vllm_checkpoints import VOCAB_SIZE, compare

CHUNKED = EXACT.model_copy(update={"max_batch_tokens": 32})
LONG = SamplingSettings(max_new_tokens=60, top_p=0.9, ignore_stop=True)


def weights_of(checkpoint: Callable, seed: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint("qwen3_moe", seed) / "model.safetensors")


def test_run_with_prompts_in_chunks_equals_transformers_and_whole_prompts(
    engine: Callable, reference: Callable
) -> None:
    """Prompts of about 80 tokens in steps of at most 32, beside others that decode; draws must not notice."""
    asked = prompts(8, SAMPLINGS[1])
    chunked, whole = engine("qwen3_moe", 0, CHUNKED), engine("qwen3_moe")
    groups = chunked.run(asked)
    results = [compare(reference("qwen3_moe"), segment, 0.7) for segment in segments(groups)]
    assert sum(different for different, _ in results) == 0
    assert max(gap for _, gap in results) <= 1e-5
    for one, other in zip(segments(groups), segments(whole.run(asked)), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()


def test_run_again_finds_prompts_in_the_cache_with_their_routes(engine: Callable) -> None:
    vllm = engine("qwen3_moe")
    prompt = random_prompt(np.random.default_rng(5), VOCAB_SIZE, 100)
    asked = [request("cached", prompt, SAMPLINGS[0], (1, 2))]
    vllm.load_weights(load_file(f"{vllm._llm.model_config.model}/model.safetensors"), 0)
    first, reused = vllm.run(asked), vllm.counters.reused_tokens
    second = vllm.run(asked)
    # 100 tokens are three full pages of 32; each of the two samples finds them.
    assert vllm.counters.reused_tokens - reused == 2 * 96
    for one, other in zip(segments(first), segments(second), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert np.array_equal(one.routes, other.routes)
        assert (one.routes[:-1] >= 0).all()


def test_load_weights_without_dropping_old_prefixes_would_be_seen(
    engine: Callable, checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test that new weights equal a fresh engine: pages of the old weights give other log-probabilities."""
    vllm, fresh = engine("qwen3_moe"), engine("qwen3_moe", 7)
    asked = [request("stale", random_prompt(np.random.default_rng(6), VOCAB_SIZE, 100), SAMPLINGS[0], (1, 2))]
    wanted = segments(fresh.run(asked))
    vllm.run(asked)
    with monkeypatch.context() as patch:
        patch.setattr(vllm._llm, "reset_prefix_cache", lambda **options: True)
        vllm.load_weights(weights_of(checkpoint, 7), 1)
        stale = segments(vllm.run(asked))
    assert any(not np.array_equal(one.sampler_logprobs, other.sampler_logprobs) for one, other in zip(stale, wanted))
    vllm.load_weights(weights_of(checkpoint, 0), 2)


def test_load_weights_in_mid_response_stamps_every_token_with_what_sampled_it(
    engine: Callable, checkpoint: Callable, reference: Callable
) -> None:
    vllm = engine("qwen3_moe")
    asked = prompts(4, LONG)
    for entry in asked:
        assert vllm.submit(entry) is None
    for _ in range(20):
        assert vllm.step() == []
    old = vllm.weight_version
    vllm.load_weights(weights_of(checkpoint, 7), 41)
    groups = []
    while vllm.busy:
        groups += vllm.step()
    for segment in segments(groups):
        versions = segment.weight_version[segment.trained]
        swap = int((versions == old).sum())
        assert 0 < swap < 60
        assert versions.tolist() == [old] * swap + [41] * (60 - swap)
        # Each part is what its own weights say about the whole sequence so far: keys were computed anew after the swap.
        row = int((~segment.trained).sum()) + swap
        for seed, part in ((0, slice(0, row)), (7, slice(row, None))):
            mine = np.zeros_like(segment.trained)
            mine[part] = segment.trained[part]
            _, gap = compare(reference("qwen3_moe", seed), _only(segment, mine))
            assert gap <= 1e-5
        # The row that was run last before the swap is the last one with the old weights' routes.
        for seed, rows in ((0, slice(0, row - 1)), (7, slice(row - 1, -1))):
            _, chosen_TLX = reference("qwen3_moe", seed)(segment.token_ids)
            assert np.array_equal(np.sort(segment.routes[rows], -1), chosen_TLX[rows])
    vllm.load_weights(weights_of(checkpoint, 0), 42)


def _only(segment: Segment, trained: NDArray[np.bool_]) -> Segment:
    """The segment with other trained positions, and the candidates of these."""
    rows = segment.trained.nonzero()[0]
    ends = np.cumsum(segment.support.counts)
    kept = [place for place, row in enumerate(rows) if trained[row]]
    ids = [segment.support.ids[end - count : end] for end, count in zip(ends, segment.support.counts)]
    support = Support(counts=segment.support.counts[kept], ids=np.concatenate([ids[place] for place in kept]))
    return replace(segment, trained=trained, support=support)


def test_abort_gives_back_what_was_sampled_and_leaves_the_engine_usable(engine: Callable) -> None:
    vllm = engine("qwen3_moe")
    asked = prompts(4, LONG)
    whole = vllm.run(asked)
    for entry in asked:
        vllm.submit(entry)
    for _ in range(25):
        vllm.step()
    groups = vllm.abort()
    assert not vllm.busy
    assert [group.group_id for group in groups] == [entry.group_id for entry in asked]
    for one, other in zip(segments(groups), segments(whole), strict=True):
        length = len(one.token_ids)
        assert one.finish_reason == "abort"
        assert 20 < one.num_trained < 60
        assert one.token_ids.tolist() == other.token_ids[:length].tolist()
        assert np.array_equal(one.routes[:-1], other.routes[: length - 1])
        assert np.allclose(one.sampler_logprobs, other.sampler_logprobs[:length], atol=1e-5)
        assert len(one.support.counts) == one.num_trained
    assert_equal_records(vllm.run(asked), whole)


def test_abort_before_the_first_token_gives_typed_failures(engine: Callable) -> None:
    vllm = engine("qwen3_moe")
    for entry in prompts(2, LONG, tag="early"):
        vllm.submit(entry)
    groups = vllm.abort()
    assert {rollout.failure for group in groups for rollout in group.rollouts} == {"aborted"}
    assert not vllm.busy


def test_run_ends_responses_as_asked(engine: Callable, checkpoint: Callable) -> None:
    vllm, tokenizer = engine("llama"), load_tokenizer(checkpoint("llama"))
    prompt = random_prompt(np.random.default_rng(8), VOCAB_SIZE, 12)
    free = SamplingSettings(max_new_tokens=40, ignore_stop=True)
    response = segments(vllm.run([request("free", prompt, free, (3,))]))[0].token_ids[12:].tolist()
    assert len(response) == 40

    def run(**changes: object):
        sampling = SamplingSettings(max_new_tokens=40, **changes)
        segment = segments(vllm.run([request("ends", prompt, sampling, (3,))]))[0]
        return segment.token_ids[12:].tolist(), segment.finish_reason

    stop_id = response[10]
    first = response.index(stop_id)
    assert run(stop_token_ids=(stop_id,)) == (response[: first + 1], "stop")
    text = tokenizer.text(response[5:7])
    end = next(size for size in range(1, 41) if text in tokenizer.text(response[:size]))
    assert run(stop_strings=(text,)) == (response[:end], "stop")
    assert run(stop_token_ids=(stop_id,), stop_strings=(text,), ignore_stop=True) == (response, "length")


def test_run_ends_at_the_tokenizers_end_of_sequence(engine: Callable) -> None:
    """Some of many samples meet it: with it they stop, and it is their last token."""
    vllm = engine("llama")
    asked = prompts(6, SamplingSettings(max_new_tokens=100, temperature=2.0), group_size=8, tag="end")
    found = segments(vllm.run(asked))
    stopped = [segment for segment in found if segment.finish_reason == "stop"]
    assert stopped
    assert all(segment.token_ids[-1] == vllm.tokenizer.end_id for segment in stopped)
    assert all(vllm.tokenizer.end_id not in segment.token_ids[segment.trained][:-1] for segment in found)


def test_seeds_decide_the_sample_and_temperature_zero_takes_the_best_token(
    engine: Callable, reference: Callable
) -> None:
    vllm, prompt = engine("llama"), random_prompt(np.random.default_rng(9), VOCAB_SIZE, 20)

    def run(sampling: SamplingSettings, *seeds: int) -> list[list[int]]:
        return [
            segment.token_ids[20:].tolist()
            for segment in segments(vllm.run([request("seed", prompt, sampling, seeds)]))
        ]

    one, other, again = run(LONG, 7, 2**63 + 5, 7)
    assert one == again
    assert one != other
    assert run(LONG, 7) == [one]
    greedy = run(LONG.model_copy(update={"temperature": 0.0}), 1, 2)
    assert greedy[0] == greedy[1]
    logits_TV, _ = reference("llama")(np.array([*prompt, *greedy[0]], np.int32))
    assert logits_TV[19:-1].argmax(-1).tolist() == greedy[0]


def test_bfloat16_engine_stays_near_and_records_what_it_did(engine: Callable, reference: Callable) -> None:
    """A control of the float32 tests: rounding does show in the comparison, and stays small."""
    vllm = engine("qwen3_moe", 0, EXACT.model_copy(update={"dtype": "bfloat16"}))
    results = [compare(reference("qwen3_moe"), segment) for segment in segments(vllm.run(prompts(8, SAMPLINGS[0])))]
    gaps = [gap for _, gap in results]
    assert 1e-3 < max(gaps) < 1.0
