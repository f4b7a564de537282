"""What a token costs against its position, over all keys and over the selected ones, whole model: `python -m benchmarks.sparse_cost MODEL --lengths …`.

MODEL is a checkpoint folder of the own model with an indexer, or a configuration file, of which random weights are made. At each length two passes
are timed: a block of a prompt that ends there, and a decoding step of rows that stand there; each once as the model is, and once without its
indexer, over all keys. The cache holds random keys: what a pass costs does not depend on them. Passes are launched one operation at a time, so on a
GPU short decoding steps show the launches and not the work. Beside the time stand counted operations, which no machine disturbs.

Axes: N rows, B sequences.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from benchmarks.sparse_cost_report import draw, table
from samepath.kernels.backend import round_up
from samepath.kernels.gpu.loading import backend_problem
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import read_config
from samepath.model.files.policy_files import load_policy
from samepath.model.key_store import CachedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace

Kind = Literal["prefill", "decode"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one token at one position."""

    kind: Kind
    length: int
    """Keys that the last token of the pass sees."""
    dense_us: float
    """Wall time of a pass over its tokens, median, over all keys."""
    sparse_us: float
    """The same over the selected keys, what selects them included."""
    dense_mflop: float
    """Counted operations of a token that sees `length` keys, a multiplication and an addition being two."""
    sparse_mflop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Inputs of one forward pass over a cache."""

    batch: ModelInput
    keys: CachedKeys
    head_rows: slice
    """Rows that the head sees: the last of a block, every row of a decoding step."""
    num_tokens: int


def token_mflop(model: CausalLM, num_keys: int, num_selected: int | None, *, head: bool) -> float:
    """Operations of a token that sees `num_keys` keys; `num_selected` None: over all of them, without an indexer.

    Matrices count in full, those of experts by the share that is chosen; norms, softmax and sorting count nothing. Attention over latents counts in
    absorbed form, in which the cache is read.
    """
    config = model.config
    size = 0.0
    for name, parameter in model.layers.named_parameters():
        if parameter.ndim < 2 or (num_selected is None and ".indexer." in name):
            continue
        size += parameter.numel() * (config.num_experts_per_tok / len(parameter) if parameter.ndim == 3 else 1)
    if config.latent_attention:
        pair = config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    else:
        pair = config.num_attention_heads * 2 * config.head_width
    attended = num_keys if num_selected is None else min(num_keys, num_selected)
    keys = attended * pair
    if num_selected is not None:
        # Each head's product with the key, and its share in the sum of heads.
        keys += num_keys * config.index_n_heads * (config.index_head_dim + 1)
    size += config.num_hidden_layers * keys
    return 2 * (size + (model.head_weight.numel() if head else 0)) / 1e6


@contextmanager
def without_indexer(model: CausalLM) -> Iterator[None]:
    """The model as one whose attention is over all keys and selects none."""
    attentions = [layer.get_submodule("attention") for layer in model.layers]
    indexers = [attention.indexer for attention in attentions]
    for attention in attentions:
        attention.indexer = None
    try:
        yield
    finally:
        for attention, indexer in zip(attentions, indexers, strict=True):
            assert isinstance(indexer, nn.Module)
            attention.indexer = indexer


def prepared(model: CausalLM, kind: Kind, length: int, block: int, rows: int) -> Pass:
    """A block of `block` tokens that ends at `length`, or a decoding step of `rows` sequences of that length; each has keys of its own."""
    count, sequences = (min(block, length), 1) if kind == "prefill" else (1, rows)
    num_rows = round_up(count * sequences)
    device = model.norm.device
    generator = torch.Generator().manual_seed(0)
    # Slot 0 is where padding writes.
    keys_BS = 1 + torch.arange(sequences * length).view(sequences, length)
    slots_N, positions_N = torch.zeros(2, num_rows, dtype=torch.int64)
    slots_N[: count * sequences] = keys_BS[:, length - count :].flatten()
    positions_N[: count * sequences] = torch.arange(length - count, length).repeat(sequences)
    spans = [
        Span(row=place * count, first=length - count, count=count, keys=keys) for place, keys in enumerate(keys_BS)
    ]
    cache = SlotCache(model.config, 1 + sequences * length, model.norm.dtype, device)
    for tensor in (cache.rows, cache.index):
        tensor.normal_()
    batch = ModelInput(
        token_ids_N=torch.randint(0, model.config.vocab_size, (num_rows,), generator=generator),
        positions_N=positions_N,
        plan=plan_spans(spans, num_rows, model.shape.window_heads),
    )
    total = count * sequences
    return Pass(
        batch=batch.to(device),
        keys=CachedKeys(cache, slots_N.to(device)),
        head_rows=slice(total - 1, total) if kind == "prefill" else slice(0, total),
        num_tokens=total,
    )


@torch.no_grad()
def run_pass(model: CausalLM, inputs: Pass, num_selected: int | None) -> torch.Tensor:
    """Logits of the rows that the head sees."""
    hidden_ND = model(inputs.batch, inputs.keys, ForwardTrace(), num_selected=num_selected)
    return hidden_ND[inputs.head_rows] @ model.head_weight.T


def measured(model: CausalLM, lengths: Sequence[int], topk: int, block: int, rows: int, repeats: int) -> Iterator[Cost]:
    """Both kinds of pass at every length; the two ways take turns, so that what disturbs one disturbs the other."""
    for length in lengths:
        for kind in ("prefill", "decode"):
            inputs = prepared(model, kind, length, block, rows)
            dense_s, sparse_s = [], []
            # The first round compiles and warms up.
            for _ in range(repeats + 1):
                with without_indexer(model):
                    dense_s.append(_seconds(model, inputs, length))
                sparse_s.append(_seconds(model, inputs, topk))
            head = kind == "decode"
            yield Cost(
                kind=kind,
                length=length,
                dense_us=1e6 * statistics.median(dense_s[1:]) / inputs.num_tokens,
                sparse_us=1e6 * statistics.median(sparse_s[1:]) / inputs.num_tokens,
                dense_mflop=token_mflop(model, length, None, head=head),
                sparse_mflop=token_mflop(model, length, topk, head=head),
            )


def _seconds(model: CausalLM, inputs: Pass, num_selected: int) -> float:
    on_gpu = model.norm.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    run_pass(model, inputs, num_selected)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def load(path: Path, device: str, dtype: str) -> CausalLM:
    """A checkpoint's model, or random weights for a configuration file. Raises ValueError for one without an indexer."""
    backend = "triton" if device == "cuda" else "torch"
    if path.is_dir():
        model = load_policy(path, "own", backend)
        assert isinstance(model, CausalLM)
        config = model.config
    else:
        config = read_config(path)
        with torch.device(device):
            model = CausalLM(config, backend)
    if not config.index_topk:
        raise ValueError(
            f"{path} must have an indexer; model_type {config.model_type} here has none. Add one: samepath convert … --indexer"
        )
    if not path.is_dir():
        _fill(model, config)
    return model.to(device=device, dtype=DTYPES[dtype]).eval()


def _fill(model: CausalLM, config: ModelConfig) -> None:
    generator = torch.Generator(model.norm.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, config.initializer_range, generator=generator)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder, or a configuration file")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048], help="positions")
    parser.add_argument("--topk", type=int, default=0, help="selected keys; 0: as many as the model selects")
    parser.add_argument("--block", type=int, default=256, help="tokens of a prompt that run together")
    parser.add_argument("--rows", type=int, default=1, help="sequences that decode together")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, of which the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of weights and cache")
    parser.add_argument("--out", type=Path, default=Path("sparse-cost"), help="folder for cost.json and cost.png")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table and where the two ways cross, write JSON and picture."""
    options = arguments(given)
    if options.device == "cuda" and (problem := backend_problem("triton")):
        raise SystemExit(f"--device cuda needs Triton on an NVIDIA GPU: {problem}")
    model = load(options.model, options.device, options.dtype)
    longest, lengths = model.config.max_position_embeddings, sorted(set(options.lengths))
    if lengths[-1] > longest:
        raise SystemExit(f"--lengths must be at most the model's max_position_embeddings={longest}; got {lengths[-1]}")
    topk = options.topk or model.config.index_topk
    costs = list(measured(model, lengths, topk, options.block, options.rows, options.repeats))
    print(table(costs, topk))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cost.json").write_text(
        json.dumps({"topk": topk, "costs": [asdict(one) for one in costs]}, indent=2) + "\n"
    )
    draw(costs, topk, options.out / "cost.png")
    print(f"wrote {options.out}/cost.json and cost.png")


if __name__ == "__main__":
    main()
