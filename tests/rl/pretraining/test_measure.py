"""Perplexity, recall, the output's error and the logits' are those of the definition, by layer and by position."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samepath.model.key_store import PackedKeys
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from samepath.rl.pretraining.measure import measure_sparse
from tests.conftest import tiny_model
from tests.families import family_model
from tests.tiny_runs import packed_input, run

SEQUENCES = [np.random.default_rng(number).integers(2, 18, length) for number, length in enumerate((41, 30))]


both = pytest.mark.parametrize(
    "make", [lambda: family_model("samepath_grouped"), tiny_model], ids=["grouped", "latent"]
)


def logprobs(model: CausalLM, num_selected: int) -> Tensor:
    """[M, V] of every token but the first, sequence by sequence."""
    parts = []
    for ids in SEQUENCES:
        hidden, _ = run(model, packed_input(model.config, [torch.from_numpy(ids)]), num_selected)
        parts.append((hidden[: len(ids) - 1] @ model.head_weight.T).log_softmax(-1))
    return torch.cat(parts)


def loss(model: CausalLM, num_selected: int) -> float:
    targets = torch.cat([torch.from_numpy(ids[1:]) for ids in SEQUENCES])
    return -float(logprobs(model, num_selected)[torch.arange(len(targets)), targets].mean())


@both
def test_measure_sparse_losses_are_those_over_all_and_over_the_selected_keys(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    with torch.no_grad():
        wanted = {amount: loss(model, amount) for amount in (4, 8, 20, 64)}
    found = measure_sparse(model, SEQUENCES, (20, 4))
    assert found.dense_loss == pytest.approx(wanted[64], abs=1e-5)
    assert found.sparse_losses == pytest.approx({amount: wanted[amount] for amount in (4, 8, 20)}, abs=1e-5)
    assert len({round(value, 4) for value in wanted.values()}) == 4
    recalls = np.array([found.recalls[amount] for amount in (4, 8, 20)])
    assert recalls.shape == (3, model.config.num_hidden_layers)
    assert (np.diff(recalls, axis=0) > 0).all()
    assert (recalls > 0.05).all()
    assert (recalls < 1).all()
    best = np.array([found.best_recalls[amount] for amount in (4, 8, 20)])
    assert (best > recalls).all()
    assert (best < 1).all()
    metrics = found.metrics(8)
    assert metrics["sparse/perplexity"] == pytest.approx(np.exp(wanted[8]), rel=1e-5)
    assert metrics["sparse/excess_top4"] == pytest.approx(np.exp(wanted[4] - wanted[64]) - 1, abs=1e-4)
    assert metrics["sparse/recall"] == pytest.approx(recalls[1].mean())
    assert metrics["sparse/recall_min_top20"] == pytest.approx(recalls[2].min())
    assert metrics["sparse/recall_best_top4"] == pytest.approx(best[0].mean())
    assert metrics["sparse/recall_best_min"] == pytest.approx(best[1].min())
    assert metrics["sparse/output_error"] == pytest.approx(np.mean(found.output_errors[8]))
    assert metrics["sparse/output_error_max_top4"] == pytest.approx(max(found.output_errors[4]))
    assert metrics["sparse/logits_kl_top20"] == found.logits_kls[20]


@both
def test_measure_sparse_output_error_is_that_of_each_layer_on_its_input_over_all_keys(make) -> None:  # type: ignore[no-untyped-def]
    """Each layer's attention, called by itself in float64, on what it is given in a pass over all keys."""
    model, wide = make(), make().double()
    seen: list[tuple[Any, ...]] = []
    for layer in wide.layers:
        layer.attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    ratios: dict[int, list[list[float]]] = {4: [], 20: []}
    with torch.no_grad():
        for ids in SEQUENCES:
            seen.clear()
            wide(packed_input(wide.config, [torch.from_numpy(ids[:-1])]), PackedKeys(), ForwardTrace(), num_selected=64)
            for (x_ND, rope, plan, *_), layer in zip(list(seen), wide.layers, strict=True):
                whole, *parts = (
                    layer.attention(x_ND, rope, plan, PackedKeys(), ForwardTrace(), amount) for amount in (64, 4, 20)
                )
                for amount, part in zip(ratios, parts, strict=True):
                    past = slice(amount, len(ids) - 1)
                    ratios[amount].append(((part - whole).norm(dim=1) / whole.norm(dim=1))[past].tolist())
    found = measure_sparse(model, SEQUENCES, (4, 20))
    num_layers = len(model.layers)
    for amount, parts in ratios.items():
        wanted = [np.mean(parts[layer] + parts[layer + num_layers]) for layer in range(num_layers)]
        assert min(wanted) > 0.02
        assert found.output_errors[amount] == pytest.approx(wanted, rel=1e-3)


@both
def test_measure_sparse_kl_of_logits_is_that_of_the_whole_distributions(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    with torch.no_grad():
        whole, part = (logprobs(model, amount) for amount in (64, 4))
    wanted = float((whole.exp() * (whole - part)).sum(1).mean())
    assert wanted > 1e-3
    assert measure_sparse(model, SEQUENCES, (4,)).logits_kls[4] == pytest.approx(wanted, rel=1e-3)


def test_measure_sparse_curve_ends_at_all_and_never_falls() -> None:
    model = family_model("samepath_grouped")
    found = measure_sparse(model, SEQUENCES, (20, 64))
    curve = found.curve
    assert curve.amounts == (1, 2, 4, 8, 16, 20, 32, 40)
    recalls, best = np.array(curve.recalls), np.array(curve.best_recalls)
    assert recalls.shape == best.shape == (8, 3)
    assert (np.diff(recalls, axis=0) > 0).all()
    assert (best >= recalls - 1e-6).all()
    assert recalls[-1] == pytest.approx(1, abs=1e-5)
    # At 20 keys: all but the very first of the late rows have more, and no other row has.
    late = np.array(curve.recalls[5])
    assert late == pytest.approx(found.recalls[20], abs=1e-5)


def test_measure_sparse_losses_by_position_are_those_of_their_rows() -> None:
    model = family_model("samepath_grouped")
    found = measure_sparse(model, SEQUENCES, (4,)).positions
    assert found.edges == (0, 5, 10, 15, 20, 25, 30, 35, 40)
    for amount, losses in ((64, found.dense), (4, found.sparse[4])):
        with torch.no_grad():
            taken = logprobs(model, amount)[
                torch.arange(69), torch.cat([torch.from_numpy(ids[1:]) for ids in SEQUENCES])
            ]
        long, short = taken[:40], taken[40:]
        assert losses[1] == pytest.approx(-float(torch.cat([long[5:10], short[5:10]]).mean()), abs=1e-5)
        assert losses[7] == pytest.approx(-float(long[35:].mean()), abs=1e-5)


def test_measure_sparse_of_more_keys_than_a_row_has_is_whole() -> None:
    model = family_model("samepath_grouped")
    found = measure_sparse(model, SEQUENCES, (64,))
    assert found.recalls[64] == found.best_recalls[64] == (1.0,) * 3
    assert found.output_errors[64] == (0.0,) * 3
    assert found.logits_kls[64] == pytest.approx(0, abs=1e-6)
    assert found.sparse_losses[64] == pytest.approx(found.dense_loss, abs=1e-6)
