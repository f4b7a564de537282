"""What the inner modules of a foreign model must know of the pass they run in: which keys a row sees, which experts it follows.

It travels in a context variable and never on a module, so passes side by side in threads cannot mix. Under activation
checkpointing every recomputed layer re-enters the pass that it belongs to.

Axes: N rows, X experts chosen, L mixture-of-experts layers.
"""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samepath.kernels.window import AttentionPlan
from samepath.model.trace import ForwardTrace


class PassError(RuntimeError):
    """A foreign model did not run its layers as this package needs; the message says which model and what happened."""


@dataclass(slots=True, kw_only=True)
class PackedPass:
    """One forward pass over packed rows, and the recomputation of its layers during the backward pass."""

    plan: AttentionPlan
    """Which keys each row may see, on the model's device."""
    replay: dict[int, Tensor] = field(default_factory=dict)
    """[N, X] routes to follow by global layer number; rows of −1 are routed live."""
    check_gates: bool = False
    """Compare the gates recomputed at the live ids with the router's own."""
    finished: bool = False
    """True once the forward pass has ended: whatever runs later is recomputation."""
    used: dict[int, Tensor] = field(default_factory=dict)
    """[N, X] ids that were run, by global layer number."""
    live: dict[int, Tensor] = field(default_factory=dict)
    """[N, X] ids of the live router."""
    attended: set[int] = field(default_factory=set)
    """Layers whose attention went through the plan."""
    recomputed: set[int] = field(default_factory=set)
    """Mixture-of-experts layers that were recomputed."""

    def follow(self, layer: int, live_NX: Tensor) -> Tensor:
        """Ids [N, X] that the layer must run. Raises PassError if its rows are asked for twice.

        A recomputed layer gets the ids of its forward pass, whatever its live router says by then.
        """
        if self.finished:
            if layer in self.recomputed or layer not in self.used:
                raise PassError(f"layer {layer} must be recomputed at most once after it ran; it is asked for again")
            self.recomputed.add(layer)
            return self.used[layer]
        if layer in self.used:
            raise PassError(f"each row's routes are consumed once in a pass; layer {layer} asks for them again")
        ids_NX = live_NX
        if layer in self.replay:
            replayed_NX = self.replay[layer]
            if replayed_NX.shape != live_NX.shape:
                raise PassError(
                    f"layer {layer} routes {tuple(live_NX.shape)} [rows, experts chosen]; the replay has {tuple(replayed_NX.shape)}"
                )
            ids_NX = torch.where(replayed_NX[:, :1] >= 0, replayed_NX, live_NX)
        self.used[layer], self.live[layer] = ids_NX, live_NX
        return ids_NX

    def finish(self, trace: ForwardTrace, layers: int, moe_layers: tuple[int, ...]) -> None:
        """Close the forward pass and report it in `trace`, by layer. Raises PassError if a layer went its own way."""
        if self.attended != set(range(layers)):
            raise PassError(
                f"all {layers} layers must attend through transformers' AttentionInterface, so that packed sequences stay apart; only "
                f"{sorted(self.attended)} did. This architecture cannot be trained with implementation: transformers."
            )
        if set(self.used) != set(moe_layers):
            raise PassError(f"the routers of layers {list(moe_layers)} must run once; those of {sorted(self.used)} did")
        self.finished = True
        trace.routes += [self.used[layer].cpu() for layer in moe_layers]
        trace.live_routes += [self.live[layer].cpu() for layer in moe_layers]


_current: ContextVar[PackedPass | None] = ContextVar("packed_pass", default=None)


def current_pass() -> PackedPass | None:
    """The pass that this thread is in, or None outside of one."""
    return _current.get()


class in_pass:  # noqa: N801 (reads as the statement it is)
    """Make `state` the pass of this thread for the time of a `with` block; may be entered again after it was left."""

    def __init__(self, state: PackedPass | None) -> None:
        self._state = state
        self._tokens: list[Token[PackedPass | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_current.set(self._state))

    def __exit__(self, *raised: object) -> None:
        _current.reset(self._tokens.pop())


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch's activation checkpointing: the recomputation re-enters the pass of the forward."""
    return nullcontext(), in_pass(current_pass())
