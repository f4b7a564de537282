"""A surrogate of the user's own: a function at an import path, tried on a few rows before any work.

Axes: B rollouts, M trained tokens of a packed batch.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import importance_ratio
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rollout.import_path import ImportPathError, imported

SIGNATURE = "(logprobs_M, inputs, clip_low, clip_high, **surrogate_options)"

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a function is likely to fail with; anything else passes through."""


class SurrogateError(ImportPathError):
    """An import path that names no usable surrogate, or a surrogate that failed; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSurrogate:
    """A function that was tried."""

    path: str
    """Where it stands, `module:function`."""
    function: Callable[..., object]
    """Of `SIGNATURE`; gives [M]."""
    options: Mapping[str, Any]
    """`rl.objective.surrogate_options`."""
    by_token: bool = False
    """Whether a row's value stays what it is when the other rows of its rollout stand in another pass."""

    def value(self, logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
        """[M] with gradient, to be maximised: in place of min(r·A, clip(r)·A). Raises SurrogateError for anything else."""
        what = f"rl.objective.surrogate {self.path}"
        try:
            value = self.function(logprobs_M, inputs, clip_low, clip_high, **self.options)
        except FAILURES as error:
            raise SurrogateError(f"{what} raised {type(error).__name__}: {error}") from error
        if not isinstance(value, Tensor):
            raise SurrogateError(
                f"{what} must return a tensor, a term for each token to be maximised; got {type(value).__name__}"
            )
        if value.shape != logprobs_M.shape or not value.is_floating_point():
            raise SurrogateError(
                f"{what} must return a floating-point tensor of the shape [M] of logprobs_M, {tuple(logprobs_M.shape)}; got "
                f"{value.dtype} of {tuple(value.shape)}"
            )
        return value

    def ratio(self, logprobs_M: Tensor, inputs: LossInputs) -> Tensor:
        """[M] π/π_old of each token, for diagnostics, without gradient."""
        return importance_ratio(logprobs_M, inputs.old_logprobs_M).detach()


@cache
def _own(function: Callable[..., object], path: str, options: str, clip_low: float, clip_high: float) -> OwnSurrogate:
    chosen = OwnSurrogate(path=path, function=function, options=json.loads(options))
    try:
        inspect.signature(chosen.function).bind(None, None, clip_low, clip_high, **chosen.options)
    except TypeError as error:
        raise SurrogateError(
            f"rl.objective.surrogate {path} must take {SIGNATURE}; its signature is {inspect.signature(chosen.function)}: {error}"
        ) from error
    return replace(chosen, by_token=_tried(chosen, clip_low, clip_high))


def own_surrogate(path: str, options: Mapping[str, Any], clip_low: float, clip_high: float) -> OwnSurrogate:
    """The function at an import path, imported and tried once.

    Raises ImportPathError, or SurrogateError for what the function does. What the module raises on import passes through.
    """
    # By the function itself: a notebook may have defined it anew.
    return _own(
        imported(path, "rl.objective.surrogate"), path, json.dumps(options, sort_keys=True), clip_low, clip_high
    )


def _tried(chosen: OwnSurrogate, clip_low: float, clip_high: float) -> bool:
    """Run it on two rollouts, of three tokens and of two; returns whether each row's value stays the same where a rollout is cut."""
    what = f"rl.objective.surrogate {chosen.path}"

    def values(rows: slice) -> tuple[Tensor, Tensor]:
        logprobs_M = _LOGPROBS[rows].clone().requires_grad_()
        return chosen.value(logprobs_M, _rows(rows), clip_low, clip_high), logprobs_M

    whole_M, logprobs_M = values(slice(0, 5))
    if not whole_M.requires_grad:
        raise SurrogateError(f"{what} gives a value without gradient: it must be computed from logprobs_M, undetached")
    (gradient_M,) = torch.autograd.grad(whole_M.sum(), logprobs_M)
    for name, numbers_M in (("value", whole_M.detach()), ("gradient", gradient_M)):
        if not bool(numbers_M.isfinite().all()):
            raise SurrogateError(
                f"{what} gives a {name} that is no finite number on log-probabilities around −1: {numbers_M.tolist()}"
            )
    if not torch.equal(values(slice(0, 5))[0], whole_M):
        raise SurrogateError(
            f"{what} gives other values for the same numbers when it is called again; a run could not be resumed"
        )
    cut_M = torch.cat([values(rows)[0] for rows in (slice(0, 2), slice(2, 5))])
    return bool(torch.allclose(cut_M, whole_M, rtol=1e-6, atol=1e-9))


_LOGPROBS = torch.tensor([-0.9, -1.4, -0.3, -2.0, -0.7])
_OLD = torch.tensor([-1.0, -1.2, -0.8, -1.1, -0.9])
_ROLLOUTS = torch.tensor([0, 0, 0, 1, 1])


def _rows(rows: slice) -> LossInputs:
    old_M, rollout_M = _OLD[rows], _ROLLOUTS[rows]
    return LossInputs(
        sampler_logprobs_M=old_M,
        old_logprobs_M=old_M,
        reference_logprobs_M=old_M - 0.1,
        advantages_B=torch.tensor([0.5, -0.5]),
        beta_B=torch.zeros(2),
        rollout_M=rollout_M,
        unit_M=rollout_M,
        rollout_J=torch.arange(2),
        in_loss_M=torch.ones_like(rollout_M, dtype=torch.bool),
        weights_M=torch.full(old_M.shape, 0.2),
    )
