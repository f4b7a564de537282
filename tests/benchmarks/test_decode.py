"""The benchmark of decoding: its requests, its comparison of bits, its table, and its refusal without a GPU."""

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import decode as bench_decode
from benchmarks.decode import DecodeResult, bench_requests, measure, same_bits, table
from benchmarks.decode_models import MODELS, SMALL
from samepath.model.config import ModelConfig
from samepath.rollout.sampling_settings import SamplingSettings
from tests.engine_runs import make_engine

SAMPLING = SamplingSettings(max_new_tokens=5, ignore_stop=True)


def test_bench_model_is_the_recipes() -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "h200_small.yaml").read_text(encoding="utf-8"))
    assert recipe["model"]["config"] == SMALL


def test_bench_requests_hold_all_rows_with_a_seed_each() -> None:
    requests = bench_requests(40, 17, SAMPLING)
    assert [len(request.seeds) for request in requests] == [16, 16, 8]
    assert sorted(seed for request in requests for seed in request.seeds) == list(range(40))


def test_bench_requests_have_prompts_and_groups_of_one_size() -> None:
    requests = bench_requests(3, 17, SAMPLING, prompt_tokens=30, group_size=1)
    assert [(len(request.seeds), len(request.prompt.token_ids)) for request in requests] == [(1, 30)] * 3


@pytest.mark.parametrize("name", MODELS)
def test_bench_models_are_valid(name: str) -> None:
    assert ModelConfig.model_validate({**MODELS[name], "vocab_size": 32000}).num_hidden_layers == 8


def test_measure_counts_the_second_round_and_its_decoding_steps_alone() -> None:
    requests = bench_requests(20, 17, SAMPLING)
    engine = make_engine()
    result, groups = measure(engine, requests, "eager")
    assert (result.rows, result.vocab_size, result.prompt_tokens, result.device_ms) == (20, 18, 12, 0)
    assert 0 < result.host_ms <= result.step_ms
    assert result.tokens_per_s == pytest.approx(20 / (result.step_ms / 1000))
    assert result.whole_tokens_per_s > 0
    assert engine.counters.sampled_tokens == 2 * 20 * 5
    assert sum(len(group.rollouts) for group in groups) == 20


def test_same_bits_sees_one_other_token() -> None:
    requests = bench_requests(4, 17, SAMPLING)
    one, other = make_engine().run(requests), make_engine().run(requests)
    assert same_bits(one, other)
    other[0].rollouts[2].segments[0].sampler_logprobs[-1] += 1e-6
    assert not same_bits(one, other)


def test_table_leaves_the_device_time_of_launched_passes_out() -> None:
    numbers = {
        "rows": 64,
        "top_p": 1.0,
        "vocab_size": 17,
        "host_ms": 1.5,
        "tokens_per_s": 12345.6,
        "prompt_tokens": 12,
        "whole_tokens_per_s": 9999.5,
    }
    rows = table(
        [
            DecodeResult(decode="eager", step_ms=30.0, device_ms=0.0, **numbers),
            DecodeResult(decode="graph", step_ms=2.0, device_ms=1.75, **numbers),
        ]
    ).splitlines()[2:]
    assert rows == [
        "| eager | 64 | 12 | 17 | 1 | 30.00 | 1.50 |  | 12,346 | 10,000 |",
        "| graph | 64 | 12 | 17 | 1 | 2.00 | 1.50 | 1.75 | 12,346 | 10,000 |",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_main_without_a_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_decode"])
    with pytest.raises(SystemExit, match="needs Triton on an NVIDIA GPU"):
        bench_decode.main()
