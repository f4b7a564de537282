"""Perplexity and recall are those of the definition, by layer."""

import numpy as np
import pytest
import torch

from samepath.model.network.network import CausalLM
from samepath.rl.pretraining.measure import measure_sparse
from tests.conftest import tiny_model
from tests.families import family_model
from tests.tiny_runs import packed_input, run

SEQUENCES = [np.random.default_rng(number).integers(2, 18, length) for number, length in enumerate((41, 30))]


def loss(model: CausalLM, num_selected: int) -> float:
    total = 0.0
    for ids in SEQUENCES:
        hidden, _ = run(model, packed_input(model.config, [torch.from_numpy(ids)]), num_selected)
        logprobs = (hidden[: len(ids)] @ model.head_weight.T).log_softmax(-1)
        total -= float(logprobs[torch.arange(len(ids) - 1), ids[1:]].sum())
    return total / sum(len(ids) - 1 for ids in SEQUENCES)


@pytest.mark.parametrize("make", [lambda: family_model("samepath_grouped"), tiny_model], ids=["grouped", "latent"])
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
    metrics = found.metrics(8)
    assert metrics["sparse/perplexity"] == pytest.approx(np.exp(wanted[8]), rel=1e-5)
    assert metrics["sparse/excess_top4"] == pytest.approx(np.exp(wanted[4] - wanted[64]) - 1, abs=1e-4)
    assert metrics["sparse/recall"] == pytest.approx(recalls[1].mean())
    assert metrics["sparse/recall_min_top20"] == pytest.approx(recalls[2].min())


def test_measure_sparse_of_more_keys_than_a_row_has_is_whole() -> None:
    model = family_model("samepath_grouped")
    found = measure_sparse(model, SEQUENCES, (64,))
    assert found.recalls[64] == (1.0,) * 3
    assert found.sparse_losses[64] == pytest.approx(found.dense_loss, abs=1e-6)
