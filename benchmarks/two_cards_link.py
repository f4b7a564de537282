"""Rates at which this machine copies, for benchmarks.two_cards: `python -m benchmarks.two_cards_link cuda|cpu MIB` prints JSON, bytes a second.

A copy from card to card is torch's, which is cudaMemcpyPeer's where the cards reach each other; the fastest of the rounds counts.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

ROUNDS = 10


def rate(copy: Callable[[], Tensor], size_bytes: int, wait: Callable[[], None]) -> float:
    """Bytes a second of the fastest copy."""
    seconds = []
    for _ in range(ROUNDS):
        wait()
        begun_s = time.perf_counter()
        copy()
        wait()
        seconds.append(time.perf_counter() - begun_s)
    return size_bytes / min(seconds)


def rates(device: str, size_bytes: int) -> dict[str, float]:
    """By way. Raises RuntimeError without two cards."""
    host, target = torch.ones(size_bytes // 4), torch.empty(size_bytes // 4)
    found = {"host to host, B/s": rate(lambda: target.copy_(host), size_bytes, lambda: None)}
    if device == "cpu":
        return found
    if torch.cuda.device_count() < 2:
        raise RuntimeError(f"two GPUs are needed; {torch.cuda.device_count()} are visible")
    pinned, first, second = host.pin_memory(), host.to("cuda:0"), host.to("cuda:1")

    def wait() -> None:
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)

    ways: dict[str, tuple[Tensor, Tensor]] = {
        "card to card": (second, first),
        "card to itself": (torch.empty_like(first), first),
        "pinned host to card": (first, pinned),
        "host to card": (first, host),
        "card to pinned host": (pinned, first),
    }
    for way, (to, source) in ways.items():
        found[f"{way}, B/s"] = rate(lambda to=to, source=source: to.copy_(source), size_bytes, wait)  # type: ignore[misc]
    found["cards reach each other"] = float(torch.cuda.can_device_access_peer(0, 1))
    return found


if __name__ == "__main__":
    print(json.dumps(rates(sys.argv[1], int(sys.argv[2]) << 20)))
