"""vLLM's records against transformers' own forward: experts, log-probabilities, candidates, versions; and new weights in place."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from safetensors.torch import load_file

from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Segment
from tests.tiny_runs import random_prompt, request
from tests.vllm_checkpoints import FAMILIES, VOCAB_SIZE, Family, compare

SAMPLINGS = (
    SamplingSettings(max_new_tokens=24, ignore_stop=True),
    SamplingSettings(max_new_tokens=24, temperature=0.7, top_p=0.8),
    SamplingSettings(max_new_tokens=24, temperature=1.3, top_k=9),
    SamplingSettings(max_new_tokens=24, temperature=0.9, min_p=0.1),
)


def prompts(count: int, sampling: SamplingSettings, group_size: int = 2, tag: str = "g") -> list[GroupRequest]:
    """Prompts of 1 to 90 tokens, the later ones with a shared beginning of two pages."""
    rng = np.random.default_rng(1)
    stem = random_prompt(rng, VOCAB_SIZE, 70)
    asked = []
    for index in range(count):
        own = random_prompt(rng, VOCAB_SIZE, int(rng.integers(1, 20)))
        prompt = (*stem, *own) if index % 2 else own
        seeds = [int(seed) for seed in rng.integers(0, 2**63, group_size)]
        asked.append(request(f"{tag}{index}", prompt, sampling, seeds))
    return asked


def segments(groups: Sequence[Group]) -> list[Segment]:
    """All of them; a failed rollout has none."""
    found = [segment for group in groups for rollout in group.rollouts for segment in rollout.segments]
    assert found
    return found


def assert_equal_records(left: Sequence[Group], right: Sequence[Group]) -> None:
    """Everything but versions and times is equal to the last bit."""
    for one, other in zip(segments(left), segments(right), strict=True):
        for name in ("token_ids", "trained", "sampler_logprobs", "routes"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert (one.support is None) == (other.support is None)
        if one.support is not None and other.support is not None:
            assert np.array_equal(one.support.counts, other.support.counts)
            assert np.array_equal(one.support.ids, other.support.ids)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_run_in_float32_equals_transformers(family: Family, engine: Callable, reference: Callable) -> None:
    vllm, forward = engine(family.name), reference(family.name)
    assert (vllm.binding.layers, vllm.binding.num_experts, vllm.binding.num_chosen) == (
        family.moe_layers,
        family.num_experts,
        family.num_chosen,
    )
    for sampling in SAMPLINGS:
        found = segments(vllm.run(prompts(6, sampling)))
        results = [compare(forward, segment, sampling.temperature) for segment in found]
        assert sum(different for different, _ in results) == 0
        assert max(gap for _, gap in results) <= 1e-5
        assert all(segment.routes[-1].size == 0 or (segment.routes[-1] == -1).all() for segment in found)
        if family.moe_layers:
            assert all((segment.routes[:-1] >= 0).all() for segment in found)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "llama"])
def test_load_weights_equals_a_fresh_engine_bit_for_bit(engine: Callable, checkpoint: Callable, name: str) -> None:
    used, fresh = engine(name), engine(name, 7)
    asked = prompts(6, SAMPLINGS[1])
    before = used.run(asked)
    weights = [load_file(checkpoint(name, seed) / "model.safetensors") for seed in (0, 7)]
    used.load_weights(weights[1], 3)
    after = used.run(asked)
    assert_equal_records(after, fresh.run(asked))
    assert {int(version) for segment in segments(after) for version in segment.weight_version[segment.trained]} == {3}
    used.load_weights(weights[0], 4)
    assert_equal_records(before, used.run(asked))
