"""Keep Routing in foreign models: hooks on their routers, bound to global layer numbers (arXiv:2512.02556 §3.1).

A hook lets the router run, then hands the layer the experts of the current pass with gates recomputed from the live scores.
Axes: N rows, E experts, X experts chosen.
"""

import re
from functools import partial
from typing import Any

import torch
from torch import nn

from samepath.model.transformers.packed_pass import PassError, current_pass
from samepath.model.transformers.router_gates import ROUTER_GATES, Gates


def layer_of(name: str) -> int | None:
    """Global layer number in the name of a module or tensor; None if it belongs to no layer."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def find_routers(model: nn.Module) -> dict[int, nn.Module]:
    """The known routers of a model by global layer number, ascending; empty for a dense model or unknown routers."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ROUTER_GATES:
            layer = layer_of(name)
            if layer is None:
                raise ValueError(f"a router's name must hold its layer's number (layers.N.); got {name}")
            found[layer] = module
    return dict(sorted(found.items()))


def require_known_routers(model: nn.Module) -> None:
    """Raise ValueError if the model has experts whose routers cannot be replayed."""
    experts = any(re.search(r"Experts|TopK?Router|TopkRouter", type(module).__name__) for module in model.modules())
    if experts and not find_routers(model):
        raise ValueError(
            f"rl.keep_routing can follow the routers {', '.join(sorted(ROUTER_GATES))}; {type(model).__name__} has another. "
            "Set rl.keep_routing=off to route live."
        )


def install_replay(routers: dict[int, nn.Module]) -> None:
    """Let every router follow the pass it runs in; outside of a pass it routes as before."""
    for layer, router in routers.items():
        router.register_forward_hook(partial(_follow, layer, ROUTER_GATES[type(router).__name__]))


def _follow(layer: int, gates: Gates, router: nn.Module, args: Any, output: Any) -> Any:
    state = current_pass()
    if state is None:
        return output
    logits_NE, live_gates_NX, live_NX = output
    ids_NX = state.follow(layer, live_NX)
    # Also without replay: forward and recomputation must build the same graph.
    gates_NX = gates(router, logits_NE, ids_NX)
    if state.check_gates and not torch.allclose(gates_NX, live_gates_NX, rtol=1e-4, atol=1e-5):
        raise PassError(
            f"{type(router).__name__} of this transformers version no longer gives the gates that samepath.model.transformers.router_replay recomputes"
        )
    return logits_NE, gates_NX, ids_NX
