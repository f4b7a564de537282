"""What a checkpoint is written from: weights and optimiser state as they stand between two updates, copied or where they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samepath.model.files.policy_files import write_policy
from samepath.model.json_file import write_json
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.checkpoints import STEP_FILE

STATE_FILE = "learner.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a resumed learner needs. Either way the files have the same bytes."""

    policy: Policy
    """Gives settings alone: it may train on while a copy is written."""
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    """`file_tensors` of the policy."""
    state: Mapping[str, Any] | None
    """The optimiser's, and adapters; None before there is an optimiser."""
    step: int
    """Steps done."""
    version: int
    """The learner's."""
    ready: Callable[[], None]
    """Waits until all tensors hold what they held when this was taken."""

    def write(self, folder: Path) -> None:
        """Fill a folder. Raises OSError, or SafetensorError, if the disk does not take it."""
        self.ready()
        write_policy(self.policy, self.weights, folder)
        self.tokenizer.save(folder)
        if self.state is not None:
            try:
                with (folder / STATE_FILE).open("wb") as file:
                    torch.save(self.state, file)
            except RuntimeError as error:
                # What the file refused is hidden below a complaint about positions.
                raise OSError(f"{STATE_FILE}: {error.__context__ or error}") from error
        write_json(folder / STEP_FILE, {"step": self.step, "version": self.version})


def read_state(folder: Path) -> dict[str, Any]:
    """The `state` of a checkpoint, in host memory."""
    state: dict[str, Any] = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
    return state


def in_host_memory(tree: Any, *, copied: bool) -> tuple[Any, Callable[[], None]]:
    """The tree of dicts and lists with its tensors in host memory, and a call that waits until they are there.

    `copied` True gives tensors of their own: whoever changes the tree's changes nothing here. Those of a GPU then arrive in pinned memory through
    a stream of its own, and what is computed on the GPU afterwards waits for them there; this thread does not. Tensors that are one
    stay one.
    """
    moving = _Moving(copied=copied)
    result = moving.walk(tree)
    arrived = []
    for device, stream in moving.streams.items():
        arrived.append(stream.record_event())
        # The next update must not overwrite what is still on its way.
        torch.cuda.current_stream(device).wait_event(arrived[-1])

    def ready() -> None:
        for event in arrived:
            event.synchronize()

    return result, ready


@dataclass(slots=True, kw_only=True)
class _Moving:
    """No function within a function that calls itself: such a circle would keep the copies until the garbage collector came by."""

    copied: bool
    there: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    streams: dict[torch.device, torch.cuda.Stream] = field(default_factory=dict)

    def walk(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            # A tied matrix stands under two names and is written once.
            key = (part.data_ptr() or id(part), part.shape, part.stride(), part.dtype)
            if key not in self.there:
                self.there[key] = self._moved(part.detach())
            return self.there[key]
        if isinstance(part, Mapping):
            return {name: self.walk(inner) for name, inner in part.items()}
        return [self.walk(inner) for inner in part] if isinstance(part, list) else part

    def _moved(self, tensor: Tensor) -> Tensor:
        if not self.copied:
            return tensor.cpu()
        if not (tensor.is_cuda and torch.cuda.is_available()):
            return tensor.to("cpu", copy=True)
        if tensor.device not in self.streams:
            stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            self.streams[tensor.device] = stream
        with torch.cuda.stream(self.streams[tensor.device]):
            return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
