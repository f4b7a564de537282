"""The built-in engine: continuous batching over a paged cache, with everything recorded that the learner must replay.

One `step` runs one forward pass over all decoding samples and as many prompt tokens as fit, then draws one token for each sample
whose logits are ready. Rows are padded to a multiple of 16 and every operation keeps a row's bits independent of its
neighbours, so log-probabilities equal the learner's bit for bit, whatever the batch, the arrival order or the chunking. Planning and
bookkeeping are done on the CPU; network, cache and drawing live on the model's device.

Axes: N rows of a pass, B decoding samples, S key positions, V vocabulary.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.model.files.checkpoint import load_published
from samepath.model.key_store import SlotCache
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.builtin.decode_graph import DecodeGraphs
from samepath.rollout.builtin.drawing import HostDrawn, draw_rows
from samepath.rollout.builtin.graph_capture import Capture, CudaCapture, wants_graphs
from samepath.rollout.builtin.mixed_pass import PromptPiece, mixed_pass
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.prompt_queue import PromptQueue, impossible
from samepath.rollout.builtin.recording import finish_reason, finished_rollout, read_slots
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.record import failed_rollouts, groups_at_abort, groups_at_end
from samepath.rollout.request import GroupRequest, GroupState, SampleState
from samepath.rollout.stepped_engine import SteppedEngine
from samepath.rollout.types import Group


class BuiltinEngine(SteppedEngine):
    """Turns group requests into finished groups. Not thread-safe: one caller steps it."""

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, settings: BuiltinSettings, capture: Capture | None = None
    ) -> None:
        """`capture` runs decode passes over static memory whatever the settings say; None leaves it to them.

        Raises EngineUnavailableError if the settings ask for CUDA graphs where there can be none.
        """
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings
        self.weight_version = 0
        self.counters = EngineCounters()
        self._pages = PagePool(settings.cache_tokens // settings.page_size, settings.page_size)
        num_slots = (self._pages.num_pages + 1) * settings.page_size
        self._device = model.norm.device
        self._ends_V = np.isin(np.arange(model.config.vocab_size), sorted(tokenizer.end_ids))
        self._cache = SlotCache(model.config, num_slots, model.norm.dtype, self._device)
        # No sequence is longer than the cache, which may hold far less than the model's longest context.
        longest = round_up(min(model.config.max_position_embeddings, settings.cache_tokens))
        self._tables = SampleRows(settings.max_sequences, longest)
        if capture is None and wants_graphs(settings, self._device, model.backend):
            capture = CudaCapture(self._device)
        self._graphs = None
        if capture is not None:
            self._graphs = DecodeGraphs(model, self._cache, settings.max_sequences, longest, capture)
        self._queue = PromptQueue(self._pages, self._tables, settings)
        self._samples: list[SampleState] = []

    @property
    def longest_sequence(self) -> int:
        """See `Engine.longest_sequence`: what the model takes, and what the cache holds of one sample."""
        # A sample needs a page beside those of its tokens: the prompt's tail is copied.
        return min(self.model.config.max_position_embeddings, (self._pages.num_pages - 1) * self.settings.page_size)

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        return bool(self._queue or self._samples)

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts.

        Raises ValueError for `keep_keys` without `engine.prefix_cache`.
        """
        if request.keep_keys and not self.settings.prefix_cache:
            raise ValueError(
                f"{request.group_id}: keep_keys leaves keys for later prompts to find, which engine.prefix_cache=false never looks for. "
                "Set engine.prefix_cache=true, or ask without keep_keys."
            )
        failure = impossible(request, self.model.config, self.settings, self._pages.num_pages)
        if failure:
            return failed_rollouts(request, failure)
        self._queue.append(GroupState(request=request, submitted_s=time.monotonic()))
        return None

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`.

        Of samples that come apart those that had not come back yet, each by itself.
        """
        groups = self._finish([(sample, "abort") for sample in self._samples])
        groups += [group for state in self._queue for group in groups_at_abort(state)]
        self._queue.clear()
        return groups

    def load_weights(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take new weights (published names) in place and drop every cached prefix of the old ones.

        Samples in flight keep their cached keys and go on under the new version, stamped token by token; nothing of them is found later.
        """
        with torch.no_grad():
            load_published(self.model, tensors)
        if self._graphs is not None:
            self._graphs.check_addresses()
        self._pages.forget_all()
        self._queue.forget_weights()
        for sample in self._samples:
            sample.group.publishable = False
        self.weight_version = version

    @torch.inference_mode()
    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished, of samples that come apart each by itself. Does nothing when idle."""
        started = time.perf_counter()
        admitted = self._queue.admit(self.counters)
        if admitted and self._graphs is not None:
            longest = max(len(state.request.prompt.token_ids) for state in admitted)
            self._graphs.place([state.row for state in admitted], self._tables, longest)
        pieces = self._queue.pieces(self.settings.max_batch_tokens - len(self._samples))
        if not pieces and not self._samples:
            return []
        rows = np.fromiter((sample.row for sample in self._samples), np.int64, len(self._samples))
        if self._graphs is None:
            finished = self._step_eagerly(rows, pieces)
        else:
            finished = self._step_by_graphs(self._graphs, rows, pieces)
        self.counters.steps += 1
        self.counters.seconds += time.perf_counter() - started
        return finished

    def _step_eagerly(self, rows: NDArray[np.int64], pieces: list[PromptPiece]) -> list[Group]:
        """One pass for all."""
        hidden_ND = mixed_pass(self.model, self._cache, self._tables, rows, pieces)
        decoding = list(self._samples)
        self._tables.lengths_R[rows] += 1
        forked, source_rows = self._fork(self._queue.count(pieces, self.counters))
        source_rows = [*range(len(rows)), *(len(rows) + row for row in source_rows)]
        return self._draw([*decoding, *forked], source_rows, hidden_ND)

    def _step_by_graphs(self, graphs: DecodeGraphs, rows: NDArray[np.int64], pieces: list[PromptPiece]) -> list[Group]:
        """A graph for the decoding samples, and beside it one for the prompts' pieces, or a pass of their own size if they are many.

        A row has the same bits either way.
        """
        decoding, finished = list(self._samples), []
        launched = graphs.decode(rows, self._tables) if decoding else None
        by_graph = bool(pieces) and graphs.takes(pieces)
        hidden_ND = None
        if by_graph:
            graphs.run_prompts(pieces, self._tables)
        elif pieces:
            hidden_ND = mixed_pass(self.model, self._cache, self._tables, rows[:0], pieces)
        if launched is not None:
            self._tables.lengths_R[rows] += 1
            finished += self._record(decoding, rows, self._waited(launched.read))
            self.counters.graph_s += launched.device_s
        forked, source_rows = self._fork(self._queue.count(pieces, self.counters))
        if hidden_ND is not None:
            return finished + self._draw(forked, source_rows, hidden_ND)
        if forked:
            rows = np.fromiter((sample.row for sample in forked), np.int64, len(forked))
            launched = graphs.draw(rows, source_rows, self._tables)
            finished += self._record(forked, rows, self._waited(launched.read))
        return finished

    def _fork(self, done: list[tuple[GroupState, int]]) -> tuple[list[SampleState], list[int]]:
        """Give each sample of finished prompts a row: full prompt pages shared, the tail page copied, pages for the response taken.

        Takes each group with the row that its samples draw from; returns the samples, and that row for each.
        """
        size, tables = self.settings.page_size, self._tables
        samples: list[SampleState] = []
        source_rows, sources, targets = [], [], []
        for state, source_row in done:
            request, length = state.request, len(state.request.prompt.token_ids)
            if self.settings.prefix_cache and state.publishable:
                self._pages.publish(request.prompt.token_ids, state.prompt_pages)
            tail = slice(length - length % size, length)
            sources += [tables.slots_RS[state.row, tail].copy()] * len(request.seeds)
            shared = state.prompt_pages[: length // size]
            own = -(-(length + request.sampling.max_new_tokens) // size) - len(shared)
            tables.free.append(state.row)
            forked = []
            for index in range(len(request.seeds)):
                self._pages.share(shared)
                pages = shared + self._pages.take(own)
                forked.append(SampleState(group=state, index=index, row=tables.free.pop(), pages=pages))
            tables.take(forked, [self._pages.slots(sample.pages) for sample in forked], length)
            targets += [tables.slots_RS[sample.row, tail] for sample in forked]
            self._pages.release(state.prompt_pages)
            samples += forked
            source_rows += [source_row] * len(forked)
        if samples and self._graphs is not None:
            longest = max(len(sample.pages) for sample in samples) * size
            self._graphs.place([sample.row for sample in samples], tables, longest)
        if sum(map(len, sources)):
            moves = torch.from_numpy(np.stack([np.concatenate(sources), np.concatenate(targets)])).to(self._device)
            self._cache.copy_slots(moves[0], moves[1])
        self._samples += samples
        return samples, source_rows

    def _draw(self, ready: list[SampleState], source_rows: list[int], hidden_ND: Tensor) -> list[Group]:
        """Draw a token for each ready sample from its row of the pass."""
        if not ready:
            return []
        rows = np.fromiter((sample.row for sample in ready), np.int64, len(ready))
        settings_5B, uniforms_B = self._tables.draw_inputs(rows)
        drawn = draw_rows(
            self.model,
            hidden_ND[torch.tensor(source_rows, device=self._device)],
            torch.from_numpy(settings_5B).to(self._device),
            torch.from_numpy(uniforms_B).to(self._device),
            truncates=self._tables.truncates(rows),
        )
        return self._record(ready, rows, self._waited(drawn.to_host))

    def _waited(self, read: Callable[[], HostDrawn]) -> HostDrawn:
        """Read what the device drew, and count the time."""
        started = time.perf_counter()
        drawn = read()
        self.counters.waited_s += time.perf_counter() - started
        return drawn

    def _record(self, ready: list[SampleState], rows: NDArray[np.int64], drawn: HostDrawn) -> list[Group]:
        """Note each sample's new token; returns the groups that this ends."""
        self._tables.count_drawn(rows, drawn.tokens, drawn.logprobs, self.weight_version)
        self.counters.sampled_tokens += len(ready)
        self.counters.over_cap += drawn.over_cap
        if drawn.supports is not None:
            for sample, ids in zip(ready, drawn.supports, strict=True):
                sample.supports.append(ids)
        ended = []
        for place in self._tables.may_end(rows, self._ends_V):
            sample = ready[place]
            token_ids = self._tables.sampled(sample.row).token_ids
            reason = finish_reason(sample.group.request.sampling, token_ids, self.tokenizer)
            if reason:
                ended.append((sample, reason))
        return self._finish(ended)

    def _finish(self, ended: list[tuple[SampleState, str]]) -> list[Group]:
        """Record the rollouts, with their reasons, and free their rows and pages; returns what goes back now."""
        if not ended:
            return []
        tables = self._tables
        records = read_slots(self._cache, [tables.slots_RS[one.row, : tables.lengths_R[one.row]] for one, _ in ended])
        groups = []
        for (sample, reason), record in zip(ended, records, strict=True):
            group = sample.group
            sampled = tables.sampled(sample.row)
            group.rollouts[sample.index] = finished_rollout(sample, reason, sampled, record, self.tokenizer)
            if group.request.keep_keys and group.publishable:
                self._pages.publish(
                    [*group.request.prompt.token_ids, *sampled.token_ids.tolist()][: len(record.routes)], sample.pages
                )
            tables.free.append(sample.row)
            self._pages.release(sample.pages)
            groups += groups_at_end(group, sample.index)
        gone = {id(sample) for sample, _ in ended}
        self._samples = [sample for sample in self._samples if id(sample) not in gone]
        return groups
