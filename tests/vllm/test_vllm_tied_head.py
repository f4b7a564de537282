"""One matrix for embedding and head: vLLM's CPU build packs a copy for the head, which new weights must reach."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file

from samepath.rollout.sampling_settings import SamplingSettings
from tests.tiny_runs import random_prompt, request
from tests.vllm.conftest import EXACT
from tests.vllm.test_vllm_engine import segments
from tests.vllm_checkpoints import COMMON, VOCAB_SIZE, Family, write_checkpoint

SAMPLING = SamplingSettings(max_new_tokens=12)


def tied_llama() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**{**COMMON, "tie_word_embeddings": True}, head_dim=32, intermediate_size=96)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two checkpoints that differ in every weight."""
    family = Family(name="llama", config=tied_llama)
    return [write_checkpoint(family, tmp_path / str(seed), seed) for seed in (0, 1)]


def test_load_weights_with_a_tied_head_equals_a_fresh_engine(engine: Callable, folders: list[Path]) -> None:
    engine("qwen3_moe")
    # Late: the fixture's first engine set the variables that must stand before vLLM is imported.
    from samepath.rollout.engine import build_engine

    asked = [request("tied", random_prompt(np.random.default_rng(3), VOCAB_SIZE, 20), SAMPLING, (1, 2, 3))]
    changed, fresh = (build_engine(folder, EXACT) for folder in folders)
    weights = load_file(folders[1] / "model.safetensors")
    assert "lm_head.weight" not in weights
    before = segments(changed.run(asked))
    changed.load_weights(weights, 1)
    after, wanted = segments(changed.run(asked)), segments(fresh.run(asked))
    assert any(one.token_ids.tolist() != other.token_ids.tolist() for one, other in zip(before, after))
    for one, other in zip(after, wanted, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_array_equal(one.sampler_logprobs, other.sampler_logprobs)
