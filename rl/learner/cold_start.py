"""Supervised cold start on worked answers, made from the task's rows: language-model loss, the indexer's own loss, router balancing.

Axes: N rows, M response tokens, E experts, L mixture-of-experts layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.cut import Part, cut
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.pass_runner import BY_ITSELF, PassRunner
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.learner import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one part of a step gave."""

    loss: float
    """Its part of the step's loss, nats per token of the step."""
    indexer_kl: float
    """Its part of the step's indexer loss, nats per row of the step."""
    entropy: float
    """Sum over its tokens, nats."""
    counts: list[Tensor]


class ColdStart:
    """Trains on worked answers, drawn by step."""

    def __init__(
        self,
        model: Policy,
        worked: WorkedBatches,
        settings: ColdStartSettings,
        learner: LearnerSettings,
        runner: PassRunner = BY_ITSELF,
    ) -> None:
        self.model, self.worked, self.settings = model, worked, settings
        self._learner, self._runner = learner, runner
        self._optimizer = Optimizer(model, settings.optimizer, total_updates=settings.steps)

    def step(self, step: int) -> Mapping[str, float]:
        """One optimiser step; returns losses in nats per token (the indexer's per row) and gradient norms."""
        sequences = self.worked.batch(step, self.model.shape)
        learner = self._learner
        parts = cut(sequences, learner.max_tokens_per_pass, learner.min_passes, multiple_of=self._runner.ranks.size)
        dense = step < self.settings.dense_warmup_steps
        total = sum(entry.segment.num_trained for entry in sequences)
        num_rows = sum(len(entry.segment.token_ids) - 1 for entry in sequences)
        owners = self._runner.owners([part.num_rows for part in parts])

        def run(place: int) -> tuple[_Pass, Tensor]:
            return self._pass(sequences, parts[place], total, num_rows, dense)

        passes = self._runner.train(owners, run, self._optimizer)
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

    def _pass(
        self, sequences: Sequence[TrainSequence], part: Part, total: int, num_rows: int, dense: bool
    ) -> tuple[_Pass, Tensor]:
        """Losses of a part of the step's sequences; the whole step has `total` response tokens and `num_rows` rows."""
        packed = pack([sequences[index] for index in part.indices], self.model.shape, placed=part.placed)
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
        experts = self.model.shape.n_routed_experts
        counts = [
            torch.bincount(routes_NX[packed.rows_R].flatten(), minlength=experts) for routes_NX in result.trace.routes
        ]
        done = _Pass(
            loss=float(loss.detach()),
            indexer_kl=float(indexer_kl.detach()),
            entropy=float(result.head.entropy_M.sum()),
            counts=counts,
        )
        return done, loss + indexer_kl

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
