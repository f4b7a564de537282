"""A checkpoint of sharded ranks: each writes what it holds (`torch.distributed.checkpoint`), and any number of ranks, or one process, reads it.

Beside what every checkpoint has stand `shards/`, with float32 weights, buffers and both moments under the names of the parameters, and
`shards.json`, with what is no tensor. What passes compute with in bfloat16 is made from these weights by rounding.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from samepath.model.files.weight_files import SHARDS_FILE
from samepath.model.json_file import read_json, write_json
from samepath.model.policy import Policy
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.sharding import local
from samepath.rl.learner.snapshot import in_host_memory

SHARDS = "shards"
MOMENTS = ("exp_avg", "exp_avg_sq")


def holds_shards(folder: Path) -> bool:
    """Whether a checkpoint is of sharded ranks."""
    return (folder / SHARDS_FILE).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a checkpoint of sharded ranks holds beside tensors and counts."""

    said: Mapping[str, Any]
    """What `shards.json` says of the model."""
    write: Callable[[Path], None]
    """Writes every other file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSnapshot:
    """What this rank writes of a checkpoint; all ranks take part."""

    ranks: Ranks
    tensors: Mapping[str, Tensor]
    """This rank's shards, and what all hold alike."""
    said: Mapping[str, Any]
    """What `shards.json` says: of the model, and `counts` of the optimiser."""
    rest: Callable[[Path], None]
    """Writes everything else of the folder."""
    ready: Callable[[], None]
    """Waits until all tensors hold what they held when this was taken."""

    def write(self, folder: Path) -> None:
        """Fill a folder, on rank 0. Raises OSError if a disk does not take it."""
        with self.ranks.heard("their shards of a checkpoint"):
            with ExitStack() as failed:
                failed.callback(self._said, None)
                self.rest(folder)
                write_json(folder / SHARDS_FILE, self.said)
                failed.pop_all()
            self._said(folder)
            self._save(folder)

    def take_part(self) -> None:
        """The same on another rank, where rank 0 says. It says too what fails, here as there."""
        with self.ranks.heard("the checkpoint's folder"):
            if (folder := self._said(None)) is not None:
                try:
                    self._save(folder)
                except OSError:
                    return

    def _said(self, folder: Path | None) -> Path | None:
        """What rank 0 says, on all."""
        said = [folder]
        dist.broadcast_object_list(said, src=0, group=self.ranks.files)
        return said[0]

    def _save(self, folder: Path) -> None:
        self.ready()
        writer = FileSystemWriter(folder / SHARDS)
        try:
            save(dict(self.tensors), storage_writer=writer, process_group=self.ranks.files)
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            raise OSError(f"{SHARDS} of rank {rank}: {reason}") from error


def shard_snapshot(
    ranks: Ranks, policy: Policy, optimizer: Optimizer | None, *, copied: bool, rest: Rest
) -> ShardSnapshot:
    """What this rank writes as things stand between two updates; `copied` as in `in_host_memory`."""
    tensors = sharded_tensors(policy, optimizer)
    parts, ready = in_host_memory({name: local(tensor) for name, tensor in tensors.items()}, copied=copied)
    return ShardSnapshot(
        ranks=ranks,
        tensors=on_cpu(tensors, parts, ranks.size),
        said={**rest.said, **counts(optimizer)},
        rest=rest.write,
        ready=ready,
    )


def sharded_tensors(policy: Policy, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """Everything of a learner that is a tensor, as its ranks hold it."""
    masters = {} if optimizer is None else optimizer.named_masters()
    moments = {} if optimizer is None else optimizer.named_moments()
    tensors = {f"weights.{name}": masters.get(name, one).detach() for name, one in policy.named_parameters()}
    tensors |= {f"buffers.{name}": buffer for name, buffer in _saved_buffers(policy).items()}
    for moment in MOMENTS:
        tensors |= {f"{moment}.{name}": values[moment] for name, values in moments.items()}
    return tensors


def counts(optimizer: Optimizer | None) -> dict[str, Any]:
    """Everything of an optimiser that is no tensor."""
    if optimizer is None:
        return {"updates": 0, "steps": {}}
    steps = {name: float(values["step"]) for name, values in optimizer.named_moments().items()}
    return {"updates": optimizer.updates, "steps": steps}


def on_cpu(tensors: Mapping[str, Tensor], parts: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """`parts`, copies of what this rank holds of `tensors`, as shards of the same whole in host memory."""
    mesh = init_device_mesh("cpu", (size,))
    return {
        name: DTensor.from_local(
            parts[name], mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        if isinstance(tensor, DTensor)
        else parts[name]
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def read_shards(folder: Path, policy: Policy, optimizer: Optimizer | None = None) -> None:
    """Go on from a checkpoint of sharded ranks, in shards or whole; without an optimiser with the policy alone.

    Raises ValueError if it is of another model, or of other adapters.
    """
    said = read_json(folder / SHARDS_FILE)
    masters = {} if optimizer is None else optimizer.named_masters()
    targets = {f"weights.{name}": masters.get(name, one).detach() for name, one in policy.named_parameters()}
    targets |= {f"buffers.{name}": buffer for name, buffer in _saved_buffers(policy).items()}
    moments = {
        name: {
            **{moment: torch.zeros_like(masters[name]) for moment in MOMENTS},
            "step": torch.tensor(step, dtype=torch.float32, device=masters[name].device),
        }
        for name, step in said["steps"].items()
        if name in masters
    }
    targets |= {f"{moment}.{name}": values[moment] for name, values in moments.items() for moment in MOMENTS}
    # A weight that passes hold in bfloat16 is rounded from what is read.
    into = {name: one if one.dtype == torch.float32 else one.float() for name, one in targets.items()}
    _require_same(folder, into, MOMENTS if optimizer is None else ())
    with warnings.catch_warnings():
        # Every process reads what it needs by itself; that this may be one alone is no mistake.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(into, storage_reader=FileSystemReader(folder / SHARDS), no_dist=True)
    for name, one in targets.items():
        if one is not into[name]:
            one.copy_(into[name])
    if optimizer is not None:
        optimizer.take_moments(moments, int(said["updates"]))


def _require_same(folder: Path, into: Mapping[str, Tensor], without: Sequence[str]) -> None:
    written = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    shapes = {
        name: tuple(getattr(one, "size", ())) for name, one in written.items() if name.split(".")[0] not in without
    }
    wrong = sorted(name for name in {*shapes, *into} if name not in into or shapes.get(name) != tuple(into[name].shape))
    if wrong:
        raise ValueError(
            f"{folder} must hold the tensors of this model, its adapters and optimiser; {len(wrong)} differ in name or shape, the first "
            f"{wrong[0]}. Go on with the recipe that wrote it."
        )


def _saved_buffers(policy: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint holds, by name."""
    return {
        f"{where}.{name}" if where else name: buffer
        for where, module in policy.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
