"""What one call of each reward function shows: the run's own children, limits and data, on the right answer of a real row."""

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.settings import RewardSettings
from samepath.rl.tasks.row import TaskRow


def tried_rewards(settings: RewardSettings, row: TaskRow | None) -> str:
    """Load every function; with a row, call each once with its right answer as the response. Says what each gave.

    Raises RewardStartError for one that cannot be loaded, and ValueError for one whose call gives no usable number.
    """
    said, failed, isolation = [], [], ""
    for name, part in settings.parts.items():
        alone = settings.model_copy(update={"parts": {name: part}, "num_workers": 1})
        runner = RewardRunner(alone)
        try:
            isolation = "; ".join(runner.isolation.said())
            if row is None:
                runner.check()
                said.append(f"{name}: {part.function}")
                continue
            (score,) = runner.score([_request(row)])
        finally:
            runner.close()
        if score.status == "ok":
            values = ", ".join(f"{key} {value:g}" for key, value in score.parts.items())
            said.append(f"{name}: {part.function} gives {values}")
        else:
            failed.append(f"{part.function} ({score.status}): {score.detail}")
    if row is None:
        return f"{', '.join(said)}; {isolation}"
    where = f"the right answer alone as the response, row {row.where or row.row_id}"
    if failed:
        raise ValueError(f"called once with {where}, gives no usable number: {'; '.join(failed)}; {isolation}")
    return f"{', '.join(said)} (for {where}); {isolation}"


def _request(row: TaskRow) -> RewardRequest:
    response = str(row.answer.get("answer", ""))
    return RewardRequest(
        prompt_text=row.text,
        response_text=response,
        answer=row.answer,
        dataset=row.dataset,
        finish_reason="stop",
        num_tokens=max(len(response), 1),
        rollout_key="validate/0",
    )
