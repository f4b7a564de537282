"""The page of a run: its pictures with their meanings, and how often it is written."""

import errno
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.diagnostics.meanings import meaning_of
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report import report as reporting
from samepath.rl.report.report import LiveReport, write_report
from samepath.rl.report.report_panels import SECTIONS, drawn_sections
from samepath.rl.run_state import Best, RunState
from samepath.rl.tracking.alert import Alert
from tests.rl.compare.made_runs import made_run

STEPS = {
    step: {
        "reward/mean": 0.1 * step,
        "reward/part.answer": 0.2,
        "kl/reference_unbiased": 0.01 * step,
        "kl/reference_full": 0.02 * step,
        "policy/off_policy_p50": 0.0,
        "policy/off_policy_max": 0.04,
        "routing/flip_rate.layer_10": 0.25,
        "routing/flip_rate.layer_02": 0.125,
        "time/sampling_s": 1.0,
        "time/learning_s": 2.0,
        "time/step_s": 3.0,
        **({"eval/accuracy": 0.1 * step} if step % 2 == 0 else {}),
    }
    for step in range(5)
}


def test_every_metric_of_a_picture_has_a_meaning() -> None:
    names = [name for panels in SECTIONS.values() for panel in panels for name in panel.names]
    assert len(names) > 60
    known = {"routing": "3", "time": "learning"}
    examples = [name.replace("*", known.get(name.partition("/")[0], "some")) for name in names]
    assert [name for name in examples if meaning_of(name) is None] == []


def test_sections_hold_what_the_run_has_each_with_its_meaning() -> None:
    sections = dict(drawn_sections(STEPS, 0.05))
    assert [panel.title for panel in sections["Does it learn?"]] == ["Held-out accuracy", "Reward"]
    assert "Candidates" not in sections
    (kl,) = sections["How far from the reference?"]
    assert [line.names for line in kl.meanings] == ["kl/reference_unbiased", "kl/reference_full"]
    assert kl.meanings[0].text == "KL(π‖π_ref) by the unbiased estimate (eq. 7)"
    assert "raise rl.objective.kl.beta" in kl.meanings[0].healthy
    (flips,) = sections["Routes and keys"]
    assert flips.meanings[0].names == "routing/flip_rate.layer_02 … layer_10"
    assert dict(drawn_sections({}, None)) == {}


def test_datasets_and_memory_have_pictures_where_there_are_any() -> None:
    steps = {
        step: {f"dataset/{name}/{what}": 0.5 for name in ("easy", "hard") for what in ("reward_mean", "token_share")}
        | {"memory/driver_gib": 1.0}
        for step in (1, 2)
    }
    sections = dict(drawn_sections(steps, None))
    learned, memory = sections["Does it learn?"], sections["Learner and time"]
    assert [panel.title for panel in learned] == ["Reward by dataset", "What is learned from, by dataset"]
    assert all(panel.meanings for panel in learned)
    assert [panel.title for panel in memory] == ["Memory"]


def test_delta_is_drawn_where_there_is_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "samepath.rl.report.report_panels.line_svg", lambda lines, **options: seen.append(options["limits"]) or b""
    )
    list(drawn_sections(STEPS, 0.05))
    assert [("δ = 0.05", 0.05)] in seen
    seen.clear()
    list(drawn_sections(STEPS, None))
    assert all(limits == [] for limits in seen)


def test_layers_stand_in_their_order_and_the_step_is_no_part_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def noted(kind: str) -> Any:
        return lambda lines, **options: seen.setdefault(kind, [line.label for line in lines]) and b""

    monkeypatch.setattr("samepath.rl.report.report_panels.heat_svg", noted("heat"))
    monkeypatch.setattr("samepath.rl.report.report_panels.stacked_svg", noted("stacked"))
    list(drawn_sections(STEPS, None))
    assert seen == {"heat": ["2", "10"], "stacked": ["sampling", "learning"]}


def test_curves_that_end_alike_have_their_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "samepath.rl.report.report_panels.line_svg",
        lambda lines, **options: seen.append([line.label for line in lines]) or b"",
    )
    list(drawn_sections({1: {"rollout/tokens_per_s": 1.0, "learner/tokens_per_s": 2.0, "policy/entropy": 1.0}}, None))
    assert seen == [["entropy"], ["rollout/tokens_per_s", "learner/tokens_per_s"]]


@pytest.fixture
def made(tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a run with four steps on disk; its pictures are drawn."""
    recipe: Recipe = tiny_recipe("rl.steps=9")
    made_run(recipe, STEPS)
    monkeypatch.setattr(reporting, "drawn_sections", drawn_sections)
    return recipe


def test_page_says_how_the_run_stands_and_asks_for_nothing_from_outside(made: Recipe) -> None:
    path = write_report(made, RunState(best=Best(step=2, accuracy=0.2), gap_at_lag_0=0.25, seconds=75.0))
    text = path.read_text()
    assert path == made.run_dir / "report.html"
    for said in ("Step 4 of 9", "0.000 → 0.400", "0.200 at step 2", "1:15", "Time by phase", "Healthy:"):
        assert said in text
    assert text.count('<img src="data:image/svg+xml;base64,') == 6
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    with (made.run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "metrics": {"reward/mean": 1.0}}) + "\n")
    assert "Finished" in write_report(made, RunState()).read_text()


def test_page_shows_what_was_noticed_as_text(made: Recipe) -> None:
    alert = Alert(
        step=3, rule="no_spread", event="begins", seen="<b>no group</b> had spread", advice="look at rollouts/"
    )
    (made.run_dir / "alerts.jsonl").write_text(json.dumps(alert.plain()) + "\n")
    text = write_report(made, RunState(alerts={"no_spread": 3})).read_text()
    assert "&lt;b&gt;no group&lt;/b&gt; had spread" in text
    assert "look at rollouts/" in text
    assert "What was noticed" in text


def test_page_of_a_run_without_a_step_says_so(tiny_recipe: Any) -> None:
    recipe = tiny_recipe()
    recipe.run_dir.mkdir(parents=True)
    assert "No step is done yet" in write_report(recipe, RunState()).read_text()


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def live(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, took_s: float) -> tuple[LiveReport, Clock, list[float]]:
    clock, written = Clock(), list[float]()

    def write(recipe: Recipe, state: RunState) -> Path:
        written.append(clock.now)
        clock.now += took_s
        return recipe.run_dir

    monkeypatch.setattr(reporting, "write_report", write)
    return LiveReport(recipe=recipe, state=RunState(), started=0.0, clock=clock), clock, written


@pytest.mark.parametrize("share", ["0.02", "0.1", "0"])
def test_pages_take_their_share_of_the_time_and_no_more(
    share: str, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page takes 1 s, a step 4 s, for 400 s and a little."""
    report, clock, written = live(tiny_recipe(f"tracking.report_share={share}"), monkeypatch, took_s=1.0)
    while clock.now <= 400:
        clock.now += 4.0
        report.after()
    assert report.spent_s == len(written)
    assert all(later - earlier >= 1 / float(share) for earlier, later in itertools.pairwise(written))
    assert report.spent_s <= float(share) * clock.now
    # Each comes at the next step that is due, 4 s later at most.
    assert len(written) >= (400 // (1 / float(share) + 4) if float(share) else 0)


def test_full_disk_ends_the_run_and_another_error_ends_the_pages(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def refused(number: int) -> Any:
        def write(recipe: Recipe, state: RunState) -> Path:
            asked.append(number)
            raise OSError(number, "refused")

        return write

    report = LiveReport(recipe=tiny_recipe(), state=RunState(), started=-60.0, clock=Clock())
    monkeypatch.setattr(reporting, "write_report", refused(errno.ENOSPC))
    with pytest.raises(OSError, match="refused"):
        report.after()
    monkeypatch.setattr(reporting, "write_report", refused(errno.EACCES))
    with caplog.at_level(logging.WARNING, "samepath.report"):
        report.after()
        report.after()
    assert asked == [errno.ENOSPC, errno.EACCES]
    assert "report.html is not kept up to date" in caplog.text
