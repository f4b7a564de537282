"""Keep Routing in foreign models: the replayed experts run, gates stay live, every row is consumed once, recomputed or not."""

import re
from collections import Counter

import pytest
import torch
from torch import Tensor

from samepath.model.key_store import PackedKeys
from samepath.model.trace import ForwardTrace
from samepath.model.transformers.packed_pass import PackedPass, PassError
from samepath.model.transformers.policy import TransformersPolicy
from samepath.model.transformers.router_gates import ROUTER_GATES
from samepath.model.transformers.router_replay import find_routers
from tests.model.transformers.test_policy import packed, run, sequences
from tests.tiny_transformers import MIXTURES, tiny_transformers


def random_routes(policy: TransformersPolicy, num_rows: int, seed: int = 0) -> Tensor:
    """[L_moe, N, X] distinct experts."""
    shape, generator = policy.shape, torch.Generator().manual_seed(seed)
    order = torch.rand(len(shape.moe_layers), num_rows, shape.n_routed_experts, generator=generator).argsort(-1)
    return order[..., : shape.num_experts_per_tok]


NORMALISED = dict.fromkeys(MIXTURES, (True, False)) | {"Mixtral": (True,), "DeepseekV2": (False,)}
"""Mixtral always renormalises its gates and DeepSeek-V2 never; the others are told by the configuration."""


def naive_gates(scale: float, sigmoid: bool, normalised: bool, logits_E: list[float], ids: list[int]) -> list[Tensor]:
    """Two gates of one row by loops over numbers in float64, then the gradient of 0.7 · first − 1.3 · second by logit."""
    logits = torch.tensor(logits_E, dtype=torch.float64, requires_grad=True)
    scores = [1 / (1 + torch.exp(-value)) if sigmoid else torch.exp(value) for value in logits]
    if not sigmoid:
        scores = [value / sum(scores) for value in scores]
    chosen = [scores[index] for index in ids]
    if normalised:
        chosen = [value / sum(chosen) for value in chosen]
    gates = [value * scale for value in chosen]
    return [*gates, *torch.autograd.grad(0.7 * gates[0] - 1.3 * gates[1], logits)]


@pytest.mark.parametrize(("family", "normalised"), [(name, flag) for name in MIXTURES for flag in NORMALISED[name]])
def test_gates_and_their_gradient_equal_a_naive_float64_twin(family: str, normalised: bool) -> None:
    router = next(iter(find_routers(tiny_transformers(family)).values()))
    if len(NORMALISED[family]) == 2:
        assert hasattr(router, "norm_topk_prob")
        router.norm_topk_prob = normalised
    scale = {"DeepseekV2": 1.5, "DeepseekV3": 2.5, "Glm4Moe": 2.5, "Dots1": 2.5}.get(family, 1.0)
    logits_NE = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    ids_NX = torch.tensor([[0, 7], [3, 1], [5, 4], [2, 6], [7, 3]])
    gates_NX = ROUTER_GATES[type(router).__name__](router, logits_NE, ids_NX)
    (grad_NE,) = torch.autograd.grad((gates_NX * torch.tensor([0.7, -1.3])).sum(), logits_NE)
    for row in range(5):
        sigmoid = family in ("DeepseekV3", "Glm4Moe", "Dots1")
        *expected, expected_grad = naive_gates(
            scale, sigmoid, normalised, logits_NE[row].tolist(), ids_NX[row].tolist()
        )
        torch.testing.assert_close(gates_NX[row].double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad_NE[row].double(), expected_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", MIXTURES)
def test_forward_on_replayed_routes_runs_them_and_reports_live_ones(family: str) -> None:
    policy = TransformersPolicy(tiny_transformers(family))
    rows = sequences()
    with torch.no_grad():
        live_ND, live = run(policy, packed(rows))
        own = torch.stack(live.routes)
        same_ND, _ = run(policy, packed(rows, own))
        other = random_routes(policy, own.shape[1])
        moved_ND, moved = run(policy, packed(rows, other))
    torch.testing.assert_close(same_ND, live_ND, rtol=0, atol=1e-5)
    assert torch.equal(torch.stack(live.live_routes), own)
    assert torch.equal(torch.stack(moved.routes), other)
    assert torch.equal(moved.live_routes[0], own[0]), "the first layer's input is the same"
    assert not torch.equal(moved.live_routes[-1].sort(-1).values, own[-1].sort(-1).values)
    assert (moved_ND - live_ND).abs().max() > 1e-2


@pytest.mark.parametrize("family", MIXTURES)
def test_router_still_learns_under_replay(family: str) -> None:
    policy = TransformersPolicy(tiny_transformers(family))
    rows = sequences()
    routes = random_routes(policy, packed(rows).token_ids_N.shape[0])
    hidden_ND, _ = run(policy, packed(rows, routes))
    weights = [router.weight for router in find_routers(policy.model).values()]
    # A sum of squares of normed rows is constant: weigh the columns.
    loss = (hidden_ND * torch.arange(64.0)).sum()
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, weights))


def test_rows_without_a_route_follow_the_live_router() -> None:
    policy = TransformersPolicy(tiny_transformers("DeepseekV3"))
    rows = sequences((16,))
    with torch.no_grad():
        live = torch.stack(run(policy, packed(rows))[1].routes)
        routes = random_routes(policy, 16)
        routes[:, 4:] = -1
        _, trace = run(policy, packed(rows, routes))
    used = torch.stack(trace.routes)
    assert torch.equal(used[:, :4], routes[:, :4])
    assert torch.equal(used[0, 4:], live[0, 4:])
    assert torch.equal(used[:, 4:], torch.stack(trace.live_routes)[:, 4:])


def test_replay_of_a_wrong_shape_is_refused() -> None:
    policy = TransformersPolicy(tiny_transformers("Olmoe"))
    batch = packed(sequences(), torch.zeros(3, 64, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=re.escape("[L_moe, N, X] = (3, 64, 2); got (3, 64, 4)")):
        run(policy, batch)


@pytest.mark.parametrize("family", ["Qwen3Moe", "DeepseekV3"])
@pytest.mark.parametrize("replayed", [True, False])
def test_recomputed_layers_consume_each_route_once_more_and_give_the_same_gradient(
    family: str, replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[tuple[str, int]] = Counter()
    rows_seen: Counter[int] = Counter()
    follow = PackedPass.follow

    def counted(self: PackedPass, layer: int, live_NX: Tensor) -> Tensor:
        ids_NX = follow(self, layer, live_NX)
        counts["recomputed" if self.finished else "forward", layer] += 1
        rows_seen[layer] += len(ids_NX)
        return ids_NX

    gradients = []
    for checkpointed in (False, True):
        policy = TransformersPolicy(tiny_transformers(family))
        monkeypatch.setattr(PackedPass, "follow", counted)
        policy.activation_checkpointing = checkpointed
        counts.clear()
        rows_seen.clear()
        rows = sequences()
        routes = random_routes(policy, packed(rows).token_ids_N.shape[0]) if replayed else None
        trace = ForwardTrace()
        hidden_ND = policy(packed(rows, routes), PackedKeys(), trace)
        recorded = len(trace.routes)
        gradients.append(torch.autograd.grad((hidden_ND * torch.arange(64.0)).sum(), list(policy.parameters())[:-1]))
        layers = policy.shape.moe_layers
        forward = {("forward", layer): 1 for layer in layers}
        again = {("recomputed", layer): 1 for layer in layers} if checkpointed else {}
        assert counts == {**forward, **again}
        assert rows_seen == dict.fromkeys(layers, (2 if checkpointed else 1) * 64)
        assert recorded == len(trace.routes) == len(trace.live_routes) == len(layers)
        monkeypatch.undo()
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-5)


def test_second_backward_over_one_pass_is_refused() -> None:
    """Its rows would be consumed a second time."""
    policy = TransformersPolicy(tiny_transformers("Olmoe"))
    policy.activation_checkpointing = True
    hidden_ND, _ = run(policy, packed(sequences()))
    loss, parameters = hidden_ND.sum(), list(policy.parameters())[:-1]
    torch.autograd.grad(loss, parameters, retain_graph=True)
    with pytest.raises(PassError, match="at most once"):
        torch.autograd.grad(loss, parameters)


def test_gates_of_every_router_class_exist_in_transformers() -> None:
    """A table entry that no model has would be a promise nobody tests."""
    tested = {
        type(router).__name__ for family in MIXTURES for router in find_routers(tiny_transformers(family)).values()
    }
    assert tested == set(ROUTER_GATES)
