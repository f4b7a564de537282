"""What bringing new weights to the workers took."""

from samepath.rollout.pool.pool import Handover
from samepath.rollout.weights.publication import Publication


def weight_metrics(published: Publication, handover: Handover) -> dict[str, float]:
    """`weights/…` of one version, as far as it has arrived."""
    return {
        "weights/sent_bytes": float(published.sent_bytes or handover.sent_bytes),
        "weights/told_as_changes": float(bool(published.base)),
        "weights/publish_s": published.seconds,
        "weights/load_s": handover.load_s,
    }
