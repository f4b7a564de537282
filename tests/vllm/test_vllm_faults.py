"""Requests, weights and records that are wrong: each ends in a typed outcome or a clear error, and the engine goes on where it can."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samepath.rollout.engine_errors import EngineRecordError
from samepath.rollout.sampling_settings import SamplingSettings
from tests.tiny_runs import request
from tests.vllm.conftest import EXACT
from tests.vllm.test_vllm_engine import SAMPLINGS, assert_equal_records, prompts, segments

SMALL_CACHE = EXACT.model_copy(update={"cache_bytes": 1 << 19})
PLAIN = EXACT.model_copy(update={"return_sampling_mask": False})


@pytest.mark.parametrize(
    ("token_ids", "sampling", "failure"),
    [
        ((), SAMPLINGS[0], "no_tokens"),
        ((5,) * 240, SAMPLINGS[0], "prompt_too_long"),
        ((5, 96), SAMPLINGS[0], "token_out_of_range"),
        ((5, -1), SAMPLINGS[0], "token_out_of_range"),
        ((5,), SamplingSettings(max_new_tokens=4, temperature=2.5), "temperature_out_of_range"),
        ((5,), SamplingSettings(max_new_tokens=4, temperature=0.001), "temperature_out_of_range"),
    ],
)
def test_submit_of_a_request_that_cannot_run_gives_typed_failures(
    engine: Callable, token_ids: tuple[int, ...], sampling: SamplingSettings, failure: str
) -> None:
    vllm = engine("qwen3_moe")
    group = vllm.submit(request("bad", token_ids, sampling))
    assert [rollout.failure for rollout in group.rollouts] == [failure, failure]
    assert all(rollout.segments == () for rollout in group.rollouts)
    assert not vllm.busy
    assert segments(vllm.run(prompts(1, SAMPLINGS[0])))


def test_engine_without_candidate_records_refuses_truncation_but_not_greedy(engine: Callable) -> None:
    vllm = engine("qwen3_moe", 0, PLAIN)
    truncated = vllm.submit(request("bad", (5, 6), SamplingSettings(top_p=0.9, max_new_tokens=5)))
    assert {rollout.failure for rollout in truncated.rollouts} == {"candidates_not_recorded"}
    greedy = SamplingSettings(temperature=0.0, top_p=0.9, max_new_tokens=5, ignore_stop=True)
    found = segments(vllm.run([request("greedy", (5, 6), greedy)]))
    assert all(segment.support is None for segment in found)
    assert found[0].token_ids.tolist() == found[1].token_ids.tolist()


def test_run_in_a_cache_too_small_for_all_preempts_and_changes_nothing(
    engine: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen samples of up to 150 tokens in a cache for about four: half-done samples are thrown out and computed again."""
    sampling = SamplingSettings(max_new_tokens=80, ignore_stop=True, top_p=0.9)
    asked = prompts(8, sampling)
    wanted = engine("qwen3_moe").run(asked)
    small = engine("qwen3_moe", 0, SMALL_CACHE)
    scheduler = small._llm.engine_core.engine_core.scheduler
    preempted = []
    preempt = scheduler._preempt_request
    monkeypatch.setattr(
        scheduler,
        "_preempt_request",
        lambda entry, *args, **options: (preempted.append(entry.request_id), preempt(entry, *args, **options))[1],
    )
    groups = small.run(asked)
    assert preempted, "the test must be short of cache"
    assert_equal_records(groups, wanted)


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape", "type"])
def test_load_weights_that_do_not_fit_changes_nothing(engine: Callable, checkpoint: Callable, wrong: str) -> None:
    vllm = engine("qwen3_moe")
    asked = prompts(2, SAMPLINGS[1])
    before, version = vllm.run(asked), vllm.weight_version
    weights = load_file(checkpoint("qwen3_moe", 7) / "model.safetensors")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    expert = weights.pop(name)
    if wrong == "unknown":
        weights |= {name: expert, "model.layers.2.mlp.experts.8.up_proj.weight": expert}
    elif wrong == "shape":
        weights[name] = expert.T.contiguous()
    elif wrong == "type":
        weights[name] = expert.to(torch.int32)
    messages = {
        "missing": r"missing \['model\.layers\.2\.mlp\.experts\.3\.up_proj\.weight'\] \(1\)",
        "unknown": r"unknown \['model\.layers\.2\.mlp\.experts\.8\.up_proj\.weight'\] \(1\)",
        "shape": r"must have shape \(32, 64\); got \(64, 32\)",
        "type": r"must be a floating-point tensor; got torch\.int32",
    }
    with pytest.raises(ValueError, match=messages[wrong]):
        vllm.load_weights(weights, 99)
    assert vllm.weight_version == version
    assert_equal_records(before, vllm.run(asked))


@pytest.mark.parametrize("wrong", ["zeros", "short"])
def test_routes_that_the_engine_got_wrong_end_the_run(
    engine: Callable, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    # Late: only where vLLM is installed.
    from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsCapturer

    vllm = engine("qwen3_moe")
    with monkeypatch.context() as patch:
        if wrong == "zeros":
            snapshot = RoutedExpertsCapturer.snapshot_routing_data
            patch.setattr(RoutedExpertsCapturer, "snapshot_routing_data", lambda self, n: snapshot(self, n).zero_())
        else:
            take = AuxOutputSchedulerConnector.take_output
            patch.setattr(AuxOutputSchedulerConnector, "take_output", lambda self, *args: take(self, *args)[:-1])
        with pytest.raises(
            EngineRecordError, match="never filled" if wrong == "zeros" else "vLLM must return routes of shape"
        ):
            vllm.run(prompts(1, SAMPLINGS[0], tag="wrong"))
    # A run would have ended; this test goes on with the engine, but not with pages whose routes are wrong.
    vllm._running.clear()
    vllm.load_weights(dict(vllm_weights(vllm)), vllm.weight_version)
    assert segments(vllm.run(prompts(1, SAMPLINGS[0])))


def vllm_weights(vllm) -> dict[str, torch.Tensor]:
    """The checkpoint's own weights."""
    return load_file(Path(vllm._llm.model_config.model) / "model.safetensors")


def test_step_that_failed_or_gets_nowhere_ends_the_run_instead_of_looping(
    engine: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = engine("olmoe")
    with monkeypatch.context() as patch:
        patch.setattr(vllm._llm, "step", list)
        patch.setattr(vllm, "_patience", 5)
        with pytest.raises(EngineRecordError, match="finished none of 2 requests in 5 steps"):
            vllm.run(prompts(1, SAMPLINGS[0]))
    vllm.abort()

    def fail() -> None:
        raise AssertionError("something inside vLLM")

    with monkeypatch.context() as patch:
        patch.setattr(vllm._llm, "step", fail)
        with pytest.raises(AssertionError):
            vllm.run(prompts(1, SAMPLINGS[0]))
    with pytest.raises(EngineRecordError, match="failed in an earlier step"):
        vllm.step()
    vllm._failed = False
    vllm.abort()
    vllm._fruitless = 0
    assert segments(vllm.run(prompts(1, SAMPLINGS[0])))
