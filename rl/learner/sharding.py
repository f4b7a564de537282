"""A policy whose weights lie in shards on all ranks (PyTorch's fully_shard): each layer is gathered for the time that it computes.

The shards are float32 and are what the optimiser steps on; a policy that computes in bfloat16 gathers them rounded, as bfloat16.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, Shard

from samepath.model.collectives import timed
from samepath.model.files.policy_files import policy_parts, write_named
from samepath.model.key_store import PackedKeys
from samepath.model.network.expert_exchange import ExpertExchange
from samepath.model.network.moe import MixtureOfExperts
from samepath.model.network.network import CausalLM
from samepath.model.placement import DeviceName, TypeName
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rl.learner.checkpoints import write_folder
from samepath.rl.learner.model_source import save_model
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.sharded_runner import blank_input


def shard(
    policy: Policy,
    ranks: Ranks,
    device: DeviceName = "cpu",
    gathered_in: TypeName = "float32",
    *,
    expert_parallel: bool = False,
) -> None:
    """Spread a policy over the ranks, layer by layer, on its way to the device, and run a blank pass. All ranks hold the same weights before.

    `gathered_in` bfloat16 rounds float32 shards where they are gathered. Gradients of several ranks are added, not averaged: denominators are
    those of the whole mini-batch. `expert_parallel` leaves routed experts where they lie: rows travel to them (`ExpertExchange`).
    """
    mesh = init_device_mesh(device, (ranks.size,))
    # What is held in bfloat16, as a frozen policy is, computes in it too.
    computed_in = torch.bfloat16 if gathered_in == "bfloat16" else policy.head_weight.dtype
    in_place = spread_experts(policy, mesh, computed_in) if expert_parallel else set()
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    precision = bfloat16 if gathered_in == "bfloat16" else MixedPrecisionPolicy(cast_forward_inputs=False)
    if isinstance(policy, CausalLM):
        for layer in policy.layers:
            layer.register_forward_hook(_loss_behind_output)
    for module in (*policy.decoder_layers, policy):
        sharded = fully_shard(module, mesh=mesh, mp_policy=precision, ignored_params=in_place)
        sharded.set_gradient_divide_factor(1.0)
        # Gloo can only add, and NCCL adds too with a factor of 1.
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_custom_all_gather(_TimedAllGather())
        sharded.set_custom_reduce_scatter(_TimedReduceScatter())
    with torch.no_grad():
        policy(blank_input(policy.shape), PackedKeys(), ForwardTrace())
    _as_sharded(policy).reshard()


def spread_experts(policy: Policy, mesh: DeviceMesh, computed_in: torch.dtype) -> set[nn.Parameter]:
    """Leave each rank its share of every layer's routed experts, equal ones in the ranks' order; returns these parameters.

    They are shards of the same whole as `fully_shard` would make, so optimiser and checkpoints see no difference.
    """
    exchange = ExpertExchange(group=mesh.get_group(), dtype=computed_in)

    def share(weight: nn.Parameter) -> nn.Parameter:
        own = weight.detach().chunk(mesh.size())[mesh.get_local_rank()].clone().to(mesh.device_type)
        return nn.Parameter(DTensor.from_local(own, mesh, [Shard(0)], run_check=False), weight.requires_grad)

    layers = [module for module in policy.modules() if isinstance(module, MixtureOfExperts)]
    for experts in layers:
        experts.spread(share(experts.gate_up), share(experts.down), exchange)
    return {weight for experts in layers for weight in (experts.gate_up, experts.down)}


def named_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight whole, under its published name, in the type that passes compute with; all ranks must take all, in step.

    One layer is gathered at a time, or what stands outside the layers, of experts that lie in place one rank's share: whoever keeps a tensor past
    the next one copies it.
    """
    for module, tensors in policy_parts(policy):
        unit = _as_sharded(module)
        unit.unshard()
        try:
            yield from tensors()
        finally:
            unit.reshard()


def write_whole(policy: Policy, tokenizer: Tokenizer, folder: Path, ranks: Ranks) -> None:
    """Write a self-contained checkpoint folder (see `write_folder`) on rank 0, of a policy in shards or whole; all ranks take part."""
    if not isinstance(policy, FSDPModule):
        if ranks.rank == 0:
            write_folder(folder, lambda partial: save_model(policy, tokenizer, partial))
        return
    weights = named_weights(policy)

    def write(partial: Path) -> None:
        write_named(policy, weights, partial)
        tokenizer.save(partial)

    with ExitStack() as ended:
        # Other ranks wait for this one at every layer, whatever becomes of the file.
        ended.callback(deque, weights, 0)
        if ranks.rank == 0:
            write_folder(folder, write)


def shards(policy: nn.Module) -> dict[str, Tensor]:
    """This rank's part of each parameter, by name."""
    return {name: local(parameter.detach()) for name, parameter in policy.named_parameters()}


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or a tensor that is whole on every rank."""
    to_local: Any = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part


def _as_sharded(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module


class _TimedAllGather(DefaultAllGather):
    """PyTorch's own, timed."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        with timed(input_tensor.device):
            return super().__call__(output_tensor, input_tensor, *arguments, **named)


class _TimedReduceScatter(DefaultReduceScatter):
    """PyTorch's own, timed."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        with timed(input_tensor.device):
            return super().__call__(output_tensor, input_tensor, *arguments, **named)


class _Together(torch.autograd.Function):
    """Copies of tensors, whose gradients go on together: none before all are there."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _loss_behind_output(layer: nn.Module, arguments: tuple[Any, ...], output_ND: Tensor) -> Tensor | None:
    """Let the gradient of the indexer's loss enter a layer with that of its output, for which the layer's weights are gathered again."""
    trace: ForwardTrace = arguments[4]
    place: int = layer.attention.layer  # type: ignore[union-attr,assignment]
    if not (torch.is_grad_enabled() and trace.train_indexer and len(trace.indexer_losses) == place + 1):
        return None
    output_ND, trace.indexer_losses[place] = _Together.apply(output_ND, trace.indexer_losses[place])  # type: ignore[no-untyped-call]
    return output_ND
