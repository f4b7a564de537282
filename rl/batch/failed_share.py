"""How many rewards may fail: a function that fails on every response trains nothing, so the run stops instead of ending as if it had."""

from dataclasses import dataclass

from samepath.rewards.score import Score

MIN_JUDGED = 8
"""Fewest scored responses that are judged; the ones of a smaller step are judged together with the next step's."""


class TooManyFailuresError(RuntimeError):
    """More rewards failed than the recipe allows; the message names the first and says what to do."""


@dataclass(slots=True)
class FailedShare:
    """Counts the scores of a step as they come, and raises as soon as too many have failed: a hang costs no more than that share of waits."""

    limit: float
    """`reward.max_failed_share`."""
    _total: int = 0
    _failed: int = 0
    _first: str = ""

    def begin(self, count: int) -> None:
        """Expect the scores of `count` more responses."""
        self._total += count

    def add(self, rollout_key: str, score: Score) -> None:
        """Take one score. Raises TooManyFailuresError if the step's share is above the limit, whatever is still to come."""
        if score.status != "ok":
            self.add_failure(rollout_key, score.status, score.detail)

    def add_failure(self, rollout_key: str, kind: str, detail: str) -> None:
        """Take a response that has no usable score. Raises as `add`."""
        self._failed += 1
        self._first = self._first or f"{kind} in rollout {rollout_key}: {detail}"
        if self._total >= MIN_JUDGED and self._failed > self.limit * self._total:
            raise TooManyFailuresError(
                f"{self._failed} of {self._total} responses have no usable reward, more than reward.max_failed_share={self.limit:g} allows, "
                f"so the run stops; the first is {self._first}. Mend the function (`samepath validate` calls it once), or the environment, and go on with "
                "`samepath resume`, or raise reward.max_failed_share (1: never stop)."
            )

    def end(self) -> None:
        """The step is over; too few scores to judge are kept for the next."""
        if self._total >= MIN_JUDGED:
            self._total, self._failed, self._first = 0, 0, ""
