"""Decoding of the built-in engine with and without CUDA graphs: `python -m benchmarks.decode` on an NVIDIA GPU.

A mixture-of-experts model with random weights (decode_models.py) answers prompts of one length; responses have one length. Both ways run in one
process, after a round that compiles and captures, and must give the same bits. `--profile` lists the kernels of a step by their time.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.decode_models import MODELS
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

PROFILED_STEPS = 8
"""Steps that a profile averages over."""


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
    prompt_tokens: int
    """Of each prompt."""
    step_ms: float
    """Wall time of a step in which all rows decode and no prompt runs, median."""
    host_ms: float
    """Of it not waiting for the device, median."""
    device_ms: float
    """Decode pass on the device, copies included, median; 0 for eager passes, which are launched one kernel at a time."""
    tokens_per_s: float
    """Sampled in such a step."""
    whole_tokens_per_s: float
    """Sampled, prompts' time included."""


def bench_model(name: str, vocab_size: int, device: str) -> CausalLM:
    """Random weights in bfloat16 on the device."""
    with torch.device(device):
        model = CausalLM(ModelConfig.model_validate({**MODELS[name], "vocab_size": vocab_size}), "triton")
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, model.config.initializer_range, generator=generator)
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def bench_requests(
    rows: int, vocab_size: int, sampling: SamplingSettings, prompt_tokens: int = 12, group_size: int = 16
) -> list[GroupRequest]:
    """Groups of `group_size` samples, `rows` samples in all."""
    rng = np.random.default_rng(0)
    return [
        GroupRequest(
            group_id=str(first),
            prompt=Prompt(
                prompt_id=str(first),
                text="",
                token_ids=tuple(int(token) for token in rng.integers(2, vocab_size, prompt_tokens)),
            ),
            sampling=sampling,
            seeds=tuple(range(first, first + min(group_size, rows - first))),
        )
        for first in range(0, rows, group_size)
    ]


def bench_engine(model: CausalLM, requests: Sequence[GroupRequest], decode: str) -> BuiltinEngine:
    """An engine that decodes all samples of the requests together; `decode` is `eager` or `graph`."""
    alphabet = "".join(chr(0x4E00 + index) for index in range(model.config.vocab_size - 2))
    rows = sum(len(request.seeds) for request in requests)
    longest = max(len(request.prompt.token_ids) + request.sampling.max_new_tokens for request in requests)
    prompts = sum(len(request.prompt.token_ids) for request in requests)
    # Beside the prompts a page or two a sample: its own tokens and the copied tail.
    own = rows * (max(request.sampling.max_new_tokens for request in requests) + 48)
    sizes = BuiltinSettings(
        max_sequences=rows,
        max_batch_tokens=8192,
        cache_tokens=max(prompts + own + 64 * 80, longest + 64),
        cuda_graph="on" if decode == "graph" else "off",
    )
    return BuiltinEngine(model, character_tokenizer(alphabet), sizes)


def run_by_steps(engine: BuiltinEngine, requests: Sequence[GroupRequest]) -> tuple[list[Group], list[EngineCounters]]:
    """(the groups, what each step added to the counters)."""
    step, added = engine.step, []

    def counted() -> list[Group]:
        before = asdict(engine.counters)
        finished = step()
        after = asdict(engine.counters)
        added.append(EngineCounters(**{name: after[name] - before[name] for name in after}))
        return finished

    engine.step = counted
    try:
        return engine.run(requests), added
    finally:
        engine.step = step


def measure(engine: BuiltinEngine, requests: Sequence[GroupRequest], decode: str) -> tuple[DecodeResult, list[Group]]:
    """The second of two equal rounds, and its groups."""
    engine.run(requests)
    groups, added = run_by_steps(engine, requests)
    rows = sum(len(request.seeds) for request in requests)
    decoding = [one for one in added if not one.prefill_tokens and one.sampled_tokens == rows]
    step_s = statistics.median(one.seconds for one in decoding)
    result = DecodeResult(
        decode=decode,
        rows=rows,
        top_p=requests[0].sampling.top_p,
        vocab_size=engine.model.config.vocab_size,
        prompt_tokens=len(requests[0].prompt.token_ids),
        step_ms=1000 * step_s,
        host_ms=1000 * statistics.median(one.seconds - one.waited_s for one in decoding),
        device_ms=1000 * statistics.median(one.graph_s for one in decoding),
        tokens_per_s=rows / step_s,
        whole_tokens_per_s=sum(one.sampled_tokens for one in added) / sum(one.seconds for one in added),
    )
    return result, groups


def profile(engine: BuiltinEngine, requests: Sequence[GroupRequest]) -> str:
    """Table of the kernels of a decoding step by their time on the device; the engine has run the requests before."""
    rows = sum(len(request.seeds) for request in requests)
    for request in requests:
        engine.submit(request)
    before = engine.counters.sampled_tokens
    while engine.counters.sampled_tokens - before < 2 * rows:
        engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED_STEPS):
            engine.step()
        torch.cuda.synchronize()
    engine.abort()
    kernels = sorted(seen.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in kernels) / PROFILED_STEPS
    lines = ["| kernel | launches a step | µs a step | share |", "|---|---:|---:|---:|"]
    for kernel in kernels[:40]:
        step_us = kernel.self_device_time_total / PROFILED_STEPS
        name = kernel.key.replace("|", " ")[:90]
        lines.append(f"| {name} | {kernel.count / PROFILED_STEPS:.1f} | {step_us:.1f} | {step_us / total:.1%} |")
    return "\n".join([*lines, f"| all | | {total:.1f} | |"])


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
        "| decode | rows | prompt | vocabulary | top-p | step ms | host ms | device ms | tokens/s | with prompts |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        device_ms = f"{one.device_ms:.2f}" if one.device_ms else ""
        lines.append(
            f"| {one.decode} | {one.rows} | {one.prompt_tokens} | {one.vocab_size} | {one.top_p:g} | {one.step_ms:.2f} | {one.host_ms:.2f} | "
            f"{device_ms} | {one.tokens_per_s:,.0f} | {one.whole_tokens_per_s:,.0f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(MODELS), default="small", help="network")
    parser.add_argument("--rows", type=int, nargs="*", default=[64, 256], help="samples decoded together")
    parser.add_argument("--top-p", type=float, nargs="*", default=[1.0, 0.95], help="of the draws")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws")
    parser.add_argument("--vocab-size", type=int, default=17, help="tokens")
    parser.add_argument("--prompt-tokens", type=int, default=12, help="length of a prompt")
    parser.add_argument("--group-size", type=int, default=16, help="samples of a prompt, whose keys they share")
    parser.add_argument("--new-tokens", type=int, default=48, help="length of a response")
    parser.add_argument("--only", choices=("eager", "graph"), nargs="*", default=("eager", "graph"), help="ways to run")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step")
    parser.add_argument("--out", type=Path, default=Path("decode-bench.json"), help="JSON file to write")
    return parser.parse_args()


def main() -> None:
    """Measure every number of rows both ways, print the table, write JSON."""
    options = arguments()
    problem = backend_problem("triton")
    if problem is not None or not torch.cuda.is_available():
        raise SystemExit(f"the benchmark needs Triton on an NVIDIA GPU: {problem or 'no CUDA device is visible'}.")
    model = bench_model(options.model, options.vocab_size, "cuda")
    results = []
    for rows in options.rows:
        for top_p in options.top_p:
            sampling = SamplingSettings(
                max_new_tokens=options.new_tokens, top_p=top_p, temperature=options.temperature, ignore_stop=True
            )
            requests = bench_requests(rows, options.vocab_size, sampling, options.prompt_tokens, options.group_size)
            found = []
            for decode in options.only:
                engine = bench_engine(model, requests, decode)
                result, groups = measure(engine, requests, decode)
                results.append(result)
                found.append(groups)
                if options.profile:
                    print(f"{decode}, {rows} rows, top-p {top_p:g}\n{profile(engine, requests)}", flush=True)
                del engine
            if not all(same_bits(found[0], other) for other in found[1:]):
                raise SystemExit(f"eager and graph passes of {rows} rows (top-p {top_p:g}) differ")
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": options.model,
        "results": [asdict(one) for one in results],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
