"""Times the learner's pass of whole networks, forward and backward with the head, and the operations between its products, on a GPU:
`python -m benchmarks.kernels.learner --out learner-bench.json`.

Each is run as the network has it and with those operations taken apart (separate.py), in turns in one process; forward bits must be equal, and the
gradients' difference is printed. FLOP: 6 × multiplied weights × tokens, attention not counted; MFU against 989 TFLOPS. Axes: N rows, D width, V vocabulary.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.measurement import RandomInputs, forward_and_backward, in_turn, milliseconds
from benchmarks.kernels.separate import SeparateOperations, separate_operations
from samepath.kernels.experts.expert_choice import ChoiceRule
from samepath.kernels.gpu.loading import backend_problem
from samepath.kernels.head.logprob import head_logprobs
from samepath.kernels.rows.grouped_heads import HeadNorms
from samepath.kernels.triton_backend import TritonKernels
from samepath.model.config import ModelConfig
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import rounded
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace

PEAK_TFLOPS = 989.0
"""bfloat16 products of an H200 by its data sheet."""
QWEN3_MOE: dict[str, object] = {
    "model_type": "qwen3_moe",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "max_position_embeddings": 4096,
}
"""2.7 B parameters, of which a token multiplies 0.52 B."""
DSA: dict[str, object] = {
    "model_type": "deepseek_v32",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 8,
    "first_k_dense_replace": 1,
    "num_attention_heads": 32,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 768,
    "n_group": 8,
    "topk_group": 4,
    "index_n_heads": 16,
    "index_head_dim": 128,
    "index_topk": 512,
    "max_position_embeddings": 65536,
}
"""A model of like size with sparse attention."""
NETWORKS = {"qwen3_moe": QWEN3_MOE, "dsa": DSA}


def multiplied_weights(model: CausalLM) -> int:
    """Weights that a token is multiplied with: of the experts those chosen, of embedding and head the head."""
    config, total = model.config, model.config.vocab_size * model.config.hidden_size
    for parameter in model.layers.parameters():
        if parameter.ndim == 2:
            total += parameter.numel()
        elif parameter.ndim == 3:
            total += parameter.numel() * config.num_experts_per_tok // config.n_routed_experts
    return total


def packed_input(config: ModelConfig, num_sequences: int, length: int, sequences_window: int) -> ModelInput:
    """Random sequences of one length, end to end."""
    total = num_sequences * length
    generator = torch.Generator().manual_seed(0)
    spans = [
        Span(row=row, first=0, count=length, keys=torch.arange(row, row + length)) for row in range(0, total, length)
    ]
    return ModelInput(
        token_ids_N=torch.randint(0, config.vocab_size, (total,), generator=generator),
        positions_N=torch.arange(length).repeat(num_sequences),
        plan=plan_spans(spans, total, sequences_window),
    )


class NetworkPass:
    """One network and one batch."""

    def __init__(self, name: str, num_sequences: int, length: int, *, batch_invariant: bool, recompute: bool) -> None:
        config = ModelConfig.model_validate(NETWORKS[name])
        with torch.device("cuda"):
            self.model = CausalLM(config, "triton")
        generator = torch.Generator("cuda").manual_seed(0)
        for parameter in self.model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, config.initializer_range, generator=generator)
        rounded(self.model, "bfloat16")
        if not batch_invariant:
            self.model.let_rows_depend_on_their_batch()
        self.model.activation_checkpointing = recompute
        self.batch = packed_input(config, num_sequences, length, self.model.shape.window_heads)
        if batch_invariant:
            self.batch = self.batch.to(torch.device("cuda"))
        self.targets_N = self.batch.token_ids_N.roll(-1).cuda()
        self.temperature_N = torch.ones(len(self.targets_N), device="cuda")

    def forward(self) -> Tensor:
        """[N] log-probabilities."""
        hidden_ND = self.model(self.batch, PackedKeys(), ForwardTrace())
        return head_logprobs(
            hidden_ND, self.model.head_weight, self.targets_N, self.temperature_N, None, self.model.backend
        )[0]

    def gradients(self) -> list[Tensor | None]:
        """Of the mean, for every weight."""
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        return list(torch.autograd.grad(self.forward().mean(), parameters, allow_unused=True))


def pass_row(name: str, work: NetworkPass, profile: bool) -> dict[str, Any]:
    """Both ways in turns, what they differ in, and where the time goes."""

    def apart() -> object:
        with separate_operations():
            return work.gradients()

    with torch.no_grad():
        fused_N = work.forward()
        with separate_operations():
            equal = torch.equal(fused_N, work.forward())
    fused, separate = work.gradients(), apart()
    assert isinstance(separate, list)
    differences = [
        float((one.float() - two.float()).norm() / two.float().norm().clamp(min=1e-30))
        for one, two in zip(fused, separate, strict=True)
        if one is not None and two is not None
    ]
    del fused, separate
    torch.cuda.reset_peak_memory_stats()
    ms = in_turn({"fused": work.gradients, "separate": apart}, 5)
    tokens, weights = len(work.targets_N), multiplied_weights(work.model)
    rate = {way: tokens / value * 1e3 for way, value in ms.items()}
    row = {
        "network": name,
        "tokens": tokens,
        "multiplied": weights,
        "forward bits equal": equal,
        "largest relative difference of a gradient": max(differences),
        "ms": ms,
        "tokens/s": rate,
        "MFU": {way: 6 * weights * value / 1e12 / PEAK_TFLOPS for way, value in rate.items()},
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
    }
    print(json.dumps(row, indent=1), flush=True)
    if profile:
        for context in (nullcontext(), separate_operations()):
            with context, torch.profiler.profile() as seen:
                work.gradients()
                torch.cuda.synchronize()
            print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=70))
    return row


class Operations(RandomInputs):
    """Each operation both ways, forward and backward, at the sizes of `qwen3_moe` (the last ones of `dsa`)."""

    def rows(self, num_rows: int) -> list[dict[str, Any]]:
        """Milliseconds of each."""
        width, scores = 2048, torch.rand(num_rows, 64, generator=self.random, device="cuda").requires_grad_()
        x, added, weight, qkv, units, many = (
            self.normal(*sizes).requires_grad_()
            for sizes in [
                (num_rows, width), (num_rows, width), (width,), (num_rows, 40, 128), (num_rows, 2 * 768), (num_rows, 32, 192)
            ]
        )  # fmt: skip
        head_weights = self.normal(2, 128)
        norms = HeadNorms(query_K=head_weights[0].requires_grad_(), key_K=head_weights[1].requires_grad_(), eps=1e-6)
        table, short, rule = self.normal(num_rows, 2, 128), self.normal(num_rows, 2, 32), ChoiceRule(num_chosen=8)
        ids = scores.detach().argsort(1)[:, :8].contiguous()
        cases: dict[str, Callable[[Any], tuple[Tensor | tuple[Tensor, Tensor], tuple[Tensor, ...]]]] = {
            "RMS norm": lambda one: (one.rms_norm(x, weight, 1e-6), (x, weight)),
            "sum and its norm": lambda one: (one.add_norm(x, added, weight, 1e-6), (x, added, weight)),
            "heads of grouped attention": lambda one: (
                one.grouped_heads(qkv, norms, table, 32), (qkv, norms.query_K, norms.key_K)
            ),
            "SwiGLU": lambda one: (one.swiglu(units), (units,)),
            "rotary, interleaved": lambda one: (one.rotate(many[..., 128:], short[:, 0], short[:, 1], True), (many,)),
            "gates": lambda one: (one.gate_weights(scores, ids, rule), (scores,)),
        }  # fmt: skip
        found = []
        for name, case in cases.items():

            def run(table: Any, case: Callable[[Any], Any] = case) -> Callable[[], object]:
                out, inputs = case(table())
                ones = tuple(map(torch.ones_like, out)) if isinstance(out, tuple) else torch.ones_like(out)
                return lambda: forward_and_backward(lambda: case(table())[0], inputs, ones)

            ways = {"fused": run(TritonKernels), "separate": run(SeparateOperations)}
            ms = {way: milliseconds(one) for way, one in ways.items()}
            found.append({"operation": name, "rows": num_rows, "ms": ms})
            print(f"{name:30} {num_rows:7} rows  " + "  ".join(f"{way} {value:8.3f} ms" for way, value in ms.items()))
        return found


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of these, or an empty word")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--free", action="store_true", help="rows may depend on their batch")
    parser.add_argument("--recompute", action="store_true", help="keep only each layer's input for the backward")
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes, both ways")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    problem = backend_problem("triton")
    if problem is not None or not torch.cuda.is_available():
        raise SystemExit(f"this benchmark needs an NVIDIA GPU and Triton: {problem or 'no CUDA device is visible'}")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "passes": []}
    found["operations"] = Operations().rows(asked.sequences * asked.length)
    for name in filter(None, asked.networks.split(",")):
        work = NetworkPass(
            name, asked.sequences, asked.length, batch_invariant=not asked.free, recompute=asked.recompute
        )
        found["passes"].append(pass_row(name, work, asked.profile))
        del work
        torch.cuda.empty_cache()
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
