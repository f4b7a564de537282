"""The own network inside vLLM: routes and log-probabilities equal the learner's and the built-in engine's to the last bit."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from samepath.kernels.head.candidates import candidates
from samepath.kernels.head.logprob import padded_logits
from samepath.model.files.checkpoint import load_checkpoint, published_tensors
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.learner.model_source import save_model
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine import build_engine
from samepath.rollout.engine_settings import describe
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling import setting_rows
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.vllm.settings import VllmSettings
from tests.conftest import ALPHABET, tiny_model
from tests.tiny_runs import learner_batch, packed_input, random_prompt, request, run

SETTINGS = VllmSettings(
    network="own",
    dtype="float32",
    cache_bytes=4 << 20,
    max_sequences=16,
    max_batch_tokens=40,
    page_size=16,
    return_sampling_mask=True,
)
SAMPLINGS = (
    SamplingSettings(max_new_tokens=30, ignore_stop=True),
    SamplingSettings(max_new_tokens=30, temperature=0.7, top_p=0.8),
    SamplingSettings(max_new_tokens=30, temperature=1.5, top_k=7, top_p=0.8, min_p=0.1),
)


# For the whole session: an engine that is collected takes down vLLM's process groups, and with them all others of the process.
@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable):
    """`served(name)`: (folder, engine). `sparse` selects 8 keys of longer sequences, in steps of at most 40 rows."""
    os.environ.update(describe(SETTINGS).environment(SETTINGS))
    kept: dict[str, tuple[Path, object]] = {}

    def serve(name: str) -> tuple[Path, object]:
        if name not in kept:
            folder = tmp_path_factory.mktemp("own") if name == "sparse" else checkpoint(name)
            if name == "sparse":
                save_model(tiny_model(), character_tokenizer(ALPHABET), folder)
            kept[name] = folder, build_engine(folder, SETTINGS)
        return kept[name]

    return serve


def asked(sampling: SamplingSettings) -> list[GroupRequest]:
    """Two samples each of prompts with shared beginnings of 0, 20 and 40 tokens."""
    rng = np.random.default_rng(3)
    stem = random_prompt(rng, 18, 40)
    prompts = [(*stem[: 20 * (index % 3)], *random_prompt(rng, 18, 5)) for index in range(6)]
    return [request(f"g{index}", prompt, sampling, (index, index + 9)) for index, prompt in enumerate(prompts)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["full", "top_p", "all_cuts"])
@pytest.mark.parametrize("name", ["sparse", "qwen3_moe", "deepseek_v3", "llama"])
def test_run_equals_the_learner_bit_for_bit(served: Callable, name: str, sampling: SamplingSettings) -> None:
    folder, vllm = served(name)
    model = load_checkpoint(folder)
    batch = learner_batch(vllm.run(asked(sampling)), sampling.temperature, model.config)
    assert batch.missing_routes == 0
    with torch.no_grad():
        seen = run_policy(model, batch, routes_LNX=None, use_support=True)
    if model.config.moe_layers:
        live_LNX = torch.stack(seen.trace.live_routes)[:, : batch.num_rows]
        assert torch.equal(live_LNX.sort(-1).values, batch.routes_LNX[:, : batch.num_rows].sort(-1).values)
    assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=["top_p", "all_cuts"])
def test_run_records_the_candidates_of_the_builtin_engine(served: Callable, sampling: SamplingSettings) -> None:
    """The same cuts in the same order: the built-in engine's own rule, on the learner's logits, leaves what vLLM recorded."""
    folder, vllm = served("qwen3_moe")
    model = load_checkpoint(folder)
    settings_51 = torch.from_numpy(setting_rows([sampling]))
    for group in vllm.run(asked(sampling)):
        for rollout in group.rollouts:
            (segment,) = rollout.segments
            sequence = torch.from_numpy(segment.token_ids.astype(np.int64))
            with torch.no_grad():
                hidden_ND, _ = run(model, packed_input(model.config, [sequence]))
                logits_NV = padded_logits(hidden_ND, model.head_weight)[segment.trained.nonzero()[0] - 1]
            count = len(logits_NV)
            kept_NV, _ = candidates(
                logits_NV, torch.full((count,), sampling.temperature), settings_51.expand(-1, count)
            )
            wanted = [[] if row.all() else row.nonzero().flatten().tolist() for row in kept_NV]
            assert [
                ids.tolist() for ids in np.split(segment.support.ids, segment.support.counts.cumsum()[:-1])
            ] == wanted


def test_greedy_run_equals_the_builtin_engine(served: Callable) -> None:
    """The same responses with the same routes; sampled ones differ, because the two draw from different generators."""
    folder, vllm = served("sparse")
    greedy = SAMPLINGS[0].model_copy(update={"temperature": 0.0})
    theirs = build_engine(folder, BuiltinSettings()).run(asked(greedy))
    for group, other in zip(vllm.run(asked(greedy)), theirs, strict=True):
        for one, two in zip(group.rollouts, other.rollouts, strict=True):
            assert one.text == two.text
            assert np.array_equal(np.sort(one.segments[0].routes, -1), np.sort(two.segments[0].routes, -1))


def test_load_weights_equals_the_learner_with_these_weights(served: Callable) -> None:
    _, vllm = served("sparse")
    other = tiny_model(seed=5)
    vllm.load_weights(published_tensors(other), 1)
    batch = learner_batch(vllm.run(asked(SAMPLINGS[0])), 1.0, other.config)
    with torch.no_grad():
        seen = run_policy(other, batch, routes_LNX=None, use_support=True)
    assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
    vllm.load_weights(published_tensors(tiny_model()), 2)
