"""Packed and padded batches train the same: what is cut and what is put behind answers changes no trained token and no loss."""

import numpy as np
import pytest

from benchmarks.packing import cut_to, padded_to, ways
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rollout.types import MISSING_ROUTE
from tests.conftest import tiny_model
from tests.update_runs import Descent, rollout_batch, updater


@pytest.fixture
def batch(tokenizer: Tokenizer) -> TrainBatch:
    """Rollouts of 20 tokens with supports."""
    return rollout_batch(tokenizer, top_p=0.9, ignore_stop=True)


def test_cut_and_padded_segments_keep_what_is_trained(batch: TrainBatch) -> None:
    whole = batch.sequences[0].segment
    cut = cut_to(whole, 12)
    total = int(whole.trained.nonzero()[0][0]) + 12
    assert (len(cut.token_ids), int(cut.trained.sum())) == (total, 12)
    assert np.array_equal(cut.routes[:-1], whole.routes[: total - 1])
    assert (cut.routes[-1] == MISSING_ROUTE).all()
    assert cut.support is not None
    assert whole.support is not None
    assert np.array_equal(cut.support.counts, whole.support.counts[:12])
    assert len(cut.support.ids) == cut.support.counts.sum()
    longer = padded_to(cut, total + 5)
    assert len(longer.token_ids) == len(longer.routes) == total + 5
    assert (longer.routes[:-1] != MISSING_ROUTE).all(), "all but the last row run"
    assert np.array_equal(longer.trained.nonzero()[0], cut.trained.nonzero()[0])
    assert np.array_equal(longer.sampler_logprobs[:total], cut.sampler_logprobs)


def test_every_way_gives_the_same_loss_and_gradient(batch: TrainBatch) -> None:
    made = ways(batch, 20)
    lengths = {name: [len(entry.segment.token_ids) for entry in one.sequences] for name, one in made.items()}
    assert len(set(lengths["packed"])) > 3
    assert len(set(lengths["padded"])) == 1
    assert sum(lengths["packed"]) < sum(lengths["padded by prompt"]) <= sum(lengths["padded"])
    seen = {}
    for name, one in made.items():
        model = tiny_model()
        update = updater(model, {"max_gap_at_lag_0": 9.0})
        report = update.run(one, 0, descent := Descent(model, 0.1))
        seen[name] = report.metrics["learner/loss"], descent.first
    loss, gradients = seen["packed"]
    for name in ("padded by prompt", "padded"):
        assert seen[name][0] == pytest.approx(loss, rel=1e-5, abs=1e-8)
        for one, other in zip(gradients, seen[name][1], strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert float((one - other).abs().max()) <= 1e-5 * max(float(one.abs().max()), 1e-6)
