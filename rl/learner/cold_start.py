"""Supervised cold start on worked answers, made from the task's rows: language-model loss, the indexer's own loss, router balancing.

Axes: N rows, M response tokens, E experts, L mixture-of-experts layers.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import TrainSequence, pack, split_by_tokens
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.pass_pool import PassPool, gradients_of
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_answers import AnswerWriter, resolve_answer_writer
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.tasks.row import Task
from samepath.rollout.types import MISSING_ROUTE, Segment

MAX_UNUSABLE = 100
"""Draws in a row of rows that cannot be encoded, answered or fitted into the model before the cold start gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one part of a step gave."""

    gradients: list[Tensor | None]
    loss: float
    """Its part of the step's loss, nats per token of the step."""
    indexer_kl: float
    """Its part of the step's indexer loss, nats per row of the step."""
    entropy: float
    """Sum over its tokens, nats."""
    counts: list[Tensor]


class ColdStart:
    """Draws worked answers deterministically by step and trains on them."""

    def __init__(
        self, model: Policy, tokenizer: Tokenizer, task: Task, settings: ColdStartSettings, seed: int, pool: PassPool
    ) -> None:
        self.model, self.tokenizer, self.task, self.settings, self.seed = model, tokenizer, task, settings, seed
        self._pool = pool
        self._write_answer: AnswerWriter = resolve_answer_writer(
            settings.traces, {**settings.options, **settings.late_options}
        )
        self._optimizer = Optimizer(model, settings.optimizer, total_updates=settings.steps)

    def batch(self, step: int) -> tuple[TrainSequence, ...]:
        """The sequences of one step: a function of seed and step alone. A row that cannot be used is passed over for the next draw.

        Raises ValueError, with the reason of the last, if more than MAX_UNUSABLE draws in a row give none.
        """
        rng = random.Random(f"{self.seed}/{step}")
        settings = self.settings
        late = step >= settings.steps - settings.late_steps
        options = {**settings.options, **settings.late_options} if late else settings.options
        sequences: list[TrainSequence] = []
        unusable = 0
        while len(sequences) < self.settings.batch_size:
            try:
                row = self.task.train[rng.randrange(len(self.task.train))]
                response = self._write_answer(row, rng, **options)
                prompt_ids = row.encode(self.tokenizer)
                response_ids = self.tokenizer.encode_continuation(response)
                sequences.append(supervised_sequence(prompt_ids, (*response_ids, self.tokenizer.end_id), self.model))
            except ValueError as error:
                unusable += 1
                if unusable > MAX_UNUSABLE:
                    raise ValueError(
                        f"{unusable} draws one after the other gave no row for the cold start: {error}"
                    ) from error
            else:
                unusable = 0
        return tuple(sequences)

    def step(self, step: int) -> Mapping[str, float]:
        """One optimiser step; returns losses in nats per token (the indexer's per row) and gradient norms."""
        sequences = self.batch(step)
        parts = split_by_tokens(sequences, max_tokens=1 << 30, at_least=self._pool.threads)
        dense = step < self.settings.dense_warmup_steps
        total = sum(entry.segment.num_trained for entry in sequences)
        num_rows = sum(len(entry.segment.token_ids) - 1 for entry in sequences)
        passes = self._pool.map(
            lambda part: self._pass([sequences[index] for index in part], total, num_rows, dense), parts
        )
        for done in passes:
            self._optimizer.add(done.gradients)
        norms = self._optimizer.step()
        metrics = {
            "cold_start/loss": sum(done.loss for done in passes),
            "cold_start/indexer_kl": sum(done.indexer_kl for done in passes),
            "cold_start/grad_norm": norms.policy,
            "cold_start/lr": norms.lr,
            "cold_start/expert_load_max": self._balance(passes),
            "cold_start/entropy": sum(done.entropy for done in passes) / total,
        }
        return metrics if norms.indexer is None else {**metrics, "cold_start/indexer_grad_norm": norms.indexer}

    def _pass(self, sequences: list[TrainSequence], total: int, num_rows: int, dense: bool) -> _Pass:
        """Losses and gradients of some of the step's sequences; the whole step has `total` response tokens and `num_rows` rows."""
        packed = pack(sequences, self.model.shape)
        longest = int(packed.positions_N.max()) + 1
        # Selecting as many keys as the longest sequence has is dense attention; the indexer is taught over all of them.
        result = run_policy(
            self.model,
            packed,
            routes_LNX=None,
            use_support=False,
            train_indexer=True,
            num_selected=longest if dense else None,
        )
        loss = -result.logprobs_M.sum() / total
        indexer_kl = result.trace.indexer_loss(packed.rows_R, num_rows)
        gradients = gradients_of(loss + indexer_kl, self._optimizer.parameters)
        experts = self.model.shape.n_routed_experts
        counts = [
            torch.bincount(routes_NX[packed.rows_R].flatten(), minlength=experts) for routes_NX in result.trace.routes
        ]
        return _Pass(
            gradients=gradients,
            loss=float(loss.detach()),
            indexer_kl=float(indexer_kl.detach()),
            entropy=float(result.head.entropy_M.sum()),
            counts=counts,
        )

    @torch.no_grad()
    def _balance(self, passes: list[_Pass]) -> float:
        """Move each layer's selection bias by a fixed step towards an even load; returns the largest load over the mean."""
        worst = 0.0
        for place, layer in enumerate(self.model.shape.moe_layers):
            counts_E = torch.stack([done.counts[place] for done in passes]).sum(0).float()
            worst = max(worst, float(counts_E.max() / counts_E.mean()))
            bias_E = self.model.selection_bias(layer)
            if bias_E is not None:
                bias_E += self.settings.bias_update_rate * torch.sign(counts_E.mean() - counts_E).to(bias_E.device)
        return worst


def supervised_sequence(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], model: Policy) -> TrainSequence:
    """A sequence nobody sampled: no routes, no supports, every response token a target."""
    total = len(prompt_ids) + len(response_ids)
    if total > model.shape.max_position_embeddings:
        raise ValueError(
            f"prompt and worked answer must fit max_position_embeddings={model.shape.max_position_embeddings}; got {total} tokens"
        )
    trained = np.arange(total) >= len(prompt_ids)
    segment = Segment(
        token_ids=np.array([*prompt_ids, *response_ids], np.int32),
        trained=trained,
        sampler_logprobs=np.zeros(total, np.float32),
        routes=np.full((total, len(model.shape.moe_layers), model.shape.num_experts_per_tok), MISSING_ROUTE, np.int16),
        support=None,
        selection_fingerprint=np.zeros((total, len(model.shape.sparse_layers)), np.uint64),
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason="stop",
    )
    return TrainSequence(segment=segment, temperature=1.0, name="cold start")
