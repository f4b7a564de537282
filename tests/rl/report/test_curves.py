"""The training curves and the page of rollouts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.report.curves import embedded_json, plot_training, write_rollout_report
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.tracked_rollout import TrackedRollout

ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&lt;\u2028'


def tracked(step: int, group: int, sample: int, **changes: Any) -> TrackedRollout:
    values: dict[str, Any] = {"prompt_text": f"prompt {group}", "response_text": "answer", "reward": 0.5}
    return TrackedRollout(
        **{**values, "step": step, "group_id": f"s{step}-g{group}", "sample_index": sample, **changes}
    )


def write(folder: Path, rollouts: list[TrackedRollout]) -> None:
    sink = JsonlSink(folder)
    for one in rollouts:
        sink.log_rollouts(one.step, [one])


class Page(HTMLParser):
    """Collects scripts and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag == "script"
        self.loads += [name for name, _ in attrs if name in ("src", "href", "onerror")]
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Page(page).scripts[0])
    return data


def test_report_hostile_text_stays_data_and_nothing_is_loaded(tmp_path: Path) -> None:
    run_dir = tmp_path / "<u>run"
    write(
        run_dir, [tracked(1, 0, 0, response_text=ATTACK, prompt_text=ATTACK, gold=ATTACK, reward_parts={ATTACK: 1.0})]
    )
    out = tmp_path / "report.html"
    assert write_rollout_report(run_dir / "rollouts", out) == 1
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.scripts) == 2
    assert page.loads == []
    assert "img" not in page.tags
    assert "u" not in page.tags
    assert data_of(text)["steps"][0]["rollouts"][0]["response_text"] == ATTACK
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in text


@given(st.text())
def test_embedded_json_any_text_cannot_leave_the_script_and_comes_back(text: str) -> None:
    embedded = embedded_json({"text": text})
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {"text": text}


def test_report_long_run_shows_first_and_last_step_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, [tracked(step, 0, 0) for step in range(1, 12)])
    write_rollout_report(tmp_path / "rollouts", tmp_path / "r.html", max_steps=3)
    data = data_of((tmp_path / "r.html").read_text())
    assert [step["step"] for step in data["steps"]] == [1, 6, 11]
    assert data["summary"] == "3 of 11 steps and 3 of their 3 rollouts are shown."


def test_report_steps_beyond_five_digits_stay_in_order(tmp_path: Path) -> None:
    write(tmp_path, [tracked(step, 0, 0) for step in (100_000, 99_999)])
    write_rollout_report(tmp_path / "rollouts", tmp_path / "r.html")
    assert [step["step"] for step in data_of((tmp_path / "r.html").read_text())["steps"]] == [99_999, 100_000]


def test_report_many_rollouts_keeps_whole_groups(tmp_path: Path) -> None:
    write(tmp_path, [tracked(1, group, sample) for group in range(3) for sample in range(4)])
    assert write_rollout_report(tmp_path / "rollouts", tmp_path / "r.html", max_rollouts=9) == 8
    (step,) = data_of((tmp_path / "r.html").read_text())["steps"]
    assert [(r["group_id"], r["sample_index"]) for r in step["rollouts"]] == [
        (f"s1-g{group}", sample) for group in range(2) for sample in range(4)
    ]


def test_report_token_values_are_kept_rounded_and_long_answers_lose_them(tmp_path: Path) -> None:
    short = tracked(1, 0, 0, tokens=("a", "b"), sampler_logprobs=(-0.123456, -2.0), kl_tokens=(0.0, 0.1))
    long = tracked(1, 0, 1, tokens=("a",) * 1001, sampler_logprobs=(-1.0,) * 1001, kl_tokens=(0.0,) * 1001)
    write(tmp_path, [short, long])
    write_rollout_report(tmp_path / "rollouts", tmp_path / "r.html")
    first, second = data_of((tmp_path / "r.html").read_text())["steps"][0]["rollouts"]
    assert first["sampler_logprobs"] == [-0.1235, -2.0]
    assert second["tokens"] == second["sampler_logprobs"] == []


def test_report_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="step-"):
        write_rollout_report(tmp_path, tmp_path / "r.html")


def test_plot_training_draws_what_the_run_has(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for step in range(1, 4):
        values = {"reward/mean": step / 3, "kl/sampler_k3": 0.0, "kl/reference_unbiased": float("nan")}
        sink.log_metrics(step, values)
    drawn = plot_training(tmp_path / "metrics.jsonl", tmp_path / "plots" / "t.png")
    assert drawn == ["reward/mean", "kl/sampler_k3"]
    height, width = matplotlib.image.imread(tmp_path / "plots" / "t.png").shape[:2]
    assert width > 2 * height


def test_plot_training_exact_and_drifting_steps_share_a_panel(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for step, drift in enumerate((0.0, 1e-7, 1e-3, -1e-9)):
        sink.log_metrics(step, {"kl/sampler_k3": drift, "kl/sampler_k3_numerics": 0.0})
    drawn = plot_training(tmp_path / "metrics.jsonl", tmp_path / "t.png")
    assert drawn == ["kl/sampler_k3", "kl/sampler_k3_numerics"]


def test_plot_training_run_without_known_metrics_is_refused(tmp_path: Path) -> None:
    JsonlSink(tmp_path).log_metrics(1, {"other": 1.0})
    with pytest.raises(ValueError, match="reward/mean"):
        plot_training(tmp_path / "metrics.jsonl", tmp_path / "t.png")
