"""How many rewards may fail: judged while they come, never over fewer than eight."""

from concurrent.futures import Future
from pathlib import Path

import pytest

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.score import Score
from samepath.rewards.settings import RewardSettings
from samepath.rl.batch.failed_share import FailedShare, TooManyFailuresError
from samepath.rl.batch.score_groups import GroupScorer
from tests.rl.sampled import group

GOOD = Score(total=1.0, parts={"own": 1.0})
BAD = Score(total=float("nan"), status="error", detail="own: KeyError: 'gold'")


def judge(share: FailedShare, *scores: Score) -> None:
    """One step of these scores, in this order."""
    share.begin(len(scores))
    for index, score in enumerate(scores):
        share.add(f"s1-g0/{index}", score)
    share.end()


@pytest.mark.parametrize(
    ("limit", "failures", "stops"), [(0.5, 4, False), (0.5, 5, True), (0.0, 1, True), (1.0, 8, False)]
)
def test_share_stops_above_the_limit_and_not_at_it(limit: float, failures: int, stops: bool) -> None:
    share, scores = FailedShare(limit), [BAD] * failures + [GOOD] * (8 - failures)
    if not stops:
        judge(share, *scores)
        return
    with pytest.raises(
        TooManyFailuresError,
        match=rf"{failures} of 8 .* reward.max_failed_share={limit:g} .* rollout s1-g0/0: own: KeyError",
    ):
        judge(share, *scores)


def test_share_of_fewer_than_eight_is_judged_with_the_next_step() -> None:
    share = FailedShare(0.5)
    judge(share, BAD, BAD, BAD, BAD)
    with pytest.raises(TooManyFailuresError, match="5 of 8"):
        judge(share, BAD, GOOD, GOOD, GOOD)


def test_share_starts_anew_after_every_judged_step() -> None:
    share = FailedShare(0.5)
    for _ in range(3):
        judge(share, *[BAD] * 4, *[GOOD] * 4)


class Stuck:
    """Children of which all but the first five never answer."""

    def __init__(self) -> None:
        self.futures: list[Future[Score]] = []

    def submit(self, request: RewardRequest) -> "Future[Score]":
        future: Future[Score] = Future()
        if len(self.futures) < 5:
            future.set_result(BAD)
        self.futures.append(future)
        return future


def test_scorer_stops_while_scores_are_still_to_come() -> None:
    scorer = GroupScorer(Stuck(), 0.5)  # type: ignore[arg-type]
    made = group("a", *[None] * 8)
    scorer.submit(made)
    with pytest.raises(TooManyFailuresError, match="5 of 8"):
        scorer.collect([made])


def test_scorer_counts_only_what_was_scored() -> None:
    """Eight rollouts, of which four were never sampled: four scores are too few to judge."""
    scorer = GroupScorer(Stuck(), 0.5)  # type: ignore[arg-type]
    made = group("a", *[None] * 4)
    scorer.submit(made)
    assert [one.score.status for one in scorer.collect([made])[0].rollouts if one.score] == ["error"] * 4


def test_scorer_whose_reward_hangs_on_every_response_waits_for_no_more_than_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 responses of which 6.4 may fail: the seventh wait of 0.2 s is the last, beside the one of the other child."""
    (tmp_path / "own_hang.py").write_text("import time\ndef f(request): time.sleep(600)")
    settings = {"parts": {"own": "own_hang:f"}, "search_path": str(tmp_path), "timeout_s": 0.2, "num_workers": 2}
    asked = []
    scored = RewardRunner._scored
    monkeypatch.setattr(RewardRunner, "_scored", lambda *args: (asked.append(1), scored(*args))[1])
    made = group("a", *[None] * 64)
    with RewardRunner(RewardSettings.model_validate(settings)) as runner:
        scorer = GroupScorer(runner, 0.1)
        scorer.submit(made)
        with pytest.raises(TooManyFailuresError, match=r"7 of 64 .* own: no result within 0.2 s"):
            scorer.collect([made])
    assert 7 <= len(asked) <= 14
