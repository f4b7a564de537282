"""Calls that go on from one another find prompt and response in vLLM's prefix cache, with their routes; samples come back apart where asked."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from samepath.model.files.checkpoint import load_checkpoint
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.sampling_settings import SamplingSettings
from tests.held_conversations import Talk, hold
from tests.tiny_runs import learner_batch, random_prompt, request
from tests.vllm.conftest import EXACT
from tests.vllm.test_vllm_network import served  # noqa: F401 (a fixture)
from tests.vllm_checkpoints import VOCAB_SIZE, compare

FREE = SamplingSettings(max_new_tokens=20, top_p=0.9, ignore_stop=True)


def talks(vocab_size: int, opening: int, calls: int = 4) -> tuple[Talk, ...]:
    """Each of two talks reads its opening, and 6 tokens behind each answer of 20."""
    rng = np.random.default_rng(8)
    return tuple(
        Talk(
            name=name,
            opening=random_prompt(rng, vocab_size, opening),
            bridges=tuple(random_prompt(rng, vocab_size, 6) for _ in range(calls - 1)),
            sampling=FREE,
        )
        for name in ("0", "1")
    )


def test_conversation_finds_prompt_and_response_with_their_routes(engine: Callable, reference: Callable) -> None:
    """Pages of 32: of the prompts of 96, 122 and 148 tokens behind the opening of 70, 64, 96 and 128 had run."""
    vllm = engine("qwen3_moe")
    vllm.load_weights(load_file(f"{vllm._llm.model_config.model}/model.safetensors"), 0)
    before = vllm.counters.reused_tokens
    groups = hold(vllm, talks(VOCAB_SIZE, 70), keep_keys=True, exact=False)
    assert vllm.counters.reused_tokens - before == 2 * (64 + 96 + 128)
    for group in groups:
        (segment,) = group.rollouts[0].segments
        assert (segment.routes[:-1] >= 0).all()
        assert segment.num_trained == 4 * 20
        different, gap = compare(reference("qwen3_moe"), segment, 1.0)
        assert (different, gap <= 1e-5) == (0, True)


def test_conversation_of_the_own_network_is_the_learners_to_the_last_bit(served: Callable) -> None:  # noqa: F811
    folder, vllm = served("sparse")
    model = load_checkpoint(folder)
    before = vllm.counters.reused_tokens
    groups = hold(vllm, talks(18, 20), keep_keys=True)
    # Pages of 16: of the prompts of 46, 72 and 98 tokens, 39, 65 and 91 had run.
    assert vllm.counters.reused_tokens - before == 2 * (32 + 64 + 80)
    batch = learner_batch(groups, 1.0, model.config)
    assert batch.missing_routes == 0
    with torch.no_grad():
        seen = run_policy(model, batch, routes_LNX=None, use_support=True)
    assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
    rows = slice(0, batch.num_rows)
    assert torch.equal(torch.stack(seen.trace.live_routes)[:, rows], batch.routes_LNX[:, rows])


def test_apart_each_sample_comes_back_in_the_step_that_ends_it(engine: Callable) -> None:
    vllm = engine("qwen3_moe")
    sampling = SamplingSettings(max_new_tokens=40, stop_token_ids=tuple(range(2, 14)))
    asked = replace(request("apart", (5, 6, 7), sampling, (11, 12, 13, 14)), apart=True)
    start = vllm.counters.steps
    vllm.submit(asked)
    ends: list[tuple[int, int]] = []
    while vllm.busy:
        for group in vllm.step():
            (rollout,) = group.rollouts
            assert (group.group_id, rollout.num_trained) == ("apart", vllm.counters.steps - start)
            ends.append((rollout.num_trained, rollout.sample_index))
    assert sorted(index for _, index in ends) == [0, 1, 2, 3]
    assert len({count for count, _ in ends}) > 1
    (whole,) = vllm.run([asked])
    assert [(rollout.sample_index, rollout.num_trained) for rollout in whole.rollouts] == [
        (index, count) for count, index in sorted(ends, key=lambda end: end[1])
    ]


def test_abort_of_samples_apart_gives_back_each_that_had_not_come_back_once(engine: Callable) -> None:
    vllm = engine("qwen3_moe")
    sampling = SamplingSettings(max_new_tokens=40, stop_token_ids=tuple(range(2, 14)))
    vllm.submit(replace(request("apart", (5, 6, 7), sampling, range(11, 19)), apart=True))
    groups = []
    while not groups:
        groups += vllm.step()
    groups += vllm.abort()
    assert sorted(group.rollouts[0].sample_index for group in groups) == list(range(8))
    assert {len(group.rollouts) for group in groups} == {1}
    assert not vllm.busy


def test_keep_keys_without_prefix_cache_is_refused_with_what_to_set(engine: Callable) -> None:
    vllm = engine("llama", 0, EXACT.model_copy(update={"prefix_cache": False, "return_routes": False}))
    with pytest.raises(ValueError, match=r"talk: keep_keys .* Set engine\.prefix_cache=true"):
        vllm.submit(replace(request("talk", (2, 3), FREE), keep_keys=True))
    assert not vllm.busy
