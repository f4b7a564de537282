"""What the built-in engine keeps of a sample, and of tokens that are being prefilled."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samepath.rollout.request import GroupState


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What the cache says about a sequence's tokens."""

    routes: NDArray[np.int16]
    """[tokens run, L_moe, X]."""
    fingerprints: NDArray[np.uint64]
    """[tokens run, L_sparse]."""

    def behind(self, kept: "SlotRecord | None") -> "SlotRecord":
        """This record, but of the first tokens what was kept of them."""
        if kept is None:
            return self
        count = len(kept.routes)
        return SlotRecord(
            routes=np.concatenate([kept.routes, self.routes[count:]]),
            fingerprints=np.concatenate([kept.fingerprints, self.fingerprints[count:]]),
        )

    def from_row(self, first: int, behind: "SlotRecord") -> "SlotRecord":
        """This record from row `first` on, then that of the rows behind it."""
        if first >= len(self.routes):
            return behind
        return SlotRecord(
            routes=np.concatenate([self.routes[first:], behind.routes]),
            fingerprints=np.concatenate([self.fingerprints[first:], behind.fingerprints]),
        )

    def after(self, first: int) -> "SlotRecord":
        """This record from row `first` on."""
        return SlotRecord(routes=self.routes[first:], fingerprints=self.fingerprints[first:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How much of a sample somebody has been told (`Engine.progress`)."""

    segment: int = 0
    """Segment that the last token told stands in."""
    rows: int = 0
    """Rows of that segment's context whose record was told."""
    drawn: int = 0
    """Tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where new weights came and the context was dropped: what had been drawn by then, and what the cache said about it."""

    drawn: int
    """Tokens drawn."""
    record: SlotRecord
    """Of every token before the last drawn one, as the weights before recorded it."""


@dataclass(slots=True, kw_only=True)
class SampleState:
    """One sample that has begun to be drawn; what has one entry a token stands in its row of the engine's tables."""

    group: GroupState
    """Group it belongs to."""
    index: int
    """Sample index."""
    row: int
    """Row of the engine's tables; its own until it ends."""
    pages: list[int]
    """Pages it holds a reference to; none while it waits to be prefilled again."""
    supports: list[NDArray[np.int32]] = field(default_factory=list)
    """Kept ids of each sampled token (empty: full vocabulary); unused when nothing truncates."""
    kept: SlotRecord | None = None
    """Of the tokens that had run when it last gave its pages back: the record of the pass that each was drawn from, whatever weights come."""
    cuts: list[Cut] = field(default_factory=list)
    """Where its context was dropped for new weights: a segment of its record ends at each."""
    told: Told = field(default_factory=Told)
    """What has been told of it."""

    def cut(self, drawn: int, record: SlotRecord | None) -> None:
        """New weights compute the context of all `drawn` tokens anew; `record` is that of the weights before, unless it stands in `kept`."""
        if drawn > (self.cuts[-1].drawn if self.cuts else 0):
            own = self.kept if record is None else record.behind(self.kept)
            assert own is not None
            self.cuts.append(Cut(drawn=drawn, record=own))
        self.kept = None


@dataclass(slots=True, kw_only=True)
class Prefill:
    """Tokens that are being run without a draw for each: a group's prompt, or all that a sample had run before it gave its pages back."""

    group: GroupState
    """Group whose prompt it is, or that the sample belongs to."""
    sample: SampleState | None
    """The sample; None for a prompt."""
    token_ids: Sequence[int]
    """The tokens."""
    row: int
    """Row of the engine's tables with their slots."""
    pages: list[int]
    """Pages that hold them, and a sample's next token."""
    computed: int
    """Tokens whose keys are in the cache."""
