"""A digest of a token sequence: what an engine read and drew in a call, to be compared where the learner takes it."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def token_digest(token_ids: NDArray[np.int32]) -> int:
    """64 bits that tell token sequences apart."""
    return int.from_bytes(hashlib.blake2b(token_ids.astype("<i4").tobytes(), digest_size=8).digest(), "little")
