"""Progress on a terminal and without one."""

import io
import math

import pytest
from rich.console import Console

from samepath.rl.report.progress import ProgressDisplay, format_duration, format_number, summary_table


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140, color_system=None)


def text_of(output: Console) -> str:
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


def test_display_without_terminal_prints_a_line_every_n_steps_and_the_last() -> None:
    output = console(terminal=False)
    with ProgressDisplay(total_steps=5, every=2, console=output) as display:
        for step in range(1, 6):
            display.phase("sampling")
            display.update(step, {"reward/mean": step / 10})
    lines = text_of(output).splitlines()
    assert lines[0] == "no terminal: one line every 2 steps"
    assert [line.split("  left")[0] for line in lines[1:]] == [
        "step 2/5  reward 0.2", "step 4/5  reward 0.4", "step 5/5  reward 0.5",
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_display_has_its_mark_on_every_line_and_tells_every_phase(terminal: bool) -> None:
    output, heard = console(terminal=terminal), list[str]()
    with ProgressDisplay(total_steps=2, mark="FAULTS ON PURPOSE", console=output) as display:
        display.phase("starting")
        display.tell(heard.append)
        display.phase("sampling")
        display.update(1, {"reward/mean": 0.1})
    assert heard == ["sampling"]
    assert "FAULTS ON PURPOSE  reward 0.1" in text_of(output)


def test_display_keeps_last_accuracy_on_steps_without_evaluation() -> None:
    output = console(terminal=False)
    with ProgressDisplay(total_steps=2, console=output) as display:
        display.update(1, {"eval/accuracy": 0.25, "reward/mean": 0.5, "rollout/tokens_per_s": 1234.0})
        display.update(2, {"reward/mean": math.nan})
    assert "step 2/2  reward –  accuracy 0.25  tokens/s 1,234" in text_of(output)


def test_display_shows_what_tells_a_healthy_run() -> None:
    output = console(terminal=False)
    metrics = {
        "rollout/truncated": 0.25,
        "rollout/length_mean": 12.5,
        "policy/gap_at_lag_0": 0.0,
        "policy/entropy": 1.25,
        "kl/reference_unbiased": 0.0123,
        "reward/mean": 0.5,
    }
    with ProgressDisplay(total_steps=1, console=output) as display:
        display.update(1, metrics)
    assert "step 1/1  reward 0.5  KL 0.0123  entropy 1.25  gap 0  length 12.5  truncated 0.25  left" in text_of(output)


def test_display_on_terminal_shows_step_numbers_and_phase() -> None:
    output = console(terminal=True)
    with ProgressDisplay(total_steps=30, done_steps=10, console=output) as display:
        display.phase("evaluating")
        display.update(12, {"reward/mean": 0.5, "kl/reference_unbiased": 0.0123})
        display.message("checkpoint [12] written")
    shown = text_of(output)
    assert "12/30" in shown
    assert "reward 0.5  KL 0.0123" in shown
    assert "evaluating" in shown
    assert "checkpoint [12] written" in shown


def test_display_error_inside_still_ends_the_live_display() -> None:
    output = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), ProgressDisplay(total_steps=3, console=output) as display:
        raise KeyboardInterrupt
    display.update(1, {})
    assert "step 1/3" in text_of(output)


def test_display_every_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        ProgressDisplay(total_steps=3, every=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.53124, "0.531"), (1234.5, "1,234"), (0.00002, "2.00e-05"), (0.0, "0"), (math.nan, "–"), (-12.3456, "-12.3")],
)
def test_format_number_known_values(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (123, "2:03"), (3723, "1:02:03"), (59.6, "1:00")])
def test_format_duration_known_values(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_summary_table_prints_brackets_as_they_are() -> None:
    output = console(terminal=False)
    summary_table({"reward [bold]": 0.123456, "checkpoint": "runs/[red]/step-3", "steps": 30}, console=output)
    shown = text_of(output)
    assert "reward [bold]" in shown
    assert "0.123 " in shown
    assert "runs/[red]/step-3" in shown
