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
from samepath.rl.learner.master_weights import MasterWeights
from samepath.rl.learner.pass_pool import PassPool, add_gradients, gradients_of
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_answers import AnswerWriter, resolve_answer_writer
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.tasks.row import Task
from samepath.rollout.types import MISSING_ROUTE, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one part of a step gave."""

    gradients: list[Tensor | None]
    loss: float
    indexer_kl: float
    entropy: float
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
        self._weights = MasterWeights(list(model.parameters()))
        self._optimizer = torch.optim.AdamW(
            self._weights.masters,
            lr=settings.optimizer.lr,
            betas=(settings.optimizer.beta1, settings.optimizer.beta2),
            eps=settings.optimizer.epsilon,
            weight_decay=settings.optimizer.weight_decay,
            fused=True,
        )

    def batch(self, step: int) -> tuple[TrainSequence, ...]:
        """The sequences of one step: a function of seed and step alone."""
        rng = random.Random(f"{self.seed}/{step}")
        settings = self.settings
        late = step >= settings.steps - settings.late_steps
        options = {**settings.options, **settings.late_options} if late else settings.options
        sequences = []
        for _ in range(self.settings.batch_size):
            row = self.task.train[rng.randrange(len(self.task.train))]
            response = self._write_answer(row, rng, **options)
            prompt_ids = row.encode(self.tokenizer)
            response_ids = self.tokenizer.encode_continuation(response)
            sequences.append(supervised_sequence(prompt_ids, (*response_ids, self.tokenizer.end_id), self.model))
        return tuple(sequences)

    def step(self, step: int) -> Mapping[str, float]:
        """One optimiser step; returns losses in nats per token and the gradient norm."""
        settings = self.settings
        sequences = self.batch(step)
        total = sum(entry.segment.num_trained for entry in sequences)
        parts = split_by_tokens(sequences, max_tokens=1 << 30, at_least=self._pool.threads)
        dense = step < settings.dense_warmup_steps
        parameters, masters = self._weights.parameters, self._weights.masters
        passes = self._pool.map(
            lambda part: self._pass([sequences[index] for index in part], total, dense, parameters), parts
        )
        for done in passes:
            add_gradients(masters, done.gradients)
        norm = torch.nn.utils.clip_grad_norm_(masters, settings.optimizer.max_grad_norm, error_if_nonfinite=True)
        self._set_rate(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._weights.publish()
        return {
            "cold_start/loss": sum(done.loss for done in passes),
            "cold_start/indexer_kl": sum(done.indexer_kl for done in passes) / len(passes),
            "cold_start/grad_norm": float(norm),
            "cold_start/expert_load_max": self._balance(passes),
            "cold_start/entropy": sum(done.entropy for done in passes) / len(passes),
        }

    def _pass(
        self, sequences: list[TrainSequence], total: int, dense: bool, parameters: list[torch.nn.Parameter]
    ) -> _Pass:
        """Losses and gradients of some of the step's sequences; `total` is the whole step's number of response tokens."""
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
        indexer_kl = result.trace.mean_indexer_loss(packed.rows_R)
        share = len(result.logprobs_M) / total
        gradients = gradients_of(loss + share * indexer_kl, parameters)
        experts = self.model.shape.n_routed_experts
        counts = [
            torch.bincount(routes_NX[packed.rows_R].flatten(), minlength=experts) for routes_NX in result.trace.routes
        ]
        return _Pass(
            gradients=gradients,
            loss=float(loss.detach()),
            indexer_kl=float(indexer_kl.detach()),
            entropy=float(result.entropy_M.mean()),
            counts=counts,
        )

    def _set_rate(self, step: int) -> None:
        """Linear warm-up, then a cosine to a tenth, so that the checkpoint RL starts from is settled."""
        settings = self.settings
        rise = min(1.0, (step + 1) / max(settings.optimizer.warmup_updates, 1))
        fall = 0.1 + 0.45 * (1 + np.cos(np.pi * step / settings.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * rise * fall

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
