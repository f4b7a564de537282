"""Decoding of the built-in engine with and without CUDA graphs: `python -m benchmarks.decode` on an NVIDIA GPU.

A sparse mixture-of-experts model of recipes/h200_small.yaml's sizes with random weights answers short prompts; responses have one
length. Both ways run in one process, after a round that compiles and captures, and must give the same bits.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from samepath.kernels.gpu.loading import backend_problem
from samepath.model.config import ModelConfig
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt

MODEL: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.02,
}
"""recipes/h200_small.yaml's network; the vocabulary is given."""

PROMPT_TOKENS = 12
GROUP_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeResult:
    """One timed round."""

    decode: str
    """`eager` or `graph`."""
    rows: int
    """Samples decoded together."""
    top_p: float
    """Of the draws; 1 leaves nothing out."""
    vocab_size: int
    """Tokens."""
    step_ms: float
    """Wall time of a step, prompts' steps included, on average."""
    host_ms: float
    """Of it not waiting for the device."""
    device_ms: float
    """Decode pass on the device, copies included; 0 for eager passes, which are launched one kernel at a time."""
    tokens_per_s: float
    """Sampled, prompts' time included."""


def bench_model(vocab_size: int, device: str) -> CausalLM:
    """Random weights in bfloat16 on the device."""
    with torch.device(device):
        model = CausalLM(ModelConfig.model_validate({**MODEL, "vocab_size": vocab_size}), "triton")
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, model.config.initializer_range, generator=generator)
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def bench_requests(rows: int, vocab_size: int, sampling: SamplingSettings) -> list[GroupRequest]:
    """Groups of `GROUP_SIZE` samples, `rows` samples in all."""
    rng = np.random.default_rng(0)
    return [
        GroupRequest(
            group_id=str(first),
            prompt=Prompt(
                prompt_id=str(first),
                text="",
                token_ids=tuple(int(token) for token in rng.integers(2, vocab_size, PROMPT_TOKENS)),
            ),
            sampling=sampling,
            seeds=tuple(range(first, first + min(GROUP_SIZE, rows - first))),
        )
        for first in range(0, rows, GROUP_SIZE)
    ]


def bench_engine(model: CausalLM, rows: int, decode: str) -> BuiltinEngine:
    """An engine that decodes all rows together; `decode` is `eager` or `graph`."""
    alphabet = "".join(chr(0x4E00 + index) for index in range(model.config.vocab_size - 2))
    sizes = BuiltinSettings(
        max_sequences=rows,
        max_batch_tokens=8192,
        cache_tokens=(rows + 64) * 80,
        cuda_graph="on" if decode == "graph" else "off",
    )
    return BuiltinEngine(model, character_tokenizer(alphabet), sizes)


def measure(engine: BuiltinEngine, requests: Sequence[GroupRequest], decode: str) -> tuple[DecodeResult, list[Group]]:
    """The second of two equal rounds, and its groups."""
    engine.run(requests)
    engine.counters = EngineCounters()
    groups = engine.run(requests)
    counters, steps = engine.counters, engine.counters.steps
    result = DecodeResult(
        decode=decode,
        rows=sum(len(request.seeds) for request in requests),
        top_p=requests[0].sampling.top_p,
        vocab_size=engine.model.config.vocab_size,
        step_ms=1000 * counters.seconds / steps,
        host_ms=1000 * (counters.seconds - counters.waited_s) / steps,
        device_ms=1000 * counters.graph_s / (steps - 1),
        tokens_per_s=counters.sampled_tokens / counters.seconds,
    )
    return result, groups


def same_bits(left: Sequence[Group], right: Sequence[Group]) -> bool:
    """Tokens, log-probabilities, routes and attended sets of every sample are equal."""
    pairs = zip(
        (rollout.segments[0] for group in left for rollout in group.rollouts),
        (rollout.segments[0] for group in right for rollout in group.rollouts),
        strict=True,
    )
    names = ("token_ids", "sampler_logprobs", "routes", "selection_fingerprint")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for one, other in pairs for name in names)


def table(results: Sequence[DecodeResult]) -> str:
    """Markdown table."""
    lines = [
        "| decode | rows | vocabulary | top-p | step ms | host ms | device ms | tokens/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        device_ms = f"{one.device_ms:.2f}" if one.device_ms else ""
        lines.append(
            f"| {one.decode} | {one.rows} | {one.vocab_size} | {one.top_p:g} | {one.step_ms:.2f} | {one.host_ms:.2f} | {device_ms} | "
            f"{one.tokens_per_s:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every number of rows both ways, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[64, 256], help="samples decoded together")
    parser.add_argument("--top-p", type=float, nargs="*", default=[1.0, 0.95], help="of the draws")
    parser.add_argument("--vocab-size", type=int, default=17, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=48, help="length of a response")
    parser.add_argument("--out", type=Path, default=Path("decode-bench.json"), help="JSON file to write")
    options = parser.parse_args()
    problem = backend_problem("triton")
    if problem is not None or not torch.cuda.is_available():
        raise SystemExit(f"the benchmark needs Triton on an NVIDIA GPU: {problem or 'no CUDA device is visible'}.")
    model = bench_model(options.vocab_size, "cuda")
    results = []
    for rows in options.rows:
        for top_p in options.top_p:
            sampling = SamplingSettings(max_new_tokens=options.new_tokens, top_p=top_p, ignore_stop=True)
            requests = bench_requests(rows, options.vocab_size, sampling)
            found = []
            for decode in ("eager", "graph"):
                result, groups = measure(bench_engine(model, rows, decode), requests, decode)
                results.append(result)
                found.append(groups)
            if not same_bits(*found):
                raise SystemExit(f"eager and graph passes of {rows} rows (top-p {top_p:g}) differ")
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "results": [asdict(one) for one in results],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
