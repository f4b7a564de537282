"""Keep Routing: unusable routes are refused by name, and following the wrong ones is seen in the log-probabilities."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import PackedBatch
from samepath.rl.batch.route_check import RouteError, check_routes
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import learner_batch, random_prompt, request


def good_routes(num_rows: int = 4) -> NDArray[np.int16]:
    """[rows, 2 layers, 2 experts] without a repeat."""
    rows = np.arange(num_rows)[:, None] + np.array([0, 3])
    return np.stack([rows, rows + 5], 1).astype(np.int16) % 8


def test_check_routes_good_ones_have_none_missing() -> None:
    assert check_routes(good_routes(), 4, tiny_config(), "g/0") == 0


def test_check_routes_missing_entries_are_counted() -> None:
    routes = good_routes()
    routes[1], routes[3, 0] = -1, -1
    assert check_routes(routes, 4, tiny_config(), "g/0") == 3
    assert check_routes(np.full_like(routes, -1), 4, tiny_config(), "g/0") == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda routes: routes[:3], r"\(4, 2, 2\); got \(3, 2, 2\)"),
        (lambda routes: routes[:, :1], r"got \(4, 1, 2\)"),
        (lambda routes: routes[..., :1], r"got \(4, 2, 1\)"),
        (lambda routes: np.where(routes == 5, 8, routes), r"0 … 7 \(−1 = missing\); got 0 … 8"),
        (lambda routes: np.where(routes == 5, -2, routes), "got -2 … 7"),
        (lambda routes: np.where(routes == 5, -1, routes), "recorded whole or not at all"),
        (lambda routes: routes[..., [0, 0]], r"at most once a token; row 0, layer slot 0 has \[0, 0\]"),
    ],
    ids=["rows", "layers", "experts", "id too high", "id too low", "missing in part", "expert twice"],
)
def test_check_routes_unusable_ones_are_refused_by_name(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RouteError, match=message) as caught:
        check_routes(change(good_routes()), 4, tiny_config(), "s3-g0/2")
    assert str(caught.value).startswith("s3-g0/2: ")


def test_check_routes_all_zero_buffer_is_refused() -> None:
    config = tiny_config(num_experts_per_tok=1)
    with pytest.raises(RouteError, match="never filled"):
        check_routes(np.zeros((4, 2, 1), np.int16), 4, config, "g/0")
    assert check_routes(np.zeros((1, 2, 1), np.int16), 1, config, "g/0") == 0


def test_check_routes_dense_model_has_nothing_to_check() -> None:
    config = tiny_config(first_k_dense_replace=3)
    assert check_routes(np.zeros((4, 0, 2), np.int16), 4, config, "g/0") == 0


@pytest.fixture
def sampled(tokenizer: Tokenizer) -> PackedBatch:
    """Rollouts of `tiny_model()` packed for the learner."""
    rng = np.random.default_rng(0)
    sampling = SamplingSettings(max_new_tokens=20, ignore_stop=True)
    entries = [request(f"g{n}", random_prompt(rng, 18, 9), sampling, (n, n + 10)) for n in range(3)]
    groups = BuiltinEngine(tiny_model(), tokenizer, BuiltinSettings()).run(entries)
    return learner_batch(groups, 1.0, tiny_config())


def logprobs(model: CausalLM, batch: PackedBatch, routes_LNX: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        return run_policy(model, batch, routes_LNX=routes_LNX, use_support=True).logprobs_M


def test_replay_of_the_wrong_layer_is_seen(sampled: PackedBatch) -> None:
    right = logprobs(tiny_model(), sampled, sampled.routes_LNX)
    assert torch.equal(right, sampled.sampler_logprobs_M)
    wrong = logprobs(tiny_model(), sampled, sampled.routes_LNX.roll(1, 0))
    assert float((wrong - right).abs().max()) > 0.1


def test_replay_one_row_late_is_seen(sampled: PackedBatch) -> None:
    wrong = logprobs(tiny_model(), sampled, sampled.routes_LNX.roll(1, 1))
    assert float((wrong - sampled.sampler_logprobs_M).abs().max()) > 0.1


def test_replay_after_a_weight_change_keeps_the_path_that_live_routing_leaves(sampled: PackedBatch) -> None:
    """A small step moves some routers across a tie: replay stays near the sampler, live routing jumps."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router"):
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    replayed, live = (logprobs(model, sampled, routes) for routes in (sampled.routes_LNX, None))
    assert not torch.equal(replayed, live)
    distance = [float((got - sampled.sampler_logprobs_M).abs().max()) for got in (replayed, live)]
    assert 0 < distance[0] < 0.5 * distance[1]
