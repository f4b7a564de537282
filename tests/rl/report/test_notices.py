"""What is said once: the first failure of each kind with function, rollout and message, and steps that teach nothing."""

from dataclasses import replace

from samepath.rewards.score import Score
from samepath.rewards.settings import RewardSettings
from samepath.rl.report.notices import PATIENCE, Notices
from tests.rl.sampled import group

PARTS = RewardSettings.model_validate("own:length").parts


def failed(status: str, detail: str) -> Score:
    return Score(total=float("nan"), status=status, detail=detail)


def test_failures_of_each_kind_are_said_once_with_function_rollout_and_message() -> None:
    error, slow = failed("error", "length: KeyError: 'gold'"), failed("timeout", "length: no result within 1 s")
    notices = Notices(parts=PARTS)
    said = list(notices.failures([group("s1-g0", 1.0, error, error), group("s1-g1", slow, error)]))
    assert said == [
        "first reward/status.error of own:length, rollout s1-g0/1: length: KeyError: 'gold'",
        "first reward/status.timeout of own:length, rollout s1-g1/0: length: no result within 1 s",
    ]
    assert list(notices.failures([group("s2-g0", error, slow)])) == []


def test_failures_of_sampling_name_reason_prompt_and_detail() -> None:
    made = group("s1-g0", None, None)
    broken = replace(
        made.rollouts[1],
        failure="prompt_not_encodable",
        failure_detail="rows.jsonl:8: ×",
        segments=(),
        prompt_id="train-7",
    )
    said = list(Notices(parts=PARTS).failures([replace(made, rollouts=(made.rollouts[0], broken))]))
    assert said == ["first rollout/failure.prompt_not_encodable, rollout s1-g0/1, prompt train-7: rows.jsonl:8: ×"]


def test_step_all_truncated_is_said_once() -> None:
    notices = Notices(parts=PARTS)
    assert list(notices.step({"rollout/truncated": 0.99})) == []
    (said,) = notices.step({"rollout/truncated": 1.0})
    assert "(rollout/truncated = 1): raise it" in said
    assert list(notices.step({"rollout/truncated": 1.0})) == []


def test_step_without_spread_is_said_after_so_many_in_a_row_and_once() -> None:
    flat = {"reward/groups_no_spread": 0.75, "reward/groups_unusable": 0.25}
    notices = Notices(parts=PARTS)
    before = [*[flat] * (PATIENCE - 1), {"reward/groups_no_spread": 0.75}, *[flat] * (PATIENCE - 1)]
    assert [text for metrics in before for text in notices.step(metrics)] == []
    (said,) = notices.step(flat)
    assert f"in {PATIENCE} steps no group had two different rewards (reward/groups_no_spread = 1)" in said
    assert [text for _ in range(2 * PATIENCE) for text in notices.step(flat)] == []


def test_task_of_one_row_is_said() -> None:
    assert list(Notices(parts=PARTS).task(2)) == []
    (said,) = Notices(parts=PARTS).task(1)
    assert "there is one training row" in said
