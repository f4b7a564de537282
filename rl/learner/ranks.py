"""The processes that learn together, as each of them sees the others.

Every rank holds a policy with the same bits and makes the same calls in the same order; passes are dealt out among them. Whatever decides how the
step goes on (numbers that are not finite, a gap, an error of one pass) is told to all, so that all go on, or stop, alike.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from samepath.model.collectives import CollectiveTime, timed
from samepath.rl.diagnostics.collectives import collective_metrics
from samepath.rl.learner.lost import GO_ON, LearnerLostError

Result = TypeVar("Result")

TOLD = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors of a rank that all others raise too; any other ends its process, which they notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ranks of one learner find each other."""

    host: str
    """Address of the machine of rank 0."""
    port: int
    """Where its store listens."""
    size: int
    """Ranks that are to come."""
    timeout_s: float
    """Longest wait of a rank for the others, when they meet and later, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome(Generic[Result]):
    """What a rank's part gave, or how it failed."""

    value: Result | None = None
    error: Exception | None = None


class Ranks:
    """This process among `size`. Alone it talks to nobody."""

    def __init__(self, rank: int = 0, size: int = 1, *, met: bool = False) -> None:
        """See `joined`, which makes those that have met, be it one."""
        self.rank, self.size, self._met = rank, size, met
        self._files: dist.ProcessGroup | None = None
        torch.set_num_threads(1)

    def together(self, compute: Callable[[], Result]) -> list[Result]:
        """What `compute` gives on each rank, in their order. An error of one is raised on all: that of the lowest rank.

        Raises LearnerLostError if a rank is gone or not there in time.
        """
        if self.size == 1:
            return [compute()]
        try:
            mine: _Outcome[Result] = _Outcome(value=compute())
        except LearnerLostError:
            raise
        except TOLD as error:
            mine = _Outcome(error=error)
        outcomes: list[_Outcome[Result]] = [_Outcome()] * self.size
        with self.heard("what they found"), timed(torch.device("cpu")):
            dist.all_gather_object(outcomes, mine)
        for rank, outcome in enumerate(outcomes):
            if outcome.error is not None:
                if rank == self.rank:
                    raise outcome.error
                outcome.error.add_note(f"on learner rank {rank} of {self.size}")
                raise outcome.error
        return [outcome.value for outcome in outcomes]  # type: ignore[misc]

    def exchange(self, parts: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Numbers from every rank, those of rank 0 first: `sent[r]` of `parts`, which lie in order, go to rank r, `received[r]` come from it."""
        arrived = parts.new_empty(sum(received))
        with self.heard("gradients"), timed(parts.device):
            dist.all_to_all_single(arrived, parts, list(received), list(sent))
        return arrived

    def gathered(self, part: Tensor) -> list[Tensor]:
        """The tensor of each rank; all have one shape and type."""
        parts, part = [torch.empty_like(part) for _ in range(self.size)], part.contiguous()
        with self.heard("sums"), timed(part.device):
            dist.all_gather(parts, part)
        return parts

    @torch.no_grad()
    def require_equal(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Raise RuntimeError on all ranks if the bits of a tensor differ between two; `what` names them."""
        if self.size == 1:
            return
        digests = torch.stack([_digest(tensor) for tensor in tensors])
        seen = self.gathered(digests)
        different = [rank for rank, other in enumerate(seen) if not torch.equal(other, seen[0])]
        if different:
            places = sorted({int(place) for rank in different for place in (seen[rank] != seen[0]).nonzero()})
            raise RuntimeError(
                f"{what} must be equal to the bit on all {self.size} learner ranks; ranks {different} differ from rank 0 in {len(places)} of "
                f"{len(tensors)} tensors, the first of them number {places[0]}. One of them computed otherwise: are all on the same kind of "
                f"processor, with the same libraries? {GO_ON}"
            )

    @property
    def files(self) -> dist.ProcessGroup:
        """A group of CPUs of its own for what is written while the others learn; `open_files` came before on all ranks."""
        assert self._files is not None
        return self._files

    def open_files(self, timeout_s: float) -> None:
        """Make the group of `files`. Raises LearnerLostError."""
        with self.heard("a group for files"):
            self._files = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def collective_metrics(self, kind: str, own: CollectiveTime, steps: int = 1) -> dict[str, float]:
        """`kind/collectives_…`: how long all ranks were in collectives, a step's; of one that is alone nothing. Raises LearnerLostError."""
        if self.size == 1:
            return {}
        return collective_metrics(kind, self.together(lambda: (own.collective_s, own.total_s)), steps)

    def wait(self) -> None:
        """Until all are here."""
        self.together(lambda: None)

    def leave(self) -> None:
        """Part from the others."""
        if self._met and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def heard(self, what: str) -> Iterator[None]:
        """Turn what the group raises, where a rank is gone or late, into a sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LearnerLostError(
                f"learner rank {self.rank} of {self.size} waited for {what} of the other ranks, and one of them has ended or is late "
                f"(learner.update_timeout_s bounds the wait): {reason}. {GO_ON}"
            ) from error


ALONE = Ranks()
"""A learner of one process."""


def opened(host: str, size: int, timeout_s: float) -> tuple[Meeting, TCPStore]:
    """A meeting at a free port of `host`, an address of this machine, and the store that must live as long as the ranks."""
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    store = TCPStore(
        host,
        port,
        None,
        True,
        timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return Meeting(host=host, port=port, size=size, timeout_s=timeout_s), store


def joined(meeting: Meeting, rank: int, device: str, store: TCPStore | None = None) -> Ranks:
    """This process as `rank` of the meeting, once all have come; `store` is what `opened` gave rank 0.

    Processes of CPUs talk by gloo, those of GPUs by NCCL too. Raises LearnerLostError if they do not all come in time.
    """
    wait = timedelta(seconds=meeting.timeout_s)
    try:
        if store is None:
            store = TCPStore(meeting.host, meeting.port, None, False, wait, wait_for_workers=False)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=meeting.size,
            timeout=wait,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LearnerLostError(
            f"learner rank {rank} waited up to learner.update_timeout_s={meeting.timeout_s:.0f} s at {meeting.host}:{meeting.port} for all "
            f"{meeting.size} ranks to meet: {reason}. {GO_ON}"
        ) from error
    return Ranks(rank, meeting.size, met=True)


def _digest(tensor: Tensor) -> Tensor:
    """int64, the sum of a tensor's bits taken as integers: it changes with any one of them."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(whole).sum(dtype=torch.int64).cpu()
