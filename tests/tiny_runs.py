"""Small packed batches, engine requests and the learner's view of what an engine made."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.model.config import ModelConfig
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt


def packed_input(config: ModelConfig, sequences: Sequence[Tensor], replay_LNX: Tensor | None = None) -> ModelInput:
    """Token sequences laid end to end, padded to a multiple of 16 rows."""
    total = sum(len(ids) for ids in sequences)
    padded = round_up(total)
    token_ids, positions = torch.zeros(padded, dtype=torch.int64), torch.zeros(padded, dtype=torch.int64)
    spans, row = [], 0
    for ids in sequences:
        stop = row + len(ids)
        token_ids[row:stop], positions[row:stop] = ids, torch.arange(len(ids))
        spans.append(Span(row=row, first=0, count=len(ids), keys=torch.arange(row, stop)))
        row = stop
    plan = plan_spans(spans, padded, config.window_heads)
    return ModelInput(token_ids_N=token_ids, positions_N=positions, plan=plan, replay_LNX=replay_LNX)


def random_sequences(config: ModelConfig, lengths: Iterable[int], seed: int = 0) -> list[Tensor]:
    """Seeded token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, config.vocab_size, (length,), generator=generator) for length in lengths]


def run(model: CausalLM, batch: ModelInput, num_selected: int | None = None) -> tuple[Tensor, ForwardTrace]:
    """(final hidden states of all rows, trace with fingerprints)."""
    trace = ForwardTrace(record_fingerprints=True)
    return model(batch, PackedKeys(), trace, num_selected=num_selected), trace


def request(
    group_id: str, token_ids: Sequence[int], sampling: SamplingSettings, seeds: Sequence[int] = (1, 2)
) -> GroupRequest:
    """One group on the given prompt."""
    prompt = Prompt(prompt_id=f"p-{group_id}", text="", token_ids=tuple(token_ids))
    return GroupRequest(group_id=group_id, prompt=prompt, sampling=sampling, seeds=tuple(seeds))


def random_prompt(rng: np.random.Generator, vocab_size: int, length: int) -> tuple[int, ...]:
    """Seeded ids of ordinary tokens (the two lowest ids are special)."""
    return tuple(int(token) for token in rng.integers(2, vocab_size, length))


def train_sequences(groups: Iterable[Group], temperature: float) -> list[TrainSequence]:
    """Every segment of every rollout."""
    return [
        TrainSequence(segment=segment, temperature=temperature, name=f"{group.group_id}/{rollout.sample_index}")
        for group in groups
        for rollout in group.rollouts
        for segment in rollout.segments
    ]


def learner_batch(groups: Iterable[Group], temperature: float, config: ModelConfig) -> PackedBatch:
    """All rollouts of the groups in one packed batch."""
    return pack(train_sequences(groups, temperature), config)
