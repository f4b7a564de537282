"""Which experts a token goes to, and its gates: DeepSeek's choice within groups (arXiv:2412.19437 §2.1.2), and without groups.

Axes: N tokens, E experts, X experts chosen, G expert groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRule:
    """How experts are chosen and weighted."""

    num_chosen: int
    """X."""
    num_groups: int = 1
    """G; 1 for no groups."""
    open_groups: int = 1
    """Groups that a token's experts come from."""
    normalised: bool = True
    """Gates are divided by their sum."""
    scale: float = 1.0
    """Factor of the gates."""


def choose_experts(scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule, backend: Backend) -> Tensor:
    """Expert ids `[N, X]` by score + bias within the best groups, best first; ties go to the lower id. Without gradient.

    A group's score is the sum of its two best experts'. Every backend gives the same ids.
    """
    fused = fused_kernels(backend, "choose_experts", scores_NE)
    if fused is not None:
        return fused.choose_experts(scores_NE.detach(), bias_E, rule)[0]
    choice_NE = scores_NE.detach() if bias_E is None else scores_NE.detach() + bias_E
    if rule.num_groups > 1:
        choice_NGE = choice_NE.view(choice_NE.shape[0], rule.num_groups, -1)
        group_scores_NG = choice_NGE.sort(dim=-1, descending=True).values[..., :2].sum(-1)
        kept_NG = group_scores_NG.sort(dim=-1, descending=True, stable=True).indices[:, : rule.open_groups]
        open_NG = torch.zeros_like(group_scores_NG, dtype=torch.bool).scatter_(1, kept_NG, True)
        choice_NE = choice_NGE.masked_fill(~open_NG[..., None], -torch.inf).view_as(choice_NE)
    return choice_NE.sort(dim=-1, descending=True, stable=True).indices[:, : rule.num_chosen]


def gate_weights(scores_NE: Tensor, ids_NX: Tensor, rule: ChoiceRule, backend: Backend = "torch") -> Tensor:
    """Live scores at the given ids, renormalised over them if so ruled, times the scale; carries gradient to the scores.

    A fused backend takes one kernel, with the bits of these operations, and one for the gradient.
    """
    fused = fused_kernels(backend, "gate_weights", scores_NE, ids_NX)
    if fused is not None:
        return fused.gate_weights(scores_NE, ids_NX, rule)
    gates_NX = scores_NE.gather(1, ids_NX)
    if rule.normalised:
        total_N1 = gates_NX[:, :1]
        for slot in range(1, gates_NX.shape[1]):
            total_N1 = total_N1 + gates_NX[:, slot : slot + 1]
        gates_NX = gates_NX / (total_N1 + 1e-20)
    return gates_NX if rule.scale == 1 else gates_NX * rule.scale


def choose_with_gates(
    scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule, backend: Backend
) -> tuple[Tensor, Tensor]:
    """(ids, gates with gradient) of the live choice: the bits of the two functions above; a fused backend takes one kernel for both."""
    fused = fused_kernels(backend, "choose_with_gates", scores_NE)
    if fused is not None:
        return fused.choose_with_gates(scores_NE, bias_E, rule)
    ids_NX = choose_experts(scores_NE, bias_E, rule, backend)
    return ids_NX, gate_weights(scores_NE, ids_NX, rule)
