"""Run folders as a run leaves them, without running one."""

from collections.abc import Callable, Iterable
from pathlib import Path

from samepath.rl.alerts.alerts import Alerts
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_state import RECIPE_FILE, Phase, RunState
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.sink import RunStart, RunStatus
from samepath.rl.tracking.tracker import Tracker
from tests.rl.alerts.series import HEALTHY, Changes


class Attempt:
    """One start of a run: its steps are told to tracker and alerts as the loop does."""

    def __init__(self, recipe: Recipe, first_step: int = 0) -> None:
        self.recipe, self.run_dir = recipe, recipe.run_dir
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / RECIPE_FILE).write_text(dump_recipe(recipe))
        self.tracker = Tracker([JsonlSink(self.run_dir)])
        self.tracker.start(RunStart(run_name=recipe.name, recipe={}, recipe_yaml="", environment={}, run_id="r"))
        self.alerts = Alerts(recipe, self.tracker)
        self.said = self.alerts.go_on(self.run_dir, first_step)
        self.phase("training")

    def steps(self, steps: Iterable[int], changes: Callable[[int], Changes]) -> "Attempt":
        """Do these steps."""
        for step in steps:
            metrics = {**HEALTHY, **changes(step)}
            self.tracker.log_metrics(step, metrics)
            self.said += self.alerts.step(step, metrics)
        return self

    def phase(self, phase: Phase) -> None:
        """Say in run.json what the run is doing."""
        RunState(phase=phase).save(self.run_dir)

    def ended(self, status: RunStatus) -> Path:
        """End it in an orderly way; returns the run's folder."""
        self.tracker.finish(status)
        if status == "FINISHED":
            self.phase("finished")
        return self.run_dir
