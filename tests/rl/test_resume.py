"""Where a run goes on, what may be another by then, and what in its folder gives way; no run is needed for that."""

import json
from pathlib import Path

import pytest

from samepath.model.manifest import seal
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.resume import ResumeError, plan_resume, rewind
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import RunState


def folder(recipe: Recipe, phase: str, checkpoints: tuple[int, ...], steps: int) -> Path:
    """The folder of a run that did `steps` steps: a line of metrics and a file of rollouts each, a failure in each."""
    run_dir = recipe.run_dir
    (run_dir / "rollouts").mkdir(parents=True)
    (run_dir / "reference").mkdir()
    (run_dir / "evaluations").mkdir()
    (run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    state = RunState(phase=phase, counters={})
    for step in range(steps + 1):
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(f"line of step {step}\n")
        if step:
            (run_dir / "rollouts" / f"step-{step:05d}.jsonl").write_text("")
            state.counters["reward/status.error"] = float(step)
        (run_dir / "evaluations" / f"step-{step:06d}.json").write_text("{}")
        if step in (0, *checkpoints):
            state.mark(run_dir, step, keep=9)
    for step in checkpoints:
        made = run_dir / "checkpoints" / f"step-{step:06d}"
        made.mkdir(parents=True)
        (made / "step.json").write_text(json.dumps({"step": step, "version": step}))
        seal(made)
    state.save(run_dir)
    return run_dir


def lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()


def evaluated(run_dir: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (run_dir / "evaluations").iterdir())


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "rollouts").iterdir())


def test_resume_goes_on_at_the_newest_checkpoint_and_counts_what_came_later_once(tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=9")
    run_dir = folder(recipe, "training", (2, 4), steps=6)
    plan = plan_resume(recipe, run_dir, None)
    assert (plan.source, plan.first_step, plan.finished) == (run_dir / "checkpoints" / "step-000004", 4, False)
    assert rewind(plan, run_dir) == []
    assert lines(run_dir) == [f"line of step {step}" for step in range(5)]
    assert files(run_dir) == [f"step-{step:05d}.jsonl" for step in range(1, 5)]
    assert evaluated(run_dir) == [0, 1, 2, 3, 4]
    assert RunState.load(run_dir).counters == {"reward/status.error": 4.0}
    assert not list(run_dir.glob("set-aside-*"))


def test_resume_before_the_first_checkpoint_goes_on_at_the_reference(tiny_recipe) -> None:
    recipe = tiny_recipe()
    run_dir = folder(recipe, "training", (), steps=2)
    plan = plan_resume(recipe, run_dir, None)
    assert (plan.source, plan.first_step) == (run_dir / "reference", 0)
    rewind(plan, run_dir)
    assert (lines(run_dir), files(run_dir)) == (["line of step 0"], [])
    assert RunState.load(run_dir).counters == {}


def test_resume_in_the_cold_start_begins_again(tiny_recipe) -> None:
    recipe = tiny_recipe()
    run_dir = folder(recipe, "cold start", (), steps=0)
    plan = plan_resume(recipe, run_dir, None)
    assert (plan.source, plan.first_step) == (None, 0)
    rewind(plan, run_dir)
    assert lines(run_dir) == []
    with pytest.raises(ResumeError, match="no checkpoint of step 2"):
        plan_resume(recipe, run_dir, 2)


def test_resume_at_a_step_sets_later_ones_aside_and_goes_on_there_ever_after(tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=6")
    run_dir = folder(recipe, "finished", (2, 4, 6), steps=6)
    (run_dir / "summary.json").write_text("{}")
    plan = plan_resume(recipe, run_dir, 2)
    said = rewind(plan, run_dir)
    aside = run_dir / "set-aside-1"
    assert str(aside) in said[0]
    assert sorted(path.name for path in (aside / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    kept = ["checkpoints", "evaluations", "metrics.jsonl", "rollouts", "summary.json"]
    assert sorted(path.name for path in aside.iterdir()) == kept
    assert (evaluated(aside), evaluated(run_dir)) == ([3, 4, 5, 6], [0, 1, 2])
    assert files(aside) == [f"step-{step:05d}.jsonl" for step in range(3, 7)]
    assert (len(lines(aside)), len(lines(run_dir))) == (7, 3)
    assert files(run_dir) == ["step-00001.jsonl", "step-00002.jsonl"]
    again = plan_resume(recipe, run_dir, None)
    assert (again.first_step, again.state.phase, again.state.counters) == (2, "training", {"reward/status.error": 2.0})


@pytest.mark.parametrize("step", [1, 3, 7])
def test_resume_at_a_step_without_a_checkpoint_names_those_there_are(step: int, tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=9")
    run_dir = folder(recipe, "training", (2, 4), steps=4)
    with pytest.raises(ResumeError, match=rf"\[0, 2, 4\].*got {step}"):
        plan_resume(recipe, run_dir, step)


def test_resume_of_a_finished_run_has_nothing_to_do_unless_it_is_asked_for_more(tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=4")
    run_dir = folder(recipe, "finished", (4,), steps=4)
    (run_dir / "summary.json").write_text("{}")
    assert plan_resume(recipe, run_dir, None).finished
    assert not plan_resume(recipe, run_dir, 4).finished
    longer = recipe_of_run(run_dir, ["rl.steps=8", "evaluation.every=3", "checkpoint.keep=1"])
    plan = plan_resume(longer, run_dir, None)
    assert not plan.finished
    said = rewind(plan, run_dir)
    assert said[:3] == [
        "changed: rl.steps 4 → 8",
        "changed: evaluation.every 0 → 3",
        "changed: checkpoint.keep 8 → 1",
    ]
    assert (run_dir / "set-aside-1" / "summary.json").exists()
    assert recipe_of_run(run_dir).rl.steps == 8
    assert RunState.load(run_dir).phase == "training"
    assert len(lines(run_dir)) == 5


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "rl.group_size=8",
        "optimizer.lr=0.1",
        "evaluation.samples=2",
        "reward.timeout_s=1",
        "sampling.top_p=1.0",
    ],
)
def test_resume_refuses_what_would_change_the_steps_that_are_done(override: str, tiny_recipe) -> None:
    run_dir = folder(tiny_recipe(), "training", (2,), steps=2)
    before = (run_dir / "run.json").read_text()
    with pytest.raises(ResumeError, match=f"{override.partition('=')[0]} would have changed the steps that are done"):
        plan_resume(recipe_of_run(run_dir, [override]), run_dir, None)
    assert (run_dir / "run.json").read_text() == before


def test_resume_for_more_steps_is_refused_where_the_learning_rate_falls_over_all_of_them(tiny_recipe) -> None:
    run_dir = folder(tiny_recipe("rl.steps=4", "optimizer.schedule=cosine"), "training", (2,), steps=2)
    with pytest.raises(ResumeError, match="rl.steps would have changed the steps that are done.*optimizer.schedule"):
        plan_resume(recipe_of_run(run_dir, ["rl.steps=8"]), run_dir, None)
    assert plan_resume(recipe_of_run(run_dir), run_dir, None).first_step == 2


def test_resume_at_a_step_leaves_no_later_checkpoint_that_was_being_replaced(tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=6")
    run_dir = folder(recipe, "training", (2, 4), steps=4)
    later = run_dir / "checkpoints" / "step-000004"
    later.rename(later.with_name(".step-000004.replaced"))
    rewind(plan_resume(recipe, run_dir, 2), run_dir)
    assert plan_resume(recipe, run_dir, None).first_step == 2


def test_resume_for_fewer_steps_than_are_done_is_refused(tiny_recipe) -> None:
    run_dir = folder(tiny_recipe("rl.steps=6"), "training", (4,), steps=4)
    with pytest.raises(ResumeError, match="at least the 4 steps .* got 3"):
        plan_resume(recipe_of_run(run_dir, ["rl.steps=3"]), run_dir, None)


def test_resume_in_a_folder_that_was_moved_goes_on_there(tiny_recipe, tmp_path: Path) -> None:
    run_dir = folder(tiny_recipe("rl.steps=6"), "training", (4,), steps=4)
    moved = tmp_path / "elsewhere" / "other"
    moved.parent.mkdir()
    run_dir.rename(moved)
    plan = plan_resume(recipe_of_run(moved), moved, None)
    assert plan.changes == ()
    assert plan.recipe.run_dir == moved
