"""The built-in engine: continuous batching over a paged cache, with everything recorded that the learner must replay.

One `step` runs one forward pass over all decoding samples and as many prompt tokens as fit, then draws one token for each sample
whose logits are ready. Rows are padded to a multiple of 16 and every operation keeps a row's bits independent of its
neighbours, so log-probabilities equal the learner's bit for bit, whatever the batch, the arrival order or the chunking. Planning and
bookkeeping are done on the CPU; network, cache and drawing live on the model's device.

Axes: N rows of a pass, B decoding samples, S key positions, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.logprob import padded_logits
from samepath.kernels.window import AttentionPlan
from samepath.model.checkpoint import load_published
from samepath.model.key_store import CachedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network import CausalLM
from samepath.model.plan import Span, merge_plans, plan_decode, plan_spans
from samepath.model.tokenizer import Tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rollout.counters import EngineCounters
from samepath.rollout.engine_settings import BuiltinSettings
from samepath.rollout.pages import PagePool
from samepath.rollout.recording import failed_rollouts, finish_reason, finished_rollout, group_so_far
from samepath.rollout.request import GroupRequest, GroupState, SampleState
from samepath.rollout.sampling import draw, learner_logprobs, uniforms
from samepath.rollout.stepped_engine import SteppedEngine
from samepath.rollout.types import Group


class BuiltinEngine(SteppedEngine):
    """Turns group requests into finished groups. Not thread-safe: one caller steps it."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, settings: BuiltinSettings) -> None:
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings
        self.weight_version = 0
        self.counters = EngineCounters()
        self._pages = PagePool(settings.cache_tokens // settings.page_size, settings.page_size)
        num_slots = (self._pages.num_pages + 1) * settings.page_size
        self._device = model.norm.device
        self._cache = SlotCache(model.config, num_slots, model.norm.dtype, self._device)
        self._table = np.zeros((settings.max_sequences, model.config.max_position_embeddings + 16), np.int64)
        self._lengths = np.zeros(settings.max_sequences, np.int64)
        self._free_rows = list(range(settings.max_sequences))[::-1]
        self._waiting: deque[GroupState] = deque()
        self._prefilling: deque[GroupState] = deque()
        self._samples: list[SampleState] = []

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        return bool(self._waiting or self._prefilling or self._samples)

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts."""
        length = len(request.prompt.token_ids) + request.sampling.max_new_tokens
        failure = ""
        if not request.prompt.token_ids:
            failure = "no_tokens"
        elif length > self.model.config.max_position_embeddings:
            failure = "prompt_too_long"
        elif (
            request.pages_needed(self.settings.page_size) > self._pages.num_pages
            or len(request.seeds) > self.settings.max_sequences
        ):
            failure = "out_of_cache"
        elif not all(0 <= token < self.model.config.vocab_size for token in request.prompt.token_ids):
            failure = "token_out_of_range"
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
        for sample in list(self._samples):
            self._finish(sample, "abort")
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
        hidden_ND, num_decoding = self._forward(chunks)
        self.counters.steps += 1
        finished = self._advance(hidden_ND, chunks, num_decoding)
        self.counters.seconds += time.perf_counter() - started
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
                len(state.request.seeds) > len(self._free_rows) - reserved_rows
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

    def _forward(self, chunks: list[tuple[GroupState, int]]) -> tuple[Tensor, int]:
        """Run decode rows, then prompt chunks; returns final hidden states and the number of decode rows."""
        num_decoding = len(self._samples)
        num_rows = round_up(num_decoding + sum(count for _, count in chunks))
        token_ids, positions, slots = (
            np.zeros(num_rows, np.int64),
            np.zeros(num_rows, np.int64),
            np.zeros(num_rows, np.int64),
        )
        plan: AttentionPlan | None = None
        if num_decoding:
            rows = np.fromiter((sample.row for sample in self._samples), np.int64, num_decoding)
            lengths = self._lengths[rows]
            token_ids[:num_decoding] = [sample.tokens[-1] for sample in self._samples]
            positions[:num_decoding] = lengths
            slots[:num_decoding] = self._table[rows, lengths]
            keys_BS = torch.from_numpy(self._table[rows, : round_up(int(lengths.max()) + 1)])
            ends_B = torch.from_numpy(lengths + 1)
            plan = plan_decode(ends_B, keys_BS, round_up(num_decoding), self.model.shape.window_heads)
        spans, row = [], num_decoding
        for state, count in chunks:
            first, stop = state.computed, state.computed + count
            prompt_slots = self._pages.slots(state.prompt_pages)
            token_ids[row : row + count] = state.request.prompt.token_ids[first:stop]
            positions[row : row + count] = np.arange(first, stop)
            slots[row : row + count] = prompt_slots[first:stop]
            spans.append(Span(row=row - num_decoding, first=first, count=count, keys=torch.from_numpy(prompt_slots)))
            row += count
        if spans:
            prefill_plan = plan_spans(spans, num_rows - num_decoding, self.model.shape.window_heads)
            plan = prefill_plan if plan is None else merge_plans(plan, prefill_plan, num_decoding, num_rows)
        assert plan is not None
        slots_N = torch.from_numpy(slots).to(self._device)
        trace = ForwardTrace(record_fingerprints=True)
        batch = ModelInput(token_ids_N=torch.from_numpy(token_ids), positions_N=torch.from_numpy(positions), plan=plan)
        hidden_ND = self.model(batch, CachedKeys(self._cache, slots_N), trace)
        if trace.routes:
            self._cache.routes[slots_N] = trace.stacked_routes()
        if trace.fingerprints:
            self._cache.fingerprints[slots_N] = trace.stacked_fingerprints()
        return hidden_ND, num_decoding

    def _advance(self, hidden_ND: Tensor, chunks: list[tuple[GroupState, int]], num_decoding: int) -> list[Group]:
        """Count the computed tokens, fork finished prompts, draw one token for every ready sample."""
        for sample in self._samples:
            self._lengths[sample.row] += 1
        ready, source_rows = list(self._samples), list(range(num_decoding))
        row = num_decoding
        for state, count in chunks:
            state.computed += count
            row += count
            self.counters.prefill_tokens += count
            if state.computed == len(state.request.prompt.token_ids):
                self._prefilling.remove(state)
                forked = self._fork(state)
                ready += forked
                source_rows += [row - 1] * len(forked)
        if not ready:
            return []
        return self._draw(ready, hidden_ND[torch.tensor(source_rows, device=self._device)])

    def _fork(self, state: GroupState) -> list[SampleState]:
        """Give each sample its own row: full prompt pages shared, the tail page copied, pages for the response taken."""
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
            row = self._free_rows.pop()
            slots = self._pages.slots(pages)
            self._table[row, : len(slots)] = slots
            self._table[row, len(slots) :] = 0
            self._lengths[row] = length
            samples.append(SampleState(group=state, index=index, row=row, pages=pages))
        if length % size:
            tail = torch.from_numpy(self._pages.slots(state.prompt_pages)[len(shared) * size : length])
            targets = torch.from_numpy(
                np.concatenate([self._table[sample.row, len(shared) * size : length] for sample in samples])
            )
            self._cache.copy_slots(tail.repeat(len(samples)).to(self._device), targets.to(self._device))
        self._pages.release(state.prompt_pages)
        self._samples += samples
        return samples

    def _draw(self, ready: list[SampleState], hidden_BD: Tensor) -> list[Group]:
        seeds = np.array([sample.group.request.seeds[sample.index] for sample in ready], np.uint64)
        counters = np.array([len(sample.tokens) for sample in ready], np.int64)
        logits_BV = padded_logits(hidden_BD, self.model.head_weight, self.model.backend)
        drawn = draw(logits_BV, [sample.group.request.sampling for sample in ready], uniforms(seeds, counters))
        self.counters.sampled_tokens += len(ready)
        self.counters.over_cap += drawn.over_cap
        kept = None if drawn.kept_BV is None else drawn.kept_BV.cpu().numpy()
        logprobs_B = learner_logprobs(drawn, hidden_BD, self.model.head_weight, self.model.backend)
        finished = []
        for place, (sample, token, logprob) in enumerate(zip(ready, drawn.tokens_B.tolist(), logprobs_B.tolist())):
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            sample.versions.append(self.weight_version)
            if kept is not None:
                sample.supports.append(kept[place].nonzero()[0].astype(np.int32))
            reason = finish_reason(sample, token, self.tokenizer)
            if reason and self._finish(sample, reason):
                finished.append(group_so_far(sample.group))
        return finished

    def _finish(self, sample: SampleState, reason: str) -> bool:
        """Record the rollout and free its row and pages; True if it was the last of its group."""
        group = sample.group
        slots = torch.from_numpy(self._table[sample.row, : self._lengths[sample.row]].copy())
        group.rollouts[sample.index] = finished_rollout(sample, reason, self._cache, slots, self.tokenizer)
        self._samples.remove(sample)
        self._free_rows.append(sample.row)
        self._pages.release(sample.pages)
        return len(group.rollouts) == len(group.request.seeds)
