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


def check_segments(rollout: Rollout, *, strict: bool, one_version: bool = False) -> None:
    """Hold the rollout to `check_conservation`, with `strict` to have no cut within an epoch but those of new weights, and with `one_version`
    (`rl.on_new_weights: recompute`) to have one weight version in each segment. Raises SegmentError naming it.
    """
    where = f"{rollout.group_id}/{rollout.sample_index}"
    check_conservation(rollout.segments, where)
    if one_version:
        _check_versions(rollout, where)
    cuts = drift_cuts(rollout.segments)
    if strict and cuts:
        raise SegmentError(
            f"{where}: within an epoch each prompt must begin with all tokens so far; {len(cuts)} do not, and the first {WHAT_CHANGED[cuts[0]]}. "
            "Build prompts from the sampled tokens, never from their text, and begin an epoch where the context is changed on purpose; with "
            "rl.strict_segments=false such cuts are counted (segments/drift) and trained as segments of their own."
        )


def _check_versions(rollout: Rollout, where: str) -> None:
    for number, segment in enumerate(rollout.segments):
        versions = sorted(set(segment.weight_version[segment.trained].tolist()))
        if len(versions) > 1 or segment.superseded_rows:
            raise SegmentError(
                f"{where}, segment {number}: with rl.on_new_weights=recompute a segment must be of one weight version in every row; got tokens of "
                f"{versions} and {segment.superseded_rows} rows of others. Begin a segment wherever new weights come."
            )
