"""What tests let several ranks do whose routed experts lie in place (see `tests/ranks.py`)."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.kernels.experts.expert_product import expert_product
from samepath.model.files.policy_files import policy_tensors
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.network.expert_exchange import ExpertExchange
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import rounded
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.sharded_runner import blank_input
from samepath.rl.learner.sharding import local, named_weights, shard
from samepath.rl.recipe.recipe import Recipe
from tests import sharded_cases
from tests.conftest import tiny_model
from tests.families import family_config, family_model

WIDTH, HIDDEN, EXPERTS, CHOSEN = 16, 8, 8, 3
NUM_TOKENS = (5, 0, 17, 1)
"""Of each rank; 0 is one that has nothing to send."""


def tokens(rank: int, routing: str, dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A rank's tokens, gates, experts, and the gradient of what they give."""
    generator = torch.Generator().manual_seed(rank)
    count = NUM_TOKENS[rank]
    chosen = {"spread": range(EXPERTS), "few": [4, 5, 6]}[routing]
    ids_NX = torch.tensor(
        [[chosen[place] for place in torch.randperm(len(chosen), generator=generator)[:CHOSEN]] for _ in range(count)],
        dtype=torch.int64,
    ).view(count, CHOSEN)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    return normal(count, width), normal(count, CHOSEN), ids_NX, normal(count, width)


def exchanged(
    ranks: Ranks, routing: str, dtype: torch.dtype, backend: Backend, width: int = WIDTH
) -> list[tuple[str, float, bool]]:
    """Of the result and each gradient of an exchange, its largest difference from one process over its largest number, and whether bits are equal."""
    generator = torch.Generator().manual_seed(99)
    gate_up_EGD = torch.randn(EXPERTS, 2 * HIDDEN, width, generator=generator, dtype=torch.float64).to(dtype)
    down_EDF = torch.randn(EXPERTS, width, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    share = slice(ranks.rank * EXPERTS // ranks.size, (ranks.rank + 1) * EXPERTS // ranks.size)
    exchange = ExpertExchange(group=dist.group.WORLD, dtype=dtype)  # type: ignore[arg-type]
    x_ND, gates_NX, ids_NX, upstream_ND = tokens(ranks.rank, routing, dtype, width)
    inputs = [one.clone().requires_grad_() for one in (x_ND, gates_NX, gate_up_EGD[share], down_EDF[share])]
    out_ND = exchange.product(*inputs[:2], ids_NX, *inputs[2:], backend)
    seen = [out_ND.detach(), *torch.autograd.grad(out_ND, inputs, upstream_ND)]

    every = [tokens(rank, routing, dtype, width) for rank in range(ranks.size)]
    all_x, all_gates, all_ids, all_upstream = (torch.cat(parts) for parts in zip(*every))
    weights = [one.clone().requires_grad_() for one in (all_x, all_gates, gate_up_EGD, down_EDF)]
    whole = expert_product(*weights[:2], all_ids, *weights[2:], backend)
    wanted = [whole.detach(), *torch.autograd.grad(whole, weights, all_upstream)]
    first = sum(NUM_TOKENS[: ranks.rank])
    mine = slice(first, first + NUM_TOKENS[ranks.rank])
    wanted = [one[mine] for one in wanted[:3]] + [one[share] for one in wanted[3:]]
    found = []
    for name, one, other in zip(("out", "tokens", "gates", "gate_up", "down"), seen, wanted, strict=True):
        assert one.shape == other.shape
        size = max(float(other.abs().max()), 1e-30) if other.numel() else 1.0
        gap = float((one - other).abs().max()) / size if other.numel() else 0.0
        found.append((name, gap, torch.equal(one, other)))
    return found


def published(ranks: Ranks) -> tuple[bool, int, int]:
    """Whether weights are handed out whole and in order, the most memory behind an expert's matrix, and the bytes of one layer's experts."""
    whole, model = tiny_model(), tiny_model()
    shard(model, ranks, expert_parallel=True)
    wanted = policy_tensors(whole)
    held = 0
    same = []
    for (name, tensor), (other, known) in zip(named_weights(model), wanted.items(), strict=True):
        same.append(name == other and torch.equal(tensor, known))
        if ".experts." in name:
            held = max(held, tensor.untyped_storage().nbytes())
    experts = whole.layers[-1].feed_forward
    return all(same), held, experts.gate_up.nbytes + experts.down.nbytes


def forward(ranks: Ranks, family: str) -> tuple[bool, list[int], int]:
    """Whether a rank's own rows have the bits of a whole network, the bytes of parameters that each layer lacks while it computes, and those of
    a whole layer's experts."""
    whole, model = (family_model(family) if family != "tiny" else tiny_model() for _ in range(2))
    shard(model, ranks, expert_parallel=True)
    held: list[int] = []

    def look(layer: nn.Module, *_: object) -> None:
        held.append(sum(local(one).untyped_storage().nbytes() for one in layer.parameters()))

    for layer in model.layers:
        layer.feed_forward.register_forward_pre_hook(lambda *_, layer=layer: look(layer))
    count = 16 * (ranks.rank + 1)
    rows = torch.arange(count)
    generator = torch.Generator().manual_seed(ranks.rank)
    replay_LNX = torch.stack(
        [
            torch.stack([torch.randperm(8, generator=generator)[: model.config.num_experts_per_tok] for _ in rows])
            for _ in model.config.moe_layers
        ]
    )
    # Every other row routes live.
    replay_LNX[:, ::2] = -1
    inputs = ModelInput(
        token_ids_N=torch.randint(18, (count,), generator=generator),
        positions_N=rows,
        plan=plan_spans([Span(row=0, first=0, count=count, keys=rows)], count, model.shape.window_heads),
        replay_LNX=None if ranks.rank == 1 else replay_LNX,
    )
    with torch.no_grad():
        hidden_ND, seen_ND = (one(replace(inputs), PackedKeys(), ForwardTrace()) for one in (whole, model))
    sizes = [sum(one.nbytes for one in layer.parameters()) for layer in whole.layers]
    experts = sum(one.nbytes for one in (whole.layers[-1].feed_forward.gate_up, whole.layers[-1].feed_forward.down))
    return torch.equal(hidden_ND, seen_ND), [size - one for size, one in zip(sizes, held, strict=True)], experts


def learn(
    ranks: Ranks, recipe: Recipe, folder: Path, resume_from: Path | None, batch: TrainBatch
) -> tuple[sharded_cases.Learned, int]:
    """`sharded_cases.learn`, and how often rows were exchanged."""
    with mock.patch.object(ExpertExchange, "product", autospec=True, side_effect=ExpertExchange.product) as product:
        return sharded_cases.learn(ranks, recipe, folder, resume_from, batch), product.call_count


def rounding(ranks: Ranks) -> tuple[bool, bool, list[torch.dtype], bool]:
    """A pass of bfloat16 experts in place against whole ones, as they are trained (float32 shards) and frozen (bfloat16 shards); the types of their
    gradients; and whether what is published is the shards rounded."""

    def made() -> CausalLM:
        model = CausalLM(family_config("qwen3_moe", num_hidden_layers=2), "triton")
        model.load_state_dict(family_model("qwen3_moe", num_hidden_layers=2).state_dict())
        return rounded(model, "bfloat16")

    whole, trained, frozen = made(), made().float(), made().requires_grad_(False)
    shard(trained, ranks, gathered_in="bfloat16", expert_parallel=True)
    shard(frozen, ranks, expert_parallel=True)
    inputs = blank_input(trained.shape)
    hidden_ND, seen_ND = (one(inputs, PackedKeys(), ForwardTrace()) for one in (whole, trained))
    seen_ND.float().square().sum().backward()
    with torch.no_grad():
        frozen_NDs = [one(inputs, PackedKeys(), ForwardTrace()) for one in (whole, frozen)]
    experts = trained.layers[0].feed_forward
    types = [one.grad.to_local().dtype for one in (experts.gate_up, experts.down)]
    published = {name: tensor.clone() for name, tensor in named_weights(trained)}
    down = experts.down.detach().full_tensor()[5].bfloat16()
    same = torch.equal(published["model.layers.0.mlp.experts.5.down_proj.weight"], down)
    return torch.equal(hidden_ND, seen_ND), torch.equal(*frozen_NDs), types, same
