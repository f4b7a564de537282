"""On a GPU: engine and learner agree to the last bit with the fused kernels, whatever the batch, and within rounding without them."""

import numpy as np
import pytest
import torch

from samepath.model.network import CausalLM
from samepath.model.placement import Placement, TypeName
from samepath.rl.policy_pass import run_policy
from samepath.rollout.builtin_engine import BuiltinEngine
from samepath.rollout.engine_settings import BuiltinSettings
from samepath.rollout.sampling import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_config
from tests.engine_runs import TOKENIZER, assert_learner_walks_the_same_path, assert_same_samples
from tests.tiny_runs import learner_batch, random_prompt, request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible"),
]
SAMPLING = SamplingSettings(max_new_tokens=14, temperature=0.7, top_p=0.9)


def made(placement: Placement) -> CausalLM:
    model = CausalLM(tiny_config(), placement.backend)
    model.initialise(0)
    return placement.place(model)


def sampled(placement: Placement, **sizes: int) -> list[Group]:
    rng = np.random.default_rng(0)
    requests = [
        request(str(length), random_prompt(rng, tiny_config().vocab_size, length), SAMPLING, seeds=(length, 100))
        for length in (3, 17, 33, 9)
    ]
    return BuiltinEngine(made(placement), TOKENIZER, BuiltinSettings(**sizes)).run(requests)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_kernels_give_a_gap_of_0_in_any_batch(dtype: TypeName) -> None:
    placement = Placement(device="cuda", backend="triton", dtype=dtype)
    together = sampled(placement)
    assert_learner_walks_the_same_path(together, SAMPLING.temperature, made(placement))
    for one, other in zip(together, sampled(placement, max_batch_tokens=16, max_sequences=2), strict=True):
        assert_same_samples(one, other)


def test_library_products_agree_within_rounding() -> None:
    placement = Placement(device="cuda")
    batch = learner_batch(sampled(placement), SAMPLING.temperature, tiny_config())
    with torch.no_grad():
        seen = run_policy(made(placement), batch, routes_LNX=batch.routes_LNX, use_support=True)
    assert float((seen.logprobs_M - batch.sampler_logprobs_M).abs().max()) < 1e-4
