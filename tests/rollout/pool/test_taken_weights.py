"""What a worker makes of published weights: a copy to the bit or an error with its name, or the learner's own memory."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samepath.model.files.checkpoint import published_tensors
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.model_source import save_model
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.pool.pool import Handover, InlinePool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from samepath.rollout.weights.mark import Header, WeightsError, header
from samepath.rollout.weights.outgoing import Outgoing
from samepath.rollout.weights.publication import Publication
from tests.conftest import tiny_model
from tests.engine_runs import assert_same_samples
from tests.tiny_runs import request

FREE = SamplingSettings(max_new_tokens=12, ignore_stop=True)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A checkpoint for the workers."""
    save_model(tiny_model(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def published(model: CausalLM, version: int) -> Publication:
    """As the learner's process gives it."""
    tensors = {name: tensor.detach() for name, tensor in published_tensors(model).items()}
    return Publication(version=version, header=header(version, tensors), tensors=tensors, policy=model)


def sampled(pool: InlinePool, name: str = "g") -> Group:
    """One group of the pool's present weights."""
    (group,) = pool.sample([request(name, (2, 3, 4), FREE)], lambda group: None)
    return group


def test_worker_that_holds_other_bytes_than_published_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dict(published_tensors(tiny_model(7)))
    outgoing = Outgoing(tensors.items(), 4096)
    buckets = list(outgoing)
    assert len(buckets) > 2
    worker = RolloutWorker(folder, BuiltinSettings(), 1)
    assert worker.take_buckets(1, "continue", outgoing.header(1), *buckets) > 0
    assert worker.engine.weight_version == 1

    stale = {name: tensor.clone() for name, tensor in tensors.items()}
    stale["model.norm.weight"][0] += 1e-6
    expected: Header = header(2, stale)
    with pytest.raises(
        WeightsError, match=rf"rollout worker \(process {os.getpid()} on .*version 2.*model\.norm\.weight"
    ):
        worker.take_buckets(2, "continue", expected, *buckets)

    load = BuiltinEngine.load_weights

    def torn(engine: BuiltinEngine, weights: dict[str, Tensor], version: int, *, recompute: bool = False) -> None:
        load(engine, weights, version, recompute=recompute)
        engine.model.norm.data[3] = 0.0

    monkeypatch.setattr(BuiltinEngine, "load_weights", torn)
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors differ"):
        worker.take_buckets(3, "continue", outgoing.header(3), *buckets)


def test_engine_without_readable_weights_has_the_arrived_bytes_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = dict(published_tensors(tiny_model(7)))
    outgoing = Outgoing(tensors.items(), 1 << 20)
    buckets = list(outgoing)
    expected = header(1, {**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1})
    worker = RolloutWorker(folder, BuiltinSettings(), 1)
    monkeypatch.setattr(BuiltinEngine, "held_weights", lambda engine: None)
    before = worker.engine.weight_version
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        worker.take_buckets(1, "continue", expected, *buckets)
    assert worker.engine.weight_version == before, "compared before the engine takes them"


def test_pool_beside_the_learner_samples_from_the_learners_own_memory(folder: Path) -> None:
    learned, engine = tiny_model(7), BuiltinSettings(prefix_cache=True)
    pool, copying = InlinePool(folder, engine, RolloutSettings()), InlinePool(folder, engine, RolloutSettings())
    pool.load_weights(published(learned, 1), 1)
    assert pool.handover() == Handover(load_s=0.0, sent_bytes=0)
    own = pool._worker.engine
    assert isinstance(own, BuiltinEngine)
    theirs = {tensor.data_ptr() for tensor in learned.state_dict().values()}
    assert {tensor.data_ptr() for tensor in own.model.state_dict().values()} == theirs
    for version in (1, 2):
        copying.load_weights({name: tensor.clone() for name, tensor in published_tensors(learned).items()}, version)
        assert_same_samples(sampled(pool), sampled(copying))
        assert {int(v) for v in sampled(pool, "v").rollouts[0].segments[0].weight_version[-3:]} == {version}
        with torch.no_grad():
            for parameter in learned.parameters():
                parameter.mul_(1.01)
        pool.load_weights(published(learned, version + 1), version + 1)
    before = {name: tensor.clone() for name, tensor in learned.state_dict().items()}
    pool.load_weights({name: tensor.clone() for name, tensor in published_tensors(tiny_model(5)).items()}, 9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learned.state_dict().items()), (
        "weights from elsewhere are not written into the learner's"
    )


def test_pool_of_another_type_or_shape_than_the_learner_copies(folder: Path) -> None:
    pool = InlinePool(folder, BuiltinSettings(), RolloutSettings())
    other = tiny_model(7).bfloat16()
    pool.load_weights(published(other, 1), 1)
    engine = pool._worker.engine
    assert isinstance(engine, BuiltinEngine)
    assert engine.model.norm.dtype == torch.float32
    assert torch.equal(engine.model.norm, other.norm.float())
    assert pool.handover().load_s > 0
