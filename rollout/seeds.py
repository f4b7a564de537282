"""Seeds from names: equal names give equal samples on any machine."""

import hashlib


def seed_of(*parts: object) -> int:
    """A 64-bit seed from what it belongs to, such as run seed, step, group and sample."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")
