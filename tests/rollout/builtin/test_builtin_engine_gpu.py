"""On a GPU: engine and learner agree to the last bit with the fused kernels, whatever the batch, by CUDA graphs or not, and within rounding
without those kernels."""

import numpy as np
import pytest
import torch

from samepath.model.files.checkpoint import published_tensors
from samepath.model.network import dispatch
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import place
from samepath.model.placement import Placement, TypeName
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_config
from tests.engine_runs import (
    TOKENIZER,
    assert_learner_walks_the_same_path,
    assert_same_samples,
    mixed_requests,
    steps_until_done,
)
from tests.families import FAMILIES, family_config
from tests.held_conversations import Talk, hold
from tests.tiny_runs import learner_batch, random_prompt, request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible"),
]
SAMPLING = SamplingSettings(max_new_tokens=14, temperature=0.7, top_p=0.9)
SMALLEST = 64
"""Tokens of a cache that all samples do not fit."""


def made(placement: Placement) -> CausalLM:
    model = CausalLM(tiny_config(), placement.backend)
    model.initialise(0)
    return place(model, placement)


def sampled(placement: Placement, **sizes: object) -> list[Group]:
    rng = np.random.default_rng(0)
    requests = [
        request(str(length), random_prompt(rng, tiny_config().vocab_size, length), SAMPLING, seeds=(length, 100))
        for length in (3, 17, 33, 9)
    ]
    engine = BuiltinEngine(made(placement), TOKENIZER, BuiltinSettings.model_validate(sizes))
    groups = engine.run(requests)
    assert (engine.counters.preempted > 0) == (engine.settings.cache_tokens == SMALLEST)
    return groups


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_kernels_give_a_gap_of_0_in_any_batch(dtype: TypeName) -> None:
    placement = Placement(device="cuda", backend="triton", dtype=dtype)
    together = sampled(placement)
    assert_learner_walks_the_same_path(together, SAMPLING.temperature, made(placement))
    for one, other in zip(together, sampled(placement, max_batch_tokens=16, max_sequences=2), strict=True):
        assert_same_samples(one, other)


@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_samples_that_give_their_pages_back_come_out_the_same(cuda_graph: str) -> None:
    placement = Placement(device="cuda", backend="triton", dtype="bfloat16")
    tight = sampled(placement, cache_tokens=SMALLEST, page_size=4, cuda_graph=cuda_graph)
    for one, other in zip(tight, sampled(placement), strict=True):
        assert_same_samples(one, other)


@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_calls_that_find_the_keys_of_the_one_before_come_out_the_same(cuda_graph: str) -> None:
    placement = Placement(device="cuda", backend="triton", dtype="bfloat16")
    rng = np.random.default_rng(0)
    entries = tuple(
        Talk(
            name=name,
            opening=random_prompt(rng, 18, 20),
            bridges=tuple(random_prompt(rng, 18, 5) for _ in range(3)),
            sampling=SAMPLING,
        )
        for name in "012"
    )
    keeping, plain = (
        BuiltinEngine(
            made(placement),
            TOKENIZER,
            BuiltinSettings.model_validate({"page_size": 4, "prefix_cache": keep, "cuda_graph": cuda_graph}),
        )
        for keep in (True, False)
    )
    groups = hold(keeping, entries, keep_keys=True)
    for one, other in zip(groups, hold(plain, entries, keep_keys=False), strict=True):
        assert_same_samples(one, other)
    assert keeping.counters.reused_tokens > keeping.counters.prefill_tokens
    assert_learner_walks_the_same_path(groups, SAMPLING.temperature, made(placement))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_of_every_family_equal_launched_passes_bit_for_bit(name: str, dtype: TypeName) -> None:
    def run(cuda_graph: str) -> tuple[BuiltinEngine, list[Group]]:
        placement = Placement(device="cuda", backend="triton", dtype=dtype)
        model = CausalLM(family_config(name), placement.backend)
        model.initialise(0)
        engine = BuiltinEngine(
            place(model, placement), TOKENIZER, BuiltinSettings.model_validate({"cuda_graph": cuda_graph})
        )
        return engine, engine.run(mixed_requests())

    (engine, groups), (plain, wanted) = run("on"), run("off")
    assert engine._graphs is not None
    assert engine._graphs.graphs.captured > 1
    assert plain._graphs is None
    for group, other in zip(groups, wanted, strict=True):
        assert_same_samples(group, other)


def test_graphs_take_new_weights_in_mid_response_without_a_new_capture() -> None:
    placement = Placement(device="cuda", backend="triton", dtype="bfloat16")
    other = CausalLM(tiny_config(), "triton")
    other.initialise(7)
    new = {name: tensor.cuda() for name, tensor in published_tensors(other).items()}
    found = []
    for cuda_graph in ("on", "off"):
        engine = BuiltinEngine(made(placement), TOKENIZER, BuiltinSettings.model_validate({"cuda_graph": cuda_graph}))
        (entry,) = [one for one in mixed_requests() if one.group_id == "g0"]
        engine.submit(entry)
        for _ in range(6):
            engine.step()
        captured = engine._graphs.graphs.captured if engine._graphs else 0
        engine.load_weights(new, version=1)
        found.append(steps_until_done(engine)[0])
        assert captured == (engine._graphs.graphs.captured if engine._graphs else 0)
    assert_same_samples(*found)
    assert set(found[0].rollouts[0].segments[0].weight_version) == {-1, 0, 1}


def test_graphs_of_a_large_vocabulary_give_the_learners_log_probabilities() -> None:
    """Two stages of the search for a draw, and candidates over many words."""
    placement = Placement(device="cuda", backend="triton", dtype="bfloat16")

    def model() -> CausalLM:
        network = CausalLM(tiny_config(vocab_size=5000), "triton")
        network.initialise(0)
        return place(network, placement)

    engine = BuiltinEngine(model(), TOKENIZER, BuiltinSettings(cuda_graph="on"))
    sampling = SamplingSettings(max_new_tokens=20, temperature=0.8, top_p=0.9, ignore_stop=True)
    groups = engine.run([request("g", (5, 4000, 7), sampling, range(20))])
    assert_learner_walks_the_same_path(groups, sampling.temperature, model())


def test_library_products_agree_within_rounding() -> None:
    placement = Placement(device="cuda")
    batch = learner_batch(sampled(placement), SAMPLING.temperature, tiny_config())
    with torch.no_grad():
        seen = run_policy(made(placement), batch, routes_LNX=batch.routes_LNX, use_support=True)
    assert float((seen.logprobs_M - batch.sampler_logprobs_M).abs().max()) < 1e-4


def test_rows_that_may_depend_on_their_batch_agree_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner attends in expanded form, the engine's graphs in absorbed form with cut keys; no row is near a tie in float32."""
    monkeypatch.setattr(dispatch, "EXPANDED_QUERIES", 2)
    monkeypatch.setattr(dispatch, "EXPANDED_KEYS", 100)
    placement = Placement(device="cuda", backend="triton", batch_invariant=False)
    batch = learner_batch(sampled(placement), SAMPLING.temperature, tiny_config())
    assert dispatch.divide(batch.plan, tiny_config().index_topk).division is not None
    with torch.no_grad():
        seen = run_policy(made(placement), batch, routes_LNX=batch.routes_LNX, use_support=True)
    assert float((seen.logprobs_M - batch.sampler_logprobs_M).abs().max()) < 1e-3
