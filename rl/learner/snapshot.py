"""What a checkpoint is written from: weights and optimiser state as they stand between two updates, copied or where they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def in_host_memory(tree: Any, *, copied: bool) -> tuple[Any, Callable[[], None]]:
    """The tree of dicts and lists with its tensors in host memory, and a call that waits until they are there.

    `copied` True gives tensors of their own: whoever changes the tree's changes nothing here. Those of a GPU then arrive in pinned memory through
    a stream of its own, and what is computed on the GPU afterwards waits for them there; this thread does not. Tensors that are one
    stay one.
    """
    there: dict[tuple[Any, ...], Tensor] = {}
    streams: dict[torch.device, torch.cuda.Stream] = {}

    def moved(tensor: Tensor) -> Tensor:
        # A tied matrix stands under two names and is written once.
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in there:
            there[key] = _moved(tensor.detach(), copied, streams)
        return there[key]

    def walked(part: Any) -> Any:
        if isinstance(part, Tensor):
            return moved(part)
        if isinstance(part, Mapping):
            return {name: walked(inner) for name, inner in part.items()}
        return [walked(inner) for inner in part] if isinstance(part, list) else part

    result = walked(tree)
    arrived = []
    for device, stream in streams.items():
        arrived.append(stream.record_event())
        # The next update must not overwrite what is still on its way.
        torch.cuda.current_stream(device).wait_event(arrived[-1])

    def ready() -> None:
        for event in arrived:
            event.synchronize()

    return result, ready


def _moved(tensor: Tensor, copied: bool, streams: dict[torch.device, torch.cuda.Stream]) -> Tensor:
    if not copied:
        return tensor.cpu()
    if not (tensor.is_cuda and torch.cuda.is_available()):
        return tensor.to("cpu", copy=True)
    if tensor.device not in streams:
        streams[tensor.device] = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        streams[tensor.device].wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(streams[tensor.device]):
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
