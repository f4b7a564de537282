"""Supervised cold start on traces generated from the task: language-model loss, the indexer's own loss, router balancing.

Axes: N rows, M response tokens, E experts, L mixture-of-experts layers.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from samepath.model.network import CausalLM
from samepath.model.tokenizer import Tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rl.algorithm import OptimizerSettings
from samepath.rl.batch import TrainSequence, pack
from samepath.rl.policy_pass import run_policy
from samepath.rl.task_row import Task
from samepath.rl.traces import TraceFunction, resolve_traces
from samepath.rollout.types import MISSING_ROUTE, Segment


class ColdStartSettings(BaseModel):
    """Supervised training before RL; `steps: 0` starts from the model as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(0, ge=0, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="sequences of a step")
    traces: str = Field(
        "samepath.rl.traces:arithmetic_sum",
        pattern=r"^[\w.]+:\w+$",
        description="function that writes a response for a task row",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")
    dense_warmup_steps: int = Field(
        0, ge=0, description="first steps with dense attention while the indexer learns to imitate it"
    )
    bias_update_rate: float = Field(
        0.001, ge=0, description="step of the selection bias towards an even expert load (arXiv:2408.15664); 0 = off"
    )
    optimizer: OptimizerSettings = Field(default_factory=lambda: OptimizerSettings(), description="its own optimiser")


class ColdStart:
    """Draws traces deterministically by step and trains on them."""

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, task: Task, settings: ColdStartSettings, seed: int
    ) -> None:
        self.model, self.tokenizer, self.task, self.settings, self.seed = model, tokenizer, task, settings, seed
        self._traces: TraceFunction = resolve_traces(settings.traces, settings.options)
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.optimizer.lr,
            betas=(settings.optimizer.beta1, settings.optimizer.beta2),
            eps=settings.optimizer.epsilon,
            weight_decay=settings.optimizer.weight_decay,
        )

    def batch(self, step: int) -> tuple[TrainSequence, ...]:
        """The sequences of one step: a function of seed and step alone."""
        rng = random.Random(f"{self.seed}/{step}")
        sequences = []
        for _ in range(self.settings.batch_size):
            row = self.task.train[rng.randrange(len(self.task.train))]
            response = self._traces(row, rng, **self.settings.options)
            prompt_ids = self.tokenizer.encode(row.text)
            response_ids = self.tokenizer.encode_continuation(response)
            sequences.append(supervised_sequence(prompt_ids, (*response_ids, self.tokenizer.end_id), self.model))
        return tuple(sequences)

    def step(self, step: int) -> Mapping[str, float]:
        """One optimiser step; returns losses in nats per token and the gradient norm."""
        settings = self.settings
        packed = pack(self.batch(step), self.model.config)
        longest = int(packed.positions_N.max()) + 1
        dense = step < settings.dense_warmup_steps
        # Selecting as many keys as the longest sequence has is dense attention; the indexer is taught over all of them.
        result = run_policy(
            self.model,
            packed,
            routes_LNX=None,
            use_support=False,
            train_indexer=True,
            num_selected=longest if dense else None,
        )
        loss = -result.logprobs_M.mean()
        indexer_loss = torch.stack(result.trace.indexer_losses)[:, : packed.num_rows].mean()
        (loss + indexer_loss).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), settings.optimizer.max_grad_norm, error_if_nonfinite=True
        )
        self._set_rate(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        load = self._balance(result.trace, packed.num_rows)
        return {
            "cold_start/loss": float(loss.detach()),
            "cold_start/indexer_kl": float(indexer_loss.detach()),
            "cold_start/grad_norm": float(norm),
            "cold_start/expert_load_max": load,
            "cold_start/entropy": float(result.entropy_M.mean()),
        }

    def _set_rate(self, step: int) -> None:
        """Linear warm-up, then a cosine to a tenth, so that the checkpoint RL starts from is settled."""
        settings = self.settings
        rise = min(1.0, (step + 1) / max(settings.optimizer.warmup_updates, 1))
        fall = 0.1 + 0.45 * (1 + np.cos(np.pi * step / settings.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * rise * fall

    @torch.no_grad()
    def _balance(self, trace: ForwardTrace, num_rows: int) -> float:
        """Move each layer's selection bias by a fixed step towards an even load; returns the largest load over the mean."""
        worst = 0.0
        experts = self.model.config.n_routed_experts
        for layer, routes_NX in zip(self.model.config.moe_layers, trace.routes):
            counts_E = torch.bincount(routes_NX[:num_rows].flatten(), minlength=experts).float()
            worst = max(worst, float(counts_E.max() / counts_E.mean()))
            bias_E = self.model.selection_bias(layer)
            bias_E += self.settings.bias_update_rate * torch.sign(counts_E.mean() - counts_E)
        return worst


def supervised_sequence(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], model: CausalLM) -> TrainSequence:
    """A sequence nobody sampled: no routes, no supports, every response token a target."""
    total = len(prompt_ids) + len(response_ids)
    if total > model.config.max_position_embeddings:
        raise ValueError(
            f"prompt and trace must fit max_position_embeddings={model.config.max_position_embeddings}; got {total} tokens"
        )
    trained = np.arange(total) >= len(prompt_ids)
    segment = Segment(
        token_ids=np.array([*prompt_ids, *response_ids], np.int32),
        trained=trained,
        sampler_logprobs=np.zeros(total, np.float32),
        routes=np.full(
            (total, len(model.config.moe_layers), model.config.num_experts_per_tok), MISSING_ROUTE, np.int16
        ),
        support=None,
        selection_fingerprint=np.zeros((total, model.config.num_hidden_layers), np.uint64),
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason="stop",
    )
    return TrainSequence(segment=segment, temperature=1.0, name="cold start")
