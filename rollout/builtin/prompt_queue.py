"""What waits for pages or is prefilled: groups with their prompts, and samples that gave their pages back. Oldest first, always.

Every sample that decodes is older than everything here. Here, what is prefilled is older than what waits, and of what waits the samples are
older than the groups: who gives pages back is always the youngest of all, at the end of its line, and goes to the head of the next one.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from samepath.model.shape import ModelShape
from samepath.rollout.builtin.going_on import resumed
from samepath.rollout.builtin.mixed_pass import PromptPiece
from samepath.rollout.builtin.page_demand import first_pages, most_pages
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.sample import Prefill, SampleState
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.request import GroupRequest, GroupState


def impossible(request: GroupRequest, shape: ModelShape, settings: BuiltinSettings, num_pages: int) -> str:
    """Why an engine of this model and size could never run a request, as the failure of its rollouts; empty if it can."""
    token_ids, max_new_tokens = request.prompt.token_ids, request.sampling.max_new_tokens
    if not token_ids:
        return "no_tokens"
    if len(token_ids) + max_new_tokens > shape.max_position_embeddings:
        return "prompt_too_long"
    if most_pages(len(token_ids), max_new_tokens, settings.page_size) > num_pages:
        return "out_of_cache"
    if len(request.seeds) > settings.max_sequences:
        return "out_of_cache"
    if not all(0 <= token < shape.vocab_size for token in token_ids):
        return "token_out_of_range"
    return ""


class PromptQueue:
    """First come, first served."""

    def __init__(self, pages: PagePool, tables: SampleRows, settings: BuiltinSettings) -> None:
        self._pages, self._tables, self._settings = pages, tables, settings
        self._waiting: deque[GroupState | SampleState] = deque()
        self._running: deque[Prefill] = deque()
        self._weight_version = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def append(self, state: GroupState) -> None:
        """Queue a group."""
        self._waiting.append(state)

    def put_back(self, sample: SampleState) -> None:
        """Queue a sample that has no pages before everything that waits."""
        self._waiting.appendleft(sample)

    def give_back(self, counters: EngineCounters) -> bool:
        """Let the youngest that is prefilled give its pages back and wait again; False if nothing is."""
        if not self._running:
            return False
        self.put_back_prefill(self._running.pop(), counters)
        return True

    def put_back_prefill(self, prefill: Prefill, counters: EngineCounters) -> None:
        """Let what was prefilled give its pages back, and queue it before everything that waits."""
        counters.preempted += 1
        self._release(prefill)
        self._waiting.appendleft(prefill.group if prefill.sample is None else prefill.sample)

    def admit(self, decoding: Sequence[SampleState], counters: EngineCounters) -> list[Prefill]:
        """Start what waits, in order, while rows and pages last; returns it, with the slots of its tokens in its row of the tables.

        A page for each sample that decodes and those that prompts come to need are left over. Where nothing else runs, the
        first that waits starts with what there is.
        """
        admitted = []
        reserved_rows = sum(len(one.group.request.seeds) - 1 for one in self._running if one.sample is None)
        reserved_pages = len(decoding) + sum(self._first_pages(one.group) - len(one.pages) for one in self._prompts())
        while self._waiting:
            head = self._waiting[0]
            alone = not (decoding or self._running)
            if isinstance(head, SampleState):
                prefill = self._again(head, decoding, reserved_pages, alone)
            elif self._needed_rows(head) > len(self._tables.free) - reserved_rows:
                prefill = None
            elif head.request.begun:
                self._waiting.popleft()
                self._waiting.extendleft(reversed(resumed(head, self._tables, self._weight_version)))
                continue
            elif alone or self._fits(head, self._pages.available - reserved_pages):
                prefill = self._begin(head, counters)
                reserved_rows += len(head.request.seeds) - 1
                reserved_pages += max(0, self._first_pages(head) - len(prefill.pages))
            else:
                prefill = None
            if prefill is None:
                break
            self._waiting.popleft()
            self._running.append(prefill)
            admitted.append(prefill)
        return admitted

    def pieces(self, room: int) -> list[PromptPiece]:
        """Tokens to prefill now, `room` at most: pieces of the first, in order."""
        pieces = []
        for one in self._running:
            token_ids = one.token_ids[one.computed : one.computed + max(room, 0)]
            if not token_ids:
                break
            pieces.append(PromptPiece(token_ids=token_ids, first=one.computed, row=one.row))
            room -= len(token_ids)
        return pieces

    def count(self, pieces: Sequence[PromptPiece], counters: EngineCounters) -> list[tuple[Prefill, int]]:
        """Count what was run of the first; returns what is done, each with its last row among the pieces."""
        done, row = [], 0
        for one, piece in zip(list(self._running), pieces):
            count = len(piece.token_ids)
            one.computed += count
            row += count
            if one.sample is None:
                counters.prefill_tokens += count
            else:
                counters.rerun_tokens += count
            if one.computed == len(one.token_ids):
                self._running.popleft()
                done.append((one, row - 1))
        return done

    def forget_weights(self, version: int) -> None:
        """The weights change to those of `version`: what has run is not the new weights' own."""
        self._weight_version = version
        for one in self._running:
            one.group.publishable = False

    def begin_again(self) -> list[SampleState]:
        """The weights change, and nothing of the old ones is to be used: all that is prefilled gives its pages back and waits.

        Returns the samples among what waits.
        """
        while self._running:
            prefill = self._running.pop()
            self._release(prefill)
            self._waiting.appendleft(prefill.group if prefill.sample is None else prefill.sample)
        samples = [one for one in self._waiting if isinstance(one, SampleState)]
        for sample in samples:
            sample.group.publishable = True
        return samples

    def samples(self) -> list[SampleState]:
        """Samples that have begun and wait, or are prefilled again."""
        running = [one.sample for one in self._running if one.sample is not None]
        return running + [one for one in self._waiting if isinstance(one, SampleState)]

    def clear(self) -> tuple[list[SampleState], list[GroupState]]:
        """Drop everything; returns samples that have begun, now without pages, and groups of which none has."""
        for one in self._running:
            self._release(one)
        samples = [one.sample for one in self._running if one.sample is not None]
        groups = [one.group for one in self._prompts()]
        for state in self._waiting:
            if isinstance(state, SampleState):
                samples.append(state)
            else:
                groups.append(state)
        self._waiting.clear()
        self._running.clear()
        return samples, groups

    def _release(self, prefill: Prefill) -> None:
        self._pages.release(prefill.pages)
        if prefill.sample is None:
            self._tables.free.append(prefill.row)
        else:
            prefill.sample.pages = []

    def _prompts(self) -> Iterator[Prefill]:
        return (one for one in self._running if one.sample is None)

    def _needed_rows(self, state: GroupState) -> int:
        return len(state.request.seeds) - len(state.rollouts)

    def _first_pages(self, state: GroupState) -> int:
        return first_pages(len(state.request.prompt.token_ids), len(state.request.seeds), self._settings.page_size)

    def _fits(self, state: GroupState, room: int) -> bool:
        """Whether a group can begin with `room` pages; those of its prompt that somebody holds cost none."""
        needed = self._first_pages(state)
        return needed <= room or needed - self._pages.used(self._find(state.request.prompt.token_ids)) <= room

    def _begin(self, state: GroupState, counters: EngineCounters) -> Prefill:
        """Prefill a group's prompt."""
        # Of a prompt that gave its pages back nothing is left that older weights made.
        state.publishable = True
        token_ids, row = state.request.prompt.token_ids, self._tables.free.pop()
        pages, computed = self._take(self._find(token_ids), row, -(-len(token_ids) // self._settings.page_size))
        counters.reused_tokens += computed
        return Prefill(group=state, sample=None, token_ids=token_ids, row=row, pages=pages, computed=computed)

    def _again(
        self, sample: SampleState, decoding: Sequence[SampleState], reserved_pages: int, alone: bool
    ) -> Prefill | None:
        """Prefill what a sample had run, with room for its next token; None if there are not pages enough now."""
        drawn = self._tables.sampled(sample.row).token_ids.tolist()
        token_ids = [*sample.group.request.prompt.token_ids, *drawn][: self._tables.lengths_R[sample.row]]
        needed = len(token_ids) // self._settings.page_size + 1
        prefix = self._prefix_of(sample, token_ids, decoding)
        if not alone and needed - self._pages.used(prefix) > self._pages.available - reserved_pages:
            return None
        sample.pages, computed = self._take(prefix, sample.row, needed)
        return Prefill(
            group=sample.group,
            sample=sample,
            token_ids=token_ids,
            row=sample.row,
            pages=sample.pages,
            computed=computed,
        )

    def _find(self, token_ids: Sequence[int]) -> list[int]:
        return self._pages.find_prefix(token_ids) if self._settings.prefix_cache else []

    def _prefix_of(self, sample: SampleState, token_ids: Sequence[int], decoding: Sequence[SampleState]) -> list[int]:
        """Full pages of a sample's first tokens that need not be run for it: found in the cache, or its prompt's as an older sample of its group
        has them. That one may still wait for its prefill to run: of two, the older one's rows are never in a later pass, and a pass writes all
        its keys before it reads any.
        """
        found, size = self._find(token_ids), self._settings.page_size
        if not sample.group.publishable:
            return found
        running = (one.sample for one in self._running if one.sample is not None)
        older = (one for one in (*decoding, *running) if one.group is sample.group and one.pages)
        # The last token must be run.
        count = min(len(sample.group.request.prompt.token_ids), len(token_ids) - 1) // size
        held = next((one.pages[:count] for one in older), [])
        return held if len(held) > len(found) else found

    def _take(self, prefix: list[int], row: int, count: int) -> tuple[list[int], int]:
        """`count` pages that begin with those of `prefix`, put down in the row of the tables, and how many tokens stand in them already."""
        self._pages.share(prefix)
        pages = prefix + self._pages.take(count - len(prefix))
        self._tables.place(row, self._pages.slots(pages))
        return pages, len(prefix) * self._settings.page_size
