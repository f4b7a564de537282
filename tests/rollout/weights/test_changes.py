"""Versions told as changes: exact in every type, whole where that is less, and whole again before a latecomer would have much to take."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samepath.model.files.checkpoint import published_tensors
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.model_source import save_model
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.weights.bucket import Bucket
from samepath.rollout.weights.changes import LastVersion
from samepath.rollout.weights.mark import Header, WeightsError, header, require_equal
from samepath.rollout.weights.outgoing import Outgoing
from samepath.rollout.weights.publication import arrived
from tests.conftest import tiny_model
from tests.tiny_runs import request


def told(tensors: dict[str, Tensor], last: LastVersion, version: int = 1) -> tuple[Header, list[Bucket]]:
    """A version on its way, pickled as for another process."""
    outgoing = Outgoing(tensors.items(), 200, last)
    buckets = list(outgoing)
    return outgoing.header(version), pickle.loads(pickle.dumps(buckets))


def applied(held: dict[str, Tensor], head: Header, buckets: list[Bucket]) -> dict[str, Tensor]:
    """The version that who holds `held` makes of it."""
    come = arrived(head, buckets, stays=True)
    for name, change in come.changes.items():
        change.write(held[name])
    return {name: come.tensors[name].clone() if name in come.tensors else held[name] for name in head.marks}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_over_many_versions_give_the_weights_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(size, generator=generator).to(dtype)
        for name, size in (("a", (40, 8)), ("b", (64,)), ("c", ()))
    }
    last, held, kinds = LastVersion(), dict[str, Tensor](), []
    for version in range(12):
        share = (0.0, 0.02, 0.9)[version % 3]
        for tensor in tensors.values():
            flat = tensor.view(-1)
            chosen = torch.rand(flat.shape, generator=generator) < share
            # Also numbers of which only the sign of zero, or the kind of NaN, changes.
            flat[chosen] = (
                (torch.randn(int(chosen.sum()), generator=generator) * 0).to(dtype) if version == 4 else -flat[chosen]
            )
        head, buckets = told(tensors, last, version)
        held = applied(held, head, buckets)
        require_equal(header(version, tensors), held, "this test")
        sent = sum(one.size_bytes for bucket in buckets for one in bucket)
        assert sent == head.sent_bytes <= head.size_bytes
        assert bool(head.base) == (sent < head.size_bytes)
        kinds.append(bool(head.base))
    assert True in kinds[1:]
    assert False in kinds[1:]


def test_changes_by_hand() -> None:
    tensors = {"a": torch.arange(8.0), "b": torch.ones(4)}
    last = LastVersion()
    head, _ = told(tensors, last)
    assert (head.base, head.sent_bytes) == ("", 48)
    tensors["a"][5] = -0.0
    tensors["b"] += 1
    second, buckets = told(tensors, last)
    (a, b) = [one for bucket in buckets for one in bucket]
    assert second.base == head.fingerprint
    assert a.places is not None
    assert (a.places.tolist(), b.places, second.sent_bytes) == ([5], None, 8 + 16)
    nothing, buckets = told(tensors, last)
    assert (buckets, nothing.sent_bytes, nothing.base) == ([], 0, second.fingerprint)


def test_version_is_whole_again_once_changes_add_up_to_half_of_it() -> None:
    tensors, last, kinds = {"a": torch.zeros(1000)}, LastVersion(), []
    for version in range(10):
        tensors["a"][:100] = float(version)
        head, _ = told(tensors, last, version)
        kinds.append(bool(head.base))
    # A fifth of the bytes each.
    assert kinds == [False, True, True, True, False, True, True, True, False, True]


@pytest.fixture
def worker(tmp_path: Path, tokenizer: Tokenizer) -> RolloutWorker:
    """One whose engine holds version 0."""
    save_model(tiny_model(), tokenizer, tmp_path / "model")
    return RolloutWorker(tmp_path / "model", BuiltinSettings(), 1)


def test_worker_takes_changes_of_what_it_holds_also_where_they_wait_and_refuses_others(worker: RolloutWorker) -> None:
    model, last = tiny_model(7), LastVersion()
    tensors = {name: tensor.detach() for name, tensor in published_tensors(model).items()}
    versions = []
    for version in range(1, 5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[version] += 0.5
        versions.append(told(tensors, last, version))
    assert [bool(head.base) for head, _ in versions] == [False, True, True, True]
    for head, buckets in versions[:2]:
        worker.take_buckets(head.version, "continue", head, *buckets)
    worker.work([request("g", (2, 3), SamplingSettings(max_new_tokens=4, ignore_stop=True))], 0.0)
    for head, buckets in versions[2:]:
        assert worker.take_buckets(head.version, "finish", head, *buckets) == 0.0
    assert worker.work([], 60.0)
    assert worker.engine.weight_version == 4
    held = worker.engine.held_weights()
    assert held is not None
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(WeightsError, match=rf"process {os.getpid()} on .*learner\.weight_deltas=false"):
        worker.take_buckets(3, "continue", versions[2][0], *versions[2][1])
