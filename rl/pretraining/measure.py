"""What the selection costs: perplexity over all keys and over the selected ones, and the share of attention that these hold, layer by layer.

Axes: L layers, A numbers of selected keys, N rows, R rows counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import pack
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.pretraining.trainer import text_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMeasure:
    """A model on some sequences."""

    dense_loss: float
    """Over all keys, nats a token."""
    sparse_losses: Mapping[int, float]
    """Number of selected keys → over those that the indexer selects, nats a token."""
    recalls: Mapping[int, tuple[float, ...]]
    """Number of selected keys → share of attention over all keys that falls on them, mean over heads and rows, one a layer; the rows are those
    with more keys than that, 1 where there is none."""

    @property
    def dense_perplexity(self) -> float:
        """exp of the loss over all keys."""
        return math.exp(self.dense_loss)

    @property
    def excesses(self) -> dict[int, float]:
        """Number of selected keys → by what share the perplexity is above that over all keys."""
        return {amount: math.exp(loss - self.dense_loss) - 1 for amount, loss in self.sparse_losses.items()}

    def perplexity(self, amount: int) -> float:
        """exp of the loss over `amount` selected keys."""
        return math.exp(self.sparse_losses[amount])

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "dense_perplexity": self.dense_perplexity,
            "perplexity": {amount: self.perplexity(amount) for amount in self.sparse_losses},
            "excess": self.excesses,
            "recall_by_layer": self.recalls,
        }

    def metrics(self, topk: int) -> dict[str, float]:
        """`sparse/…` for tracking; those of the model's own `topk` without a number."""
        found = {"sparse/dense_loss": self.dense_loss, "sparse/dense_perplexity": self.dense_perplexity}
        for amount, loss in self.sparse_losses.items():
            name = "" if amount == topk else f"_top{amount}"
            found |= {
                f"sparse/loss{name}": loss,
                f"sparse/perplexity{name}": self.perplexity(amount),
                f"sparse/excess{name}": self.excesses[amount],
                f"sparse/recall{name}": sum(self.recalls[amount]) / len(self.recalls[amount]),
                f"sparse/recall_min{name}": min(self.recalls[amount]),
            }
        return found


@torch.no_grad()
def measure_sparse(model: CausalLM, sequences: Sequence[NDArray[np.int64]], amounts: Sequence[int]) -> SparseMeasure:
    """One pass over all keys and one for each amount, sequence by sequence."""
    amounts = tuple(sorted({*amounts, model.config.index_topk}))
    dense, sparse, counted = 0.0, dict.fromkeys(amounts, 0.0), 0
    shares_AL = torch.zeros(len(amounts), model.config.num_hidden_layers, dtype=torch.float64)
    rows_A = torch.zeros(len(amounts), dtype=torch.float64)
    for ids in sequences:
        packed = pack([text_sequence(ids, model)], model.shape)
        longest, rows_R = int(packed.positions_N.max()) + 1, packed.rows_R
        counted += len(rows_R)

        def total(num_selected: int, packed=packed) -> float:  # type: ignore[no-untyped-def]
            result = run_policy(model, packed, routes_LNX=None, use_support=False, num_selected=num_selected)
            return -float(result.logprobs_M.double().sum())

        dense += total(longest)
        for amount in amounts:
            sparse[amount] += total(amount)
        trace = ForwardTrace(amounts=amounts)
        inputs = ModelInput(token_ids_N=packed.token_ids_N, positions_N=packed.positions_N, plan=packed.plan)
        model(inputs, PackedKeys(), trace, num_selected=longest)
        shares_LRA = torch.stack(trace.captured).cpu().double()[:, rows_R]
        for place, amount in enumerate(amounts):
            past_R = packed.positions_N[rows_R] >= amount
            shares_AL[place] += shares_LRA[:, past_R, place].sum(1)
            rows_A[place] += past_R.sum()
    recalls_AL = torch.where(rows_A[:, None] > 0, shares_AL / rows_A.clamp(min=1)[:, None], 1.0)
    return SparseMeasure(
        dense_loss=dense / counted,
        sparse_losses={amount: value / counted for amount, value in sparse.items()},
        recalls={amount: tuple(recalls_AL[place].tolist()) for place, amount in enumerate(amounts)},
    )
