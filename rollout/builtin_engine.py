"""The built-in engine: continuous batching over a paged cache, with everything recorded that the learner must replay.

One `step` runs one forward pass over all decoding samples and as many prompt tokens as fit, then draws one token for each sample
whose logits are ready. Rows are padded to a multiple of 16 and every operation keeps a row's bits independent of its
neighbours, so log-probabilities equal the learner's bit for bit, whatever the batch, the arrival order or the chunking. Planning and
bookkeeping are done on the CPU; network, cache and drawing live on the model's device.

Axes: N rows of a pass, B decoding samples, S key positions, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.model.checkpoint import load_published
from samepath.model.key_store import SlotCache
from samepath.model.network import CausalLM
from samepath.model.tokenizer import Tokenizer
from samepath.rollout.counters import EngineCounters
from samepath.rollout.decode_graph import Capture, CudaCapture, DecodeGraphs, wants_graphs
from samepath.rollout.drawing import HostDrawn, draw_rows
from samepath.rollout.engine_settings import BuiltinSettings
from samepath.rollout.mixed_pass import PromptPiece, mixed_pass
from samepath.rollout.pages import PagePool
from samepath.rollout.recording import failed_rollouts, finish_reason, finished_rollout, group_so_far, read_slots
from samepath.rollout.request import GroupRequest, GroupState, SampleState
from samepath.rollout.sample_rows import SampleRows
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
        self._cache = SlotCache(model.config, num_slots, model.norm.dtype, self._device)
        self._tables = SampleRows(settings.max_sequences, round_up(model.config.max_position_embeddings))
        if capture is None and wants_graphs(settings, self._device, model.backend):
            capture = CudaCapture(self._device)
        self._graphs = None if capture is None else DecodeGraphs(model, self._cache, settings.max_sequences, capture)
        self._waiting: deque[GroupState] = deque()
        self._prefilling: deque[GroupState] = deque()
        self._samples: list[SampleState] = []

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        return bool(self._waiting or self._prefilling or self._samples)

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts."""
        failure = request.impossible(self.model.config, self.settings, self._pages.num_pages)
        if failure:
            return failed_rollouts(request, failure)
        self._waiting.append(GroupState(request=request, submitted_s=time.monotonic()))
        return None

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`."""
        states = {
            id(state): state
            for state in [*self._waiting, *self._prefilling, *(sample.group for sample in self._samples)]
        }
        self._finish([(sample, "abort") for sample in self._samples])
        for state in self._prefilling:
            self._pages.release(state.prompt_pages)
        self._waiting.clear()
        self._prefilling.clear()
        return [group_so_far(state) for state in states.values()]

    def load_weights(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take new weights (published names) in place and drop every cached prefix of the old ones.

        Samples in flight keep their cached keys and go on under the new version, stamped token by token.
        """
        with torch.no_grad():
            load_published(self.model, tensors)
        if self._graphs is not None:
            self._graphs.check_addresses()
        self._pages.forget_all()
        for state in self._prefilling:
            state.publishable = False
        self.weight_version = version

    @torch.inference_mode()
    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished. Does nothing when idle."""
        started = time.perf_counter()
        self._admit()
        chunks = self._prefill_chunks()
        if not chunks and not self._samples:
            return []
        rows = np.fromiter((sample.row for sample in self._samples), np.int64, len(self._samples))
        finished = self._step_eagerly(rows, chunks) if self._graphs is None else self._step_by_graph(rows, chunks)
        self.counters.steps += 1
        self.counters.seconds += time.perf_counter() - started
        return finished

    def _step_eagerly(self, rows: NDArray[np.int64], chunks: list[tuple[GroupState, int]]) -> list[Group]:
        """One pass for all."""
        hidden_ND = self._mixed(rows, chunks)
        decoding = list(self._samples)
        self._tables.lengths_R[rows] += 1
        forked, source_rows = self._count_prompts(chunks, len(rows))
        return self._draw([*decoding, *forked], [*range(len(rows)), *source_rows], hidden_ND)

    def _step_by_graph(self, rows: NDArray[np.int64], chunks: list[tuple[GroupState, int]]) -> list[Group]:
        """A graph for the decoding samples, and beside it a pass for the chunks; a row has the same bits either way."""
        assert self._graphs is not None
        decoding = list(self._samples)
        launched = self._graphs.launch(rows, self._tables) if decoding else None
        hidden_ND = self._mixed(rows[:0], chunks) if chunks else None
        finished = []
        if launched is not None:
            self._tables.lengths_R[rows] += 1
            finished += self._record(decoding, rows, self._waited(launched.read))
            self.counters.graph_s += launched.device_s
        if hidden_ND is not None:
            finished += self._draw(*self._count_prompts(chunks, 0), hidden_ND)
        return finished

    def _admit(self) -> None:
        """Start waiting groups in order while rows and pages last; everything a group can need is reserved now, so none stalls."""
        size = self.settings.page_size
        reserved_rows = sum(len(state.request.seeds) for state in self._prefilling)
        reserved_pages = sum(state.request.pages_needed(size) - len(state.prompt_pages) for state in self._prefilling)
        while self._waiting:
            state = self._waiting[0]
            needed = state.request.pages_needed(size)
            if (
                len(state.request.seeds) > len(self._tables.free) - reserved_rows
                or needed > self._pages.available - reserved_pages
            ):
                return
            self._waiting.popleft()
            token_ids = state.request.prompt.token_ids
            prefix = self._pages.find_prefix(token_ids) if self.settings.prefix_cache else []
            self._pages.share(prefix)
            state.computed = len(prefix) * size
            self.counters.reused_tokens += state.computed
            state.prompt_pages = prefix + self._pages.take(-(-len(token_ids) // size) - len(prefix))
            self._prefilling.append(state)
            reserved_rows += len(state.request.seeds)
            reserved_pages += needed - len(state.prompt_pages)

    def _prefill_chunks(self) -> list[tuple[GroupState, int]]:
        """(group, prompt tokens to run now), first come first served, within the rows that decoding leaves free."""
        room = max(self.settings.max_batch_tokens - len(self._samples), 0)
        chunks = []
        for state in self._prefilling:
            count = min(len(state.request.prompt.token_ids) - state.computed, room)
            if count <= 0:
                break
            chunks.append((state, count))
            room -= count
        return chunks

    def _mixed(self, rows: NDArray[np.int64], chunks: list[tuple[GroupState, int]]) -> Tensor:
        """Final hidden states of the samples in `rows`, then of the prompts' chunks."""
        pieces = [
            PromptPiece(
                token_ids=state.request.prompt.token_ids[state.computed : state.computed + count],
                first=state.computed,
                slots=self._pages.slots(state.prompt_pages),
            )
            for state, count in chunks
        ]
        return mixed_pass(self.model, self._cache, self._tables, rows, pieces)

    def _count_prompts(self, chunks: list[tuple[GroupState, int]], row: int) -> tuple[list[SampleState], list[int]]:
        """Count the computed tokens and fork finished prompts: (new samples, row of the pass that each draws from).

        The first chunk stands in `row`.
        """
        done, last_rows = [], []
        for state, count in chunks:
            state.computed += count
            row += count
            self.counters.prefill_tokens += count
            if state.computed == len(state.request.prompt.token_ids):
                self._prefilling.remove(state)
                done.append(state)
                last_rows.append(row - 1)
        forked = [self._fork(state) for state in done]
        self._copy_tails(done, forked)
        self._samples += (samples := [sample for group in forked for sample in group])
        return samples, [row for row, group in zip(last_rows, forked) for _ in group]

    def _fork(self, state: GroupState) -> list[SampleState]:
        """Give each sample its own row: full prompt pages shared, pages for the prompt's tail and the response taken."""
        request, size = state.request, self.settings.page_size
        length = len(request.prompt.token_ids)
        if self.settings.prefix_cache and state.publishable:
            self._pages.publish(request.prompt.token_ids, state.prompt_pages)
        shared = state.prompt_pages[: length // size]
        own = -(-(length + request.sampling.max_new_tokens) // size) - len(shared)
        samples = []
        for index in range(len(request.seeds)):
            self._pages.share(shared)
            pages = shared + self._pages.take(own)
            samples.append(SampleState(group=state, index=index, row=self._tables.free.pop(), pages=pages))
        self._tables.take(samples, [self._pages.slots(sample.pages) for sample in samples], length)
        return samples

    def _copy_tails(self, states: list[GroupState], forked: list[list[SampleState]]) -> None:
        """Copy each prompt's last, incomplete page to its samples, all in one go, and let go of the prompts' own pages."""
        sources, targets, rows = [], [], [sample.row for samples in forked for sample in samples]
        for state, samples in zip(states, forked):
            length = len(state.request.prompt.token_ids)
            tail = slice(length - length % self.settings.page_size, length)
            sources += [self._pages.slots(state.prompt_pages)[tail]] * len(samples)
            targets += [self._tables.slots_RS[sample.row, tail] for sample in samples]
            self._pages.release(state.prompt_pages)
        if rows and self._graphs is not None:
            self._graphs.place(rows, self._tables)
        if sum(map(len, sources)):
            moves = torch.from_numpy(np.stack([np.concatenate(sources), np.concatenate(targets)])).to(self._device)
            self._cache.copy_slots(moves[0], moves[1])

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
        self._tables.count_drawn(rows, drawn.tokens)
        self.counters.sampled_tokens += len(ready)
        self.counters.over_cap += drawn.over_cap
        ended = []
        for place, (sample, token, logprob) in enumerate(zip(ready, drawn.tokens, drawn.logprobs, strict=True)):
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            sample.versions.append(self.weight_version)
            if drawn.supports is not None:
                sample.supports.append(drawn.supports[place])
            reason = finish_reason(sample, token, self.tokenizer)
            if reason:
                ended.append((sample, reason))
        return self._finish(ended)

    def _finish(self, ended: list[tuple[SampleState, str]]) -> list[Group]:
        """Record the rollouts, with their reasons, and free their rows and pages; returns the groups that are complete."""
        if not ended:
            return []
        tables = self._tables
        records = read_slots(self._cache, [tables.slots_RS[one.row, : tables.lengths_R[one.row]] for one, _ in ended])
        groups = []
        for (sample, reason), record in zip(ended, records, strict=True):
            group = sample.group
            group.rollouts[sample.index] = finished_rollout(sample, reason, record, self.tokenizer)
            tables.free.append(sample.row)
            self._pages.release(sample.pages)
            if len(group.rollouts) == len(group.request.seeds):
                groups.append(group_so_far(group))
        gone = {id(sample) for sample, _ in ended}
        self._samples = [sample for sample in self._samples if id(sample) not in gone]
        return groups
