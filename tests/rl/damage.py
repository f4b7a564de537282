"""Damage at the end of a file that grows, as a killed process or a bad disk leaves it."""

from pathlib import Path


def damage_end(path: Path, damage: str) -> None:
    """`cut`: the last byte is missing; `flipped`: a bit near the end is another."""
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-1:]
    else:
        data[-5] ^= 1
    path.write_bytes(bytes(data))
