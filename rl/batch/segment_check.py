"""What every rollout of a step is held to before anything is made of it."""

from samepath.rollout.conservation import check_conservation, drift_cuts
from samepath.rollout.segments import SegmentError
from samepath.rollout.types import Rollout

WHAT_CHANGED = {
    "sampled": "has other tokens in place of some that were drawn",
    "given": "has other tokens in place of some that the model was given",
    "shortened": "ends before all of them",
}
"""By `DriftKind`: what a prompt is that does not go on where the call before ended."""


def check_segments(rollout: Rollout, *, strict: bool) -> None:
    """Hold the rollout to `check_conservation`, and with `strict` to have no cut within an epoch. Raises SegmentError naming it."""
    where = f"{rollout.group_id}/{rollout.sample_index}"
    check_conservation(rollout.segments, where)
    cuts = drift_cuts(rollout.segments)
    if strict and cuts:
        raise SegmentError(
            f"{where}: within an epoch each prompt must begin with all tokens so far; {len(cuts)} do not, and the first {WHAT_CHANGED[cuts[0]]}. "
            "Build prompts from the sampled tokens, never from their text, and begin an epoch where the context is changed on purpose; with "
            "rl.strict_segments=false such cuts are counted (segments/drift) and trained as segments of their own."
        )
