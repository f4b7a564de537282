"""One optimiser step on text: the indexer alone against attention over all keys (warm-up), or everything with the selection in force.

The indexer's inputs are detached, so its loss moves its own parameters alone and the next token's all others; gradients of the two are clipped
by a norm of each (`Optimizer`), and neither loss can change the other's step (arXiv:2512.02556 §2.1.1). Axes: N rows, M target tokens.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.collectives import measured
from samepath.model.config import ModelConfig
from samepath.model.network.network import CausalLM
from samepath.rl.batch.cut import Part, cut
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.diagnostics.memory import resident_gib
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.pass_runner import WholeRunner
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.worked_batches import supervised_sequence
from samepath.rl.recipe.text import StageSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one pass adds to the step's losses."""

    loss: float
    indexer_kl: float


class TextTrainer:
    """Trains a model with an indexer; `optimizer` has what a checkpoint needs."""

    def __init__(self, model: CausalLM, stage: StageSettings, ranks: Ranks = ALONE, min_passes: int = 1) -> None:
        """Freeze what the stage does not train. Of several ranks each holds one, all take part in `step`, and each runs a share of its passes."""
        self.model, self._stage, self._min_passes = model, stage, min_passes
        model.activation_checkpointing = stage.activation_checkpointing
        of_indexer = {id(parameter) for parameter in model.indexer_parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(stage.kind == "sparse" or id(parameter) in of_indexer)
        self.optimizer = Optimizer(
            model, stage.optimizer, total_updates=stage.steps, indexer_lr_scale=stage.indexer_lr_scale
        )
        self._runner = WholeRunner.of(ranks, model)

    def step(self, sequences: Sequence[NDArray[np.int64]]) -> Mapping[str, float]:
        """Train on sequences of token ids; losses are nats a token, the indexer's nats a row and layer. Raises LearnerLostError."""
        started = time.perf_counter()
        batch = [text_sequence(ids, self.model) for ids in sequences]
        parts = cut(batch, self._stage.max_tokens_per_pass, self._min_passes, multiple_of=self._runner.ranks.size)
        num_rows = sum(len(ids) - 1 for ids in sequences)

        def run(place: int) -> tuple[_Pass, Tensor]:
            return self._pass(batch, parts[place], num_rows)

        ranks = self._runner.ranks
        with measured() as collectives:
            passes = self._runner.train(self._runner.owners([part.num_rows for part in parts]), run, self.optimizer)
            norms = self.optimizer.step()
            ranks.require_equal(f"weights after update {self.optimizer.updates}", self.optimizer.parameters)
        seconds = time.perf_counter() - started
        return {
            "text/loss": sum(one.loss for one in passes),
            "text/indexer_kl": sum(one.indexer_kl for one in passes),
            **({"text/grad_norm": norms.policy} if self._stage.kind == "sparse" else {}),
            "text/indexer_grad_norm": norms.indexer or 0.0,
            "text/lr": norms.lr,
            "text/tokens_per_s": num_rows / max(seconds, 1e-9),
            "time/step_s": seconds,
            "memory/learner_gib": resident_gib(),
            **ranks.collective_metrics("text", collectives),
        }

    def _pass(self, batch: Sequence[TrainSequence], part: Part, num_rows: int) -> tuple[_Pass, Tensor]:
        packed = pack([batch[index] for index in part.indices], self.model.shape, placed=part.placed)
        longest = int(packed.positions_N.max()) + 1
        result = run_policy(
            self.model,
            packed,
            routes_LNX=None,
            use_support=False,
            train_indexer=True,
            # As many keys as the longest sequence has: attention over all of them.
            num_selected=longest if self._stage.kind == "warmup" else None,
        )
        loss = -result.logprobs_M.sum() / num_rows
        indexer_kl = result.trace.indexer_loss(packed.rows_R, num_rows)
        done = _Pass(loss=float(loss.detach()), indexer_kl=float(indexer_kl.detach()))
        return done, loss + indexer_kl if self._stage.kind == "sparse" else indexer_kl


def text_sequence(ids: NDArray[np.int64], model: CausalLM) -> TrainSequence:
    """A sequence of which every token but the first is a target."""
    return supervised_sequence(ids[:1].tolist(), ids[1:].tolist(), model.shape)


def check_stage(config: ModelConfig, stage: StageSettings, length: int) -> None:
    """Raise ValueError for a model that the stage cannot train."""
    if not config.index_topk:
        raise ValueError(
            f"stage.kind {stage.kind} trains an indexer, and model_type {config.model_type} here has none. Add one: samepath convert … --indexer"
        )
    if length > config.max_position_embeddings:
        raise ValueError(
            f"text.length={length} must be at most the model's max_position_embeddings={config.max_position_embeddings}"
        )
    for needles in stage.needles.lengths:
        if not config.index_topk < needles <= config.max_position_embeddings:
            raise ValueError(
                f"stage.needles.lengths must be above the model's index_topk={config.index_topk}, which sees every key below, and at most its "
                f"max_position_embeddings={config.max_position_embeddings}; got {needles}"
            )
    if length <= config.index_topk:
        raise ValueError(
            f"text.length={length} must be above the model's index_topk={config.index_topk}: otherwise every key is selected, and no stage is needed"
        )
