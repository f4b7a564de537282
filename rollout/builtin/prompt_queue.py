"""Groups whose prompts wait or run: admission in order, reservation of all that a group can need, and the pieces of the next pass."""

from collections import deque
from collections.abc import Iterator, Sequence

from samepath.model.shape import ModelShape
from samepath.rollout.builtin.mixed_pass import PromptPiece
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.reservation import pages_needed
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.request import GroupRequest, GroupState


def _pages_needed(request: GroupRequest, page_size: int) -> int:
    return pages_needed(len(request.prompt.token_ids), request.sampling.max_new_tokens, len(request.seeds), page_size)


def impossible(request: GroupRequest, shape: ModelShape, settings: BuiltinSettings, num_pages: int) -> str:
    """Why an engine of this model and size could never run a request, as the failure of its rollouts; empty if it can."""
    token_ids = request.prompt.token_ids
    if not token_ids:
        return "no_tokens"
    if len(token_ids) + request.sampling.max_new_tokens > shape.max_position_embeddings:
        return "prompt_too_long"
    if _pages_needed(request, settings.page_size) > num_pages or len(request.seeds) > settings.max_sequences:
        return "out_of_cache"
    if not all(0 <= token < shape.vocab_size for token in token_ids):
        return "token_out_of_range"
    return ""


class PromptQueue:
    """First come, first served."""

    def __init__(self, pages: PagePool, tables: SampleRows, settings: BuiltinSettings) -> None:
        self._pages, self._tables, self._settings = pages, tables, settings
        self._waiting: deque[GroupState] = deque()
        self._running: deque[GroupState] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def __iter__(self) -> Iterator[GroupState]:
        yield from self._waiting
        yield from self._running

    def append(self, state: GroupState) -> None:
        """Queue a group."""
        self._waiting.append(state)

    def admit(self, counters: EngineCounters) -> list[GroupState]:
        """Start waiting groups in order while rows and pages last; everything a group can need is reserved now, so none stalls.

        Returns them; each has a row of the tables with the slots of its prompt.
        """
        size, tables, admitted = self._settings.page_size, self._tables, []
        # A prompt stands in one of its group's rows already.
        reserved_rows = sum(len(state.request.seeds) - 1 for state in self._running)
        reserved_pages = sum(_pages_needed(state.request, size) - len(state.prompt_pages) for state in self._running)
        while self._waiting:
            state = self._waiting[0]
            needed = _pages_needed(state.request, size)
            if (
                len(state.request.seeds) > len(tables.free) - reserved_rows
                or needed > self._pages.available - reserved_pages
            ):
                break
            self._waiting.popleft()
            token_ids = state.request.prompt.token_ids
            prefix = self._pages.find_prefix(token_ids) if self._settings.prefix_cache else []
            self._pages.share(prefix)
            state.computed = len(prefix) * size
            counters.reused_tokens += state.computed
            state.prompt_pages = prefix + self._pages.take(-(-len(token_ids) // size) - len(prefix))
            state.row = tables.free.pop()
            tables.take_prompt(state.row, self._pages.slots(state.prompt_pages))
            self._running.append(state)
            admitted.append(state)
            reserved_rows += len(state.request.seeds) - 1
            reserved_pages += needed - len(state.prompt_pages)
        return admitted

    def pieces(self, room: int) -> list[PromptPiece]:
        """Prompt tokens to run now, `room` at most: pieces of the first running groups, in order."""
        pieces = []
        for state in self._running:
            token_ids = state.request.prompt.token_ids[state.computed : state.computed + max(room, 0)]
            if not token_ids:
                break
            pieces.append(PromptPiece(token_ids=token_ids, first=state.computed, row=state.row))
            room -= len(token_ids)
        return pieces

    def count(self, pieces: Sequence[PromptPiece], counters: EngineCounters) -> list[tuple[GroupState, int]]:
        """Count what was run of the first running groups; returns those that are done, each with its last row among the pieces."""
        done, row = [], 0
        for state, piece in zip(list(self._running), pieces):
            count = len(piece.token_ids)
            state.computed += count
            row += count
            counters.prefill_tokens += count
            if state.computed == len(state.request.prompt.token_ids):
                self._running.remove(state)
                done.append((state, row - 1))
        return done

    def forget_weights(self) -> None:
        """The weights change: what has run of a prompt is not the new weights' own."""
        for state in self._running:
            state.publishable = False

    def clear(self) -> None:
        """Drop every group, and let go of rows and pages."""
        for state in self._running:
            self.release(state)
        self._waiting.clear()
        self._running.clear()

    def release(self, state: GroupState) -> None:
        """Let go of a prompt's own row and pages."""
        self._tables.free.append(state.row)
        self._pages.release(state.prompt_pages)
