"""The samples that decode, oldest first. Each takes pages as it grows; where none is left, the youngest gives its own back and waits.

It is prefilled again later, prompt and what it drew, and goes on as if nothing had happened: what was recorded of it is kept.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.key_store import SlotCache
from samepath.rollout.builtin.page_demand import most_pages
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.prompt_queue import PromptQueue
from samepath.rollout.builtin.recording import read_slots
from samepath.rollout.builtin.sample import Prefill, SampleState, SlotRecord
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters

MOST_AHEAD = 8
"""Pages that a sample takes in one go where there are plenty."""


class Residents:
    """Samples with pages, and the pages."""

    def __init__(
        self, cache: SlotCache, pages: PagePool, tables: SampleRows, queue: PromptQueue, settings: BuiltinSettings
    ) -> None:
        self._cache, self._pages, self._tables, self._queue, self._settings = cache, pages, tables, queue, settings
        self.samples: list[SampleState] = []
        """Oldest first."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of each sample."""
        return np.fromiter((sample.row for sample in self.samples), np.int64, len(self.samples))

    def make_room(self, counters: EngineCounters) -> list[int]:
        """See to it that every sample here has a slot for its next token; returns the rows with new ones."""
        # Those that found no page when their group forked are the youngest.
        while self.samples and not self.samples[-1].pages:
            self._queue.put_back(self.samples.pop())
        rows, grown = self.rows, []
        full = (self._tables.lengths_R[rows] >= self._tables.room_R[rows]).nonzero()[0]
        for sample in [self.samples[place] for place in full]:
            while sample.pages and not self._pages.available:
                self._give_back(counters)
            if sample.pages:
                taken = self._pages.take(max(1, self._ahead(sample)))
                sample.pages += taken
                self._tables.extend(sample.row, self._pages.slots(taken))
                grown.append(sample.row)
        return grown

    def enter(
        self, done: Sequence[tuple[Prefill, int]], counters: EngineCounters
    ) -> tuple[list[SampleState], list[int]]:
        """Take what has been prefilled, with its last row of the pass: samples as they are, and new ones of each prompt.

        Returns the new ones, and the row that each draws from.
        """
        new: list[SampleState] = []
        source_rows: list[int] = []
        sources, targets, late = [], [], list[Prefill]()
        for prefill, source_row in done:
            if prefill.sample is not None:
                self.samples.append(prefill.sample)
                continue
            if new and not new[-1].pages:
                late.append(prefill)
                continue
            length, size = len(prefill.token_ids), self._settings.page_size
            tail = slice(length - length % size, length)
            of_prompt = self._tables.slots_RS[prefill.row, :length].copy()
            forked = self._fork(prefill, counters)
            self.samples += forked
            self._tables.take(forked, [self._pages.slots(sample.pages) for sample in forked], length)
            for sample in forked:
                if not sample.pages:
                    sample.kept = read_slots(self._cache, [of_prompt])[0]
                elif sample.index:
                    sources.append(of_prompt[tail])
                    targets.append(self._tables.slots_RS[sample.row, tail])
            new += forked
            source_rows += [source_row] * len(forked)
        for prefill in reversed(late):
            # An older group has not got what it needs.
            self._queue.put_back_prefill(prefill, counters)
        if sum(map(len, sources)):
            moves = torch.from_numpy(np.stack([np.concatenate(sources), np.concatenate(targets)]))
            moves = moves.to(self._cache.routes.device)
            self._cache.copy_slots(moves[0], moves[1])
        return new, source_rows

    def leave(self, ended: Sequence[SampleState], records: Sequence[SlotRecord]) -> None:
        """Let go of rows and pages; where a request keeps its keys, full pages of what was run stay findable."""
        for sample, record in zip(ended, records, strict=True):
            if sample.group.request.keep_keys:
                self._publish(sample, len(record.routes))
            self._tables.free.append(sample.row)
            self._pages.release(sample.pages)
        gone = {id(sample) for sample in ended}
        self.samples = [sample for sample in self.samples if id(sample) not in gone]

    def forget_weights(self) -> None:
        """The weights change: the keys here are not the new weights' own."""
        for sample in self.samples:
            sample.group.publishable = False

    def begin_again(self) -> None:
        """The weights change, and every context is to be computed anew: all samples give their pages back and wait, in their order.

        To be called while the cache still says what the old weights did.
        """
        for sample in self._queue.begin_again():
            sample.cut(int(self._tables.drawn_R[sample.row]), None)
        held = [sample for sample in self.samples if sample.pages]
        slots = [self._tables.slots_RS[sample.row, : self._tables.lengths_R[sample.row]] for sample in held]
        records = dict(zip(map(id, held), read_slots(self._cache, slots))) if held else {}
        for sample in reversed(self.samples):
            sample.cut(int(self._tables.drawn_R[sample.row]), records.get(id(sample)))
            self._pages.release(sample.pages)
            sample.pages = []
            # Nothing that older weights made is left of its group, so that what is made now may be shared.
            sample.group.publishable = True
            self._queue.put_back(sample)
        self.samples = []

    def _fork(self, prefill: Prefill, counters: EngineCounters) -> list[SampleState]:
        """Samples of a prompt: the first has its pages, the others share the full ones and get one of their own each, or wait without any."""
        state, length = prefill.group, len(prefill.token_ids)
        if self._settings.prefix_cache and state.publishable:
            self._pages.publish(prefill.token_ids, prefill.pages)
        shared = prefill.pages[: length // self._settings.page_size]
        self._tables.free.append(prefill.row)
        forked = []
        for index in range(len(state.request.seeds)):
            pages = prefill.pages
            if index:
                while not self._pages.available and self._queue.give_back(counters):
                    pass
                pages = []
                if self._pages.available:
                    self._pages.share(shared)
                    pages = shared + self._pages.take(1)
            forked.append(SampleState(group=state, index=index, row=self._tables.free.pop(), pages=pages))
        for sample in forked:
            if sample.pages:
                sample.pages = sample.pages + self._pages.take(self._ahead(sample, len(forked)))
            else:
                counters.preempted += 1
        return forked

    def _ahead(self, sample: SampleState, others: int = 0) -> int:
        """Pages that a sample may take now: no more than it can come to need, and few where there are few."""
        request = sample.group.request
        most = most_pages(len(request.prompt.token_ids), request.sampling.max_new_tokens, self._settings.page_size)
        share = self._pages.available // (2 * (len(self.samples) + others))
        return max(0, min(most - len(sample.pages), share, MOST_AHEAD))

    def _give_back(self, counters: EngineCounters) -> None:
        """Let the youngest of all give its pages back."""
        if self._queue.give_back(counters):
            return
        counters.preempted += 1
        sample = self.samples.pop()
        count = int(self._tables.lengths_R[sample.row])
        (record,) = read_slots(self._cache, [self._tables.slots_RS[sample.row, :count]])
        sample.kept = record.behind(sample.kept)
        # It finds again what nobody needs in the meantime.
        self._publish(sample, count)
        self._pages.release(sample.pages)
        sample.pages = []
        self._queue.put_back(sample)

    def _publish(self, sample: SampleState, count: int) -> None:
        if self._settings.prefix_cache and sample.group.publishable:
            drawn = self._tables.sampled(sample.row).token_ids.tolist()
            self._pages.publish([*sample.group.request.prompt.token_ids, *drawn][:count], sample.pages)
