"""A version of the weights on its way out of the learner's process, bucket by bucket."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from samepath.rollout.weights.bucket import Bucket, bucketed, buckets
from samepath.rollout.weights.changes import LastVersion
from samepath.rollout.weights.mark import Header, Mark, mark


class Outgoing:
    """Named tensors as `buckets`, or what of them changed since `last`; everything that a header says is known once they have been through."""

    def __init__(
        self, tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int, last: LastVersion | None = None
    ) -> None:
        self._tensors, self._bucket_bytes, self._last = tensors, bucket_bytes, last
        self._marks: dict[str, Mark] = {}
        self._sent_bytes = 0

    def __iter__(self) -> Iterator[Bucket]:
        marked, limit = self._marked(), self._bucket_bytes
        made = buckets(marked, limit) if self._last is None else bucketed(self._last.pieces(marked), limit)
        for bucket in made:
            self._sent_bytes += sum(one.size_bytes for one in bucket)
            yield bucket

    def _marked(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors:
            self._marks[name] = mark(tensor)
            yield name, tensor

    def header(self, version: int) -> Header:
        """What is known of the tensors, all of which have gone."""
        base = "" if self._last is None else self._last.base
        head = Header(version=version, marks=self._marks, base=base, sent_bytes=self._sent_bytes)
        if self._last is not None:
            self._last.is_now(head.fingerprint)
        return head
