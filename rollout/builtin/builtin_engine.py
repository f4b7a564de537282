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
from torch import Tensor, nn

from samepath.kernels.backend import round_up
from samepath.model.files.checkpoint import load_published, published_tensors
from samepath.model.key_store import SlotCache
from samepath.model.network.network import CausalLM
from samepath.model.network.sharing import part_tensors, share_tensors
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.begun import Progress
from samepath.rollout.builtin.decode_graph import DecodeGraphs
from samepath.rollout.builtin.drawing import HostDrawn, draw_rows
from samepath.rollout.builtin.going_on import ended_before, progress
from samepath.rollout.builtin.graph_capture import Capture, CudaCapture, wants_graphs
from samepath.rollout.builtin.mixed_pass import PromptPiece, mixed_pass
from samepath.rollout.builtin.pages import PagePool
from samepath.rollout.builtin.prompt_queue import PromptQueue, impossible
from samepath.rollout.builtin.recording import finish_reason, finished_rollout, read_slots
from samepath.rollout.builtin.residents import Residents
from samepath.rollout.builtin.sample import Prefill, SampleState
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.record import failed_rollouts, groups_at_abort, groups_at_end, whole_group
from samepath.rollout.request import GroupRequest, GroupState
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
        self._shares = False
        """Whether the model's tensors are the learner's own."""
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
        self._residents = Residents(self._cache, self._pages, self._tables, self._queue, settings)

    @property
    def longest_sequence(self) -> int:
        """See `Engine.longest_sequence`: what the model takes, and what the cache holds of one sample."""
        # A sample needs a page beside those of its tokens: the prompt's tail is copied.
        return min(self.model.config.max_position_embeddings, (self._pages.num_pages - 1) * self.settings.page_size)

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        return bool(self._queue or self._residents.samples)

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
        state = GroupState(request=request, submitted_s=time.monotonic())
        ended_before(state)
        if state.complete:
            return whole_group(state)
        self._queue.append(state)
        return None

    def progress(self) -> list[Progress]:
        """See `Engine.progress`."""
        return progress([*self._residents.samples, *self._queue.samples()], self._cache, self._tables)

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`.

        Of samples that come apart those that had not come back yet, each by itself.
        """
        begun, waiting = self._queue.clear()
        groups = self._finish([(sample, "abort") for sample in [*self._residents.samples, *begun]])
        return groups + [group for state in waiting for group in groups_at_abort(state)]

    def load_weights(self, tensors: Mapping[str, Tensor], version: int, *, recompute: bool = False) -> None:
        """Take new weights (published names) in place and drop every cached prefix of the old ones.

        Samples in flight keep their cached keys and go on under the new version, stamped token by token; nothing of them is found later. One
        that waits to be prefilled again is prefilled with the new weights. With `recompute` all of them are: their records then have a
        segment for each version, in which every row is that version's own.
        """
        if self._shares:
            part_tensors(self.model)
            self._shares = False
        with torch.no_grad():
            load_published(self.model, tensors)
        self._begin_version(version, recompute=recompute)

    def held_weights(self) -> Mapping[str, Tensor]:
        """See `Engine.held_weights`."""
        return published_tensors(self.model)

    def share_weights(self, policy: nn.Module, version: int) -> bool:
        """See `Engine.share_weights`: where both are this package's network and no captured graph reads the engine's own tensors."""
        if self._graphs is not None or not share_tensors(self.model, policy):
            return False
        self._shares = True
        self._begin_version(version, recompute=False)
        return True

    def _begin_version(self, version: int, *, recompute: bool) -> None:
        """Go on with weights that have just come."""
        if recompute:
            self._residents.begin_again()
        if self._graphs is not None:
            self._graphs.check_addresses()
        self._pages.forget_all()
        self._queue.forget_weights(version)
        self._residents.forget_weights()
        self.weight_version = version

    @torch.inference_mode()
    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished, of samples that come apart each by itself. Does nothing when idle."""
        started = time.perf_counter()
        grown = self._residents.make_room(self.counters)
        samples = self._residents.samples
        admitted = self._queue.admit(samples, self.counters)
        self._place([*grown, *(prefill.row for prefill in admitted)])
        pieces = self._queue.pieces(self.settings.max_batch_tokens - len(samples))
        if not pieces and not samples:
            return []
        rows = self._residents.rows
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
        decoding = list(self._residents.samples)
        self._tables.lengths_R[rows] += 1
        forked, source_rows = self._enter(self._queue.count(pieces, self.counters))
        source_rows = [*range(len(rows)), *(len(rows) + row for row in source_rows)]
        return self._draw([*decoding, *forked], source_rows, hidden_ND)

    def _step_by_graphs(self, graphs: DecodeGraphs, rows: NDArray[np.int64], pieces: list[PromptPiece]) -> list[Group]:
        """A graph for the decoding samples, and beside it one for the prompts' pieces, or a pass of their own size if they are many.

        A row has the same bits either way.
        """
        decoding, finished = list(self._residents.samples), []
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
        forked, source_rows = self._enter(self._queue.count(pieces, self.counters))
        if hidden_ND is not None:
            return finished + self._draw(forked, source_rows, hidden_ND)
        if forked:
            rows = np.fromiter((sample.row for sample in forked), np.int64, len(forked))
            launched = graphs.draw(rows, source_rows, self._tables)
            finished += self._record(forked, rows, self._waited(launched.read))
        return finished

    def _enter(self, done: list[tuple[Prefill, int]]) -> tuple[list[SampleState], list[int]]:
        """Take what has been prefilled among the samples; returns those that are new, and the row that each draws from."""
        samples, source_rows = self._residents.enter(done, self.counters)
        if samples:
            self._place([sample.row for sample in samples])
        return samples, source_rows

    def _place(self, rows: list[int]) -> None:
        """Tell captured passes the slots of these rows."""
        if rows and self._graphs is not None:
            self._graphs.place(rows, self._tables, int(self._tables.room_R[rows].max()))

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
            sampled, record = tables.sampled(sample.row), record.behind(sample.kept)
            group.rollouts[sample.index] = finished_rollout(sample, reason, sampled, record, self.tokenizer)
            group.fresh_ends.append(sample.index)
            groups += groups_at_end(group, sample.index)
        self._residents.leave([sample for sample, _ in ended], records)
        return groups
