"""What reading every row of an evaluation set shows."""

from samepath.rl.evaluation.sets import AskedSet, seen_in_training
from samepath.rl.recipe.evaluation_rows import EnvironmentRows, HeldOutRows
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.survey import Survey
from samepath.rl.validate.finding import Finding


def set_findings(asked: AskedSet, found: Survey, recipe: Recipe) -> list[Finding]:
    """Rows that would fail, rows that are trained on, and a chat form that only one side has; the name of each is the set's.

    Raises ValueError if no row can be asked.
    """
    if not found.usable_held_out:
        raise ValueError(f"no row can be asked; {found.described()}")
    said = list(seen_in_training([asked]))
    if found.faults:
        said.append(f"{found.described()}. In the run their samples count as failed; mend them or leave them out")
    rows = recipe.evaluation.sets[asked.name].task
    task = recipe.task
    if isinstance(rows, HeldOutRows | EnvironmentRows) or isinstance(task, EnvironmentTask):
        pass
    elif rows.chat.enabled != task.chat.enabled:
        said.append(
            f"chat.enabled is {task.chat.enabled} in training and {rows.chat.enabled} here, so the model is measured in a form that it is "
            f"not trained in. Set evaluation.sets.{asked.name}.task.chat"
        )
    return [Finding(name=f"evaluation.sets.{asked.name}", outcome="warning", detail=f"{text}.") for text in said]


def described(asked: AskedSet, found: Survey) -> str:
    """The set in a line."""
    drawn, first = asked.sampling, asked.rows[0]
    samples = f"{asked.num_samples} responses each" if asked.num_samples > 1 else "1 response each"
    return (
        f"{len(asked.rows)} prompts of at most {found.longest} tokens, {samples} of at most {drawn.max_new_tokens} tokens at temperature "
        f"{drawn.temperature:g}{''.join(f', pass@{k}' for k in asked.pass_at)}; first prompt {first.text!r:.200}, "
        f"gold answer {first.answer.get('answer')!r:.40}"
    )
