"""How much of learning several ranks spend in collectives."""

from collections.abc import Sequence


def collective_metrics(kind: str, ranks: Sequence[tuple[float, float]], steps: int) -> dict[str, float]:
    """Means over the ranks of seconds in collectives, a step's, and of their share; the least share is that of the rank that the others wait for.

    `ranks` are (seconds in collectives, seconds in all) of each, over `steps` steps.
    """
    shares = [collective_s / max(total_s, 1e-9) for collective_s, total_s in ranks]
    return {
        f"{kind}/collectives_s": sum(collective_s for collective_s, _ in ranks) / len(ranks) / steps,
        f"{kind}/collectives_share": sum(shares) / len(shares),
        f"{kind}/collectives_share_least": min(shares),
    }
