"""What the selection costs: perplexity over all keys and over the selected ones, and what these hold of attention and change of its output, by layer.

Axes: L layers, A numbers of selected keys, K those of the curves, R rows counted, P ranges of positions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch, pack
from samepath.rl.learner.policy_pass import PolicyPass, reference_kl, run_policy
from samepath.rl.pretraining.needles import NeedleMeasure
from samepath.rl.pretraining.trainer import text_sequence

MOST_RANGES = 8
"""Ranges of positions in which losses are told apart."""
ByLayer = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MassCurve:
    """Share of attention that the best k keys hold, against k; over the rows in the second half of the longest sequence, which are the same at each k."""

    amounts: tuple[int, ...]
    """The k, ascending: powers of two and the amounts that were asked for."""
    recalls: tuple[ByLayer, ...]
    """Of the indexer's best, one entry for each k."""
    best_recalls: tuple[ByLayer, ...]
    """Of the keys that have the most attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLosses:
    """Losses by position: `losses[p]` over the rows from `edges[p]` to `edges[p + 1] − 1`, which see one key more than their number; nats a token."""

    edges: tuple[int, ...]
    dense: tuple[float, ...]
    """Over all keys."""
    sparse: Mapping[int, tuple[float, ...]]
    """Number of selected keys → over those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMeasure:
    """A model on some sequences. What is by layer is the mean over rows with more keys than are selected, and what it is without a loss where there is
    no such row."""

    dense_loss: float
    """Over all keys, nats a token."""
    sparse_losses: Mapping[int, float]
    """Number of selected keys → over those that the indexer selects, nats a token."""
    logits_kls: Mapping[int, float]
    """Number of selected keys → KL(π over all keys ‖ π over the selected), nats a token."""
    recalls: Mapping[int, ByLayer]
    """Number of selected keys → share of attention over all keys that falls on them, mean over heads."""
    best_recalls: Mapping[int, ByLayer]
    """Number of selected keys → the same of the keys that have the most attention: no indexer can select better."""
    output_errors: Mapping[int, ByLayer]
    """Number of selected keys → |output over them − output over all keys| / |output over all keys| of attention, on the input that it has over all keys."""
    curve: MassCurve
    positions: PositionLosses
    needles: NeedleMeasure | None = None
    """None where none were asked for."""

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

    def by_layer(self) -> dict[str, Any]:
        """JSON-able, what a summary has beside the metrics."""
        return {
            "recall_by_layer": self.recalls,
            "recall_best_by_layer": self.best_recalls,
            "output_error_by_layer": self.output_errors,
            "mass_curve": {
                "topk": self.curve.amounts,
                "recall": self.curve.recalls,
                "recall_best": self.curve.best_recalls,
            },
            "loss_by_position": {
                "edges": self.positions.edges,
                "dense": self.positions.dense,
                "sparse": self.positions.sparse,
            },
            **({} if self.needles is None else {"needles": self.needles.plain()}),
        }

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "dense_perplexity": self.dense_perplexity,
            "perplexity": {amount: self.perplexity(amount) for amount in self.sparse_losses},
            "excess": self.excesses,
            "logits_kl": self.logits_kls,
            **self.by_layer(),
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
                f"sparse/logits_kl{name}": self.logits_kls[amount],
                f"sparse/recall{name}": mean(self.recalls[amount]),
                f"sparse/recall_min{name}": min(self.recalls[amount]),
                f"sparse/recall_best{name}": mean(self.best_recalls[amount]),
                f"sparse/recall_best_min{name}": min(self.best_recalls[amount]),
                f"sparse/output_error{name}": mean(self.output_errors[amount]),
                f"sparse/output_error_max{name}": max(self.output_errors[amount]),
            }
        return found | ({} if self.needles is None else self.needles.metrics(topk))


def mean(by_layer: ByLayer) -> float:
    """Over the layers."""
    return sum(by_layer) / len(by_layer)


@torch.no_grad()
def measure_sparse(model: CausalLM, sequences: Sequence[NDArray[np.int64]], amounts: Sequence[int]) -> SparseMeasure:
    """Two passes over all keys and one for each amount, sequence by sequence."""
    sums = _Sums(model, tuple(sorted({*amounts, model.config.index_topk})), max(map(len, sequences)) - 1)
    for ids in sequences:
        sums.add(pack([text_sequence(ids, model)], model.shape))
    return sums.measure()


class _Sums:
    """Sums over the rows of all sequences, of which the longest has `longest`."""

    def __init__(self, model: CausalLM, amounts: tuple[int, ...], longest: int) -> None:
        powers = (2**power for power in range(longest.bit_length()))
        self.model, self.amounts, self.longest = model, amounts, longest
        self.curve = tuple(sorted({*powers, *(amount for amount in amounts if amount < longest), longest}))
        self.every = tuple(sorted({*self.curve, *amounts}))
        ranges = min(MOST_RANGES, longest)
        self.edges = tuple(longest * place // ranges for place in range(ranges + 1))
        num_amounts, num_layers = len(amounts), model.config.num_hidden_layers
        self.losses_AP = torch.zeros(num_amounts + 1, ranges, dtype=torch.float64)
        """The last is over all keys."""
        self.kls_A = torch.zeros(num_amounts, dtype=torch.float64)
        self.targets_P = torch.zeros(ranges, dtype=torch.int64)
        self.by_layer_3LA = torch.zeros(3, num_layers, num_amounts, dtype=torch.float64)
        """Of recall, the best recall, and the output's error."""
        self.rows_A = torch.zeros(num_amounts, dtype=torch.float64)
        self.curves_2LK = torch.zeros(2, num_layers, len(self.curve), dtype=torch.float64)
        self.late = 0

    def add(self, packed: PackedBatch) -> None:
        """Measure one sequence."""
        longest = int(packed.positions_N.max()) + 1
        dense = self._pass(packed, longest)
        self.losses_AP[-1] += self._by_position(packed, dense.logprobs_M.neg())
        self.targets_P += self._by_position(packed, torch.ones_like(dense.logprobs_M)).long()
        for place, amount in enumerate(self.amounts):
            sparse = self._pass(packed, amount)
            self.losses_AP[place] += self._by_position(packed, sparse.logprobs_M.neg())
            self.kls_A[place] += reference_kl(self.model, dense, self.model, sparse, packed).double().sum()
        trace = ForwardTrace(amounts=self.every, compared=self.amounts)
        inputs = ModelInput(token_ids_N=packed.token_ids_N, positions_N=packed.positions_N, plan=packed.plan)
        self.model(inputs, PackedKeys(), trace, num_selected=longest)
        self._add_trace(trace, packed)

    def _add_trace(self, trace: ForwardTrace, packed: PackedBatch) -> None:
        shares_2LRK = torch.stack([torch.stack(trace.captured), torch.stack(trace.best)])
        shares_2LRK = shares_2LRK.cpu().double()[:, :, packed.rows_R]
        errors_LRA = torch.stack(trace.output_errors).cpu().double()[:, packed.rows_R]
        places_A, places_K = ([self.every.index(one) for one in some] for some in (self.amounts, self.curve))
        positions_R = packed.positions_N[packed.rows_R]
        past_RA = (positions_R[:, None] >= torch.tensor(self.amounts)).double()
        measured = torch.cat([shares_2LRK[..., places_A], errors_LRA[None]])
        self.by_layer_3LA += torch.einsum("mlra,ra->mla", measured, past_RA)
        self.rows_A += past_RA.sum(0)
        late_R = positions_R >= self.longest // 2
        self.curves_2LK += shares_2LRK[..., places_K][:, :, late_R].sum(2)
        self.late += int(late_R.sum())

    def _pass(self, packed: PackedBatch, num_selected: int) -> PolicyPass:
        return run_policy(self.model, packed, routes_LNX=None, use_support=False, num_selected=num_selected)

    def _by_position(self, packed: PackedBatch, values_M: Tensor) -> Tensor:
        """`[P]` sums."""
        positions_M = packed.positions_N[packed.rows_M]
        parts = [
            values_M[(positions_M >= low) & (positions_M < high)].double().sum() for low, high in pairwise(self.edges)
        ]
        return torch.stack(parts)

    def measure(self) -> SparseMeasure:
        """Means of what was added."""
        counted = int(self.targets_P.sum())
        # As if nothing were lost where no row has more keys than are selected.
        nothing_lost = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None, None]
        means_3LA = torch.where(self.rows_A > 0, self.by_layer_3LA / self.rows_A.clamp(min=1), nothing_lost)
        recalls, best_recalls, output_errors = (
            {amount: tuple(by_layer) for amount, by_layer in zip(self.amounts, values_LA.T.tolist())}
            for values_LA in means_3LA
        )
        curve, best_curve = (tuple(map(tuple, values_LK.T.tolist())) for values_LK in self.curves_2LK / self.late)
        *sparse, dense = (self.losses_AP.sum(1) / counted).tolist()
        *sparse_P, dense_P = map(tuple, (self.losses_AP / self.targets_P).tolist())
        return SparseMeasure(
            dense_loss=dense,
            sparse_losses=dict(zip(self.amounts, sparse)),
            logits_kls=dict(zip(self.amounts, (self.kls_A / counted).tolist())),
            recalls=recalls,
            best_recalls=best_recalls,
            output_errors=output_errors,
            curve=MassCurve(amounts=self.curve, recalls=curve, best_recalls=best_curve),
            positions=PositionLosses(edges=self.edges, dense=dense_P, sparse=dict(zip(self.amounts, sparse_P))),
        )
