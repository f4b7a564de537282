"""Weights in pieces: bounded, whole, in order, and the same bits on the other side, over a pickle or shared memory."""

import os
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from samepath.rollout.weights.bucket import piece
from samepath.rollout.weights.mark import header, require_equal
from samepath.rollout.weights.outgoing import Outgoing
from samepath.rollout.weights.publication import Publication, arrived, here, publication
from samepath.rollout.weights.shared_memory import SharedBuckets

TENSORS: dict[str, Tensor] = {
    "embedding": torch.randn(50, 8),
    "norm": torch.randn(8).bfloat16(),
    "stacked.half": torch.randn(6, 8)[3:],
    "turned": torch.randn(5, 3).T,
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
}


@pytest.mark.parametrize("limit", [1, 64, 300, 10_000])
def test_outgoing_buckets_are_bounded_and_hold_everything_in_order(limit: int) -> None:
    outgoing = Outgoing(TENSORS.items(), limit)
    buckets = list(outgoing)
    for bucket in buckets:
        assert len(bucket) == 1 or sum(one.values.nbytes for one in bucket) <= limit
    assert [one.name for bucket in buckets for one in bucket] == list(TENSORS)
    assert (outgoing.header(4).marks, outgoing.header(4).base) == (header(4, TENSORS).marks, "")
    assert len(buckets) == {1: 6, 64: 4, 300: 2, 10_000: 1}[limit]


def test_outgoing_asks_for_no_tensor_before_it_is_needed() -> None:
    """Else whoever gathers shards would hold the whole model."""
    made: list[int] = []

    def named() -> Iterator[tuple[str, Tensor]]:
        for number in range(6):
            made.append(number)
            yield str(number), torch.full((16,), float(number))

    buckets = iter(Outgoing(named(), 128))
    for bucket, most in zip(buckets, (3, 5, 6), strict=True):
        assert len(made) == most
        assert [one.values.nbytes for one in bucket] == [64, 64]


def test_pieces_share_the_memory_of_a_tensor_on_the_cpu() -> None:
    tensor = torch.zeros(4)
    one = piece("a", tensor)
    tensor[2] = 3.0
    assert one.tensor().tolist() == [0.0, 0.0, 3.0, 0.0]


def test_arrived_weights_have_the_bits_that_left() -> None:
    outgoing = Outgoing(TENSORS.items(), 100)
    buckets = pickle.loads(pickle.dumps(list(outgoing)))
    come = arrived(outgoing.header(2), buckets, stays=True)
    assert list(come.tensors) == list(TENSORS)
    assert {name: tensor.shape for name, tensor in come.tensors.items()} == {n: t.shape for n, t in TENSORS.items()}
    require_equal(come.header, come.tensors, "this test")
    assert come.kept() is come


def test_shared_memory_is_written_again_by_the_next_version_and_grows_with_the_model() -> None:
    shared = SharedBuckets()
    before = len(os.listdir("/proc/self/fd"))
    for scale, tensors in ((1.0, TENSORS), (2.0, TENSORS), (1.0, {**TENSORS, "norm": torch.randn(999)})):
        sent = {name: tensor * scale for name, tensor in tensors.items()}
        outgoing = Outgoing(sent.items(), 256)
        shared.write(outgoing)
        come = arrived(outgoing.header(1), (one.bucket() for one in shared.held), stays=False)
        require_equal(header(1, sent), come.tensors, "this test")
    assert shared.size_bytes == header(1, sent).size_bytes
    kept = come.kept()
    shared.write(Outgoing([(name, torch.zeros_like(tensor)) for name, tensor in sent.items()], 256))
    require_equal(header(1, sent), kept.tensors, "this test")
    assert not torch.equal(come.tensors["embedding"], kept.tensors["embedding"])
    shared.close()
    del come
    assert len(os.listdir("/proc/self/fd")) <= before


def test_publication_is_of_one_version() -> None:
    given = publication({"a": np.ones(3, np.float32)}, 4)
    assert (given.version, here(given).header) == (4, header(4, {"a": torch.ones(3)}))
    assert publication(given, 4) is given
    with pytest.raises(ValueError, match="weights of version 4 were handed over as version 5"):
        publication(given, 5)
    assert isinstance(given, Publication)
