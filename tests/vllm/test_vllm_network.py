"""The own network inside vLLM against the built-in engine and the learner."""

import numpy as np
import pytest
import torch

from samepath.rl.model_source import save_model
from samepath.rl.policy_pass import run_policy
from samepath.rollout.engine import build_engine
from samepath.rollout.engine_settings import VllmSettings, engine_environment
from samepath.rollout.sampling import SamplingSettings
from tests.conftest import tiny_model
from tests.tiny_runs import learner_batch, random_prompt, request

SETTINGS = VllmSettings(
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
)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory):
    """One engine on the tiny sparse-attention model; sequences are longer than its top-k of 8 keys."""
    import os

    from samepath.model.tokenizer import character_tokenizer
    from tests.conftest import ALPHABET

    os.environ.update(engine_environment(SETTINGS))
    folder = tmp_path_factory.mktemp("own")
    save_model(tiny_model(), character_tokenizer(ALPHABET), folder)
    return build_engine(folder, SETTINGS)


def asked(sampling: SamplingSettings):
    rng = np.random.default_rng(3)
    stem = random_prompt(rng, 18, 40)
    prompts = [(*stem[: 20 * (index % 3)], *random_prompt(rng, 18, 5)) for index in range(6)]
    return [request(f"g{index}", prompt, sampling, (index, index + 9)) for index, prompt in enumerate(prompts)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["full", "top_p"])
def test_run_equals_the_learner(vllm, sampling: SamplingSettings) -> None:
    model = tiny_model()
    groups = vllm.run(asked(sampling))
    batch = learner_batch(groups, sampling.temperature, model.config)
    assert batch.missing_routes == 0
    with torch.no_grad():
        seen = run_policy(model, batch, routes_LNX=None, use_support=True)
    rows = slice(0, batch.num_rows)
    assert torch.equal(
        torch.stack(seen.trace.live_routes)[:, rows].sort(-1).values, batch.routes_LNX[:, rows].sort(-1).values
    )

    assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
