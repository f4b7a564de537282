"""The page of rollouts: that it holds what it says, and that no text of a model can become anything but text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.report.page import embedded_json, write_rollout_report
from samepath.rl.report.page_choice import PageLimits
from samepath.rl.report.page_conversation import texts
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from tests.rl.tracked_conversation import MESSAGES, SEGMENTS, tracked_conversation

ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&lt;\u2028<!--@TITLE@'


def tracked(step: int, group: int, sample: int, **changes: Any) -> TrackedRollout:
    values: dict[str, Any] = {"prompt_text": f"prompt {group}", "response_text": "answer", "reward": 0.5}
    return TrackedRollout(
        **{**values, "step": step, "group_id": f"s{step}-g{group}", "sample_index": sample, **changes}
    )


def write(folder: Path, rollouts: list[TrackedRollout]) -> None:
    sink = JsonlSink(folder)
    for step in sorted({one.step for one in rollouts}):
        sink.log_rollouts(step, [one for one in rollouts if one.step == step])


class Page(HTMLParser):
    """Collects scripts, styles and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.policy = ""
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._tag = tag
        self.loads += [name for name, _ in attrs if name in ("src", "href", "style", "action") or name.startswith("on")]
        if tag in self.inside:
            self.inside[tag].append("")
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in self.inside:
            self.inside[self._tag][-1] += data


def data_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Page(path.read_text(encoding="utf-8")).inside["script"][0])
    return data


def written(folder: Path, tracked_ones: list[TrackedRollout], **limits: int) -> dict[str, Any]:
    """The data of the page of these rollouts."""
    write(folder, tracked_ones)
    held = write_rollout_report(folder / "rollouts", folder / "r.html", PageLimits(**limits))
    data = data_of(folder / "r.html")
    assert {len(column) for column in data["columns"].values()} == {held}
    return data


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_page_hostile_text_stays_data_and_nothing_is_loaded(tmp_path: Path) -> None:
    run_dir = tmp_path / "<u>run@DATA@"
    said = ({"role": "user", "content": ATTACK}, {"role": "tool", "content": ATTACK})
    attacked = tracked(
        1, 0, 0, messages=said, problems=(ATTACK,), response_text=ATTACK, prompt_text=ATTACK, gold=ATTACK, dataset=ATTACK, reward_parts={ATTACK: 1.0},
        reward_detail=ATTACK, tokens=(ATTACK,), sampler_logprobs=(-1.0,), kl_tokens=(0.0,),
    )  # fmt: skip
    data = written(run_dir, [attacked])
    text = (run_dir / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.inside["script"]) == 2
    assert page.loads == []
    assert {"img", "u", "link", "iframe"} & set(page.tags) == set()
    assert data["columns"]["response_text"] == [ATTACK]
    assert data["columns"]["tokens"] == [[ATTACK]]
    assert [message["content"] for message in data["columns"]["messages"][0]] == [ATTACK, ATTACK]
    assert data["prompts"] == [{"dataset": ATTACK, "text": ATTACK, "gold": ATTACK, "left_out": 0}]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text)


def test_page_allows_its_own_script_and_style_alone(tmp_path: Path) -> None:
    written(tmp_path, [tracked(1, 0, 0)])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.policy.split("; ") == [
        "default-src 'none'",
        f"script-src {sha256(page.inside['script'][1])}",
        f"style-src {sha256(page.inside['style'][0])}",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@given(st.text(st.characters()))
def test_embedded_json_any_text_cannot_leave_the_script_and_comes_back(text: str) -> None:
    embedded = embedded_json({"text": text})
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {"text": text}


def test_page_holds_every_rollout_of_every_step(tmp_path: Path) -> None:
    rollouts = [
        tracked(step, group, sample, reward=step + sample / 8)
        for step in (1, 2, 100_000, 99_999)
        for group in range(3)
        for sample in range(4)
    ]
    data = written(tmp_path, rollouts)
    assert data["held"] == ["All 48 rollouts of 4 steps are here."]
    assert data["which"] == ""
    columns = data["columns"]
    shown = zip(columns["step"], columns["group_id"], columns["sample_index"], columns["reward"], strict=True)
    in_order = sorted(rollouts, key=lambda one: one.step)
    assert list(shown) == [(one.step, one.group_id, one.sample_index, float(f"{one.reward:.4g}")) for one in in_order]
    assert [data["prompts"][index]["text"] for index in columns["prompt"]] == [one.prompt_text for one in in_order]
    assert len(data["prompts"]) == 3


def test_page_of_too_many_rollouts_holds_whole_steps_evenly_spread_and_says_which(tmp_path: Path) -> None:
    data = written(tmp_path, [tracked(step, 0, sample) for step in range(1, 12) for sample in range(2)], rollouts=7)
    assert data["columns"]["step"] == [1, 1, 6, 6, 11, 11]
    assert data["held"][0].startswith("6 of 22 rollouts are here: all of 3 of 11 steps, evenly spread.")
    assert data["which"] == " 1, 6, 11"


def test_page_of_one_step_too_large_holds_its_first_rollouts_and_says_so(tmp_path: Path) -> None:
    data = written(tmp_path, [tracked(4, 0, sample) for sample in range(9)], rollouts=7)
    assert data["columns"]["sample_index"] == list(range(7))
    assert data["held"][0].startswith("7 of 9 rollouts are here: the first 7 of step 4.")


def test_page_of_much_text_holds_what_fits(tmp_path: Path) -> None:
    texts = {"prompt_text": "p" * 10, "response_text": "r" * 90}
    data = written(tmp_path, [tracked(step, 0, 0, **texts) for step in (1, 2, 3)], chars=200)
    assert data["columns"]["step"] == [1, 3]


def test_page_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    data = written(
        tmp_path, [tracked(1, 0, 0, response_text="r" * 31, prompt_text="p" * 25), tracked(1, 1, 0)], text_chars=20
    )
    assert data["columns"]["response_text"] == ["r" * 20, "answer"]
    assert data["columns"]["response_left_out"] == [11, 0]
    assert (data["prompts"][0]["text"], data["prompts"][0]["left_out"]) == ("p" * 20, 5)
    assert data["held"][1] == "Of 1 rollouts a text is cut after 20 characters, and says so."


def with_tokens(step: int, sample: int, length: int, reward: float) -> TrackedRollout:
    values = {"sampler_logprobs": (-0.123456,) * length, "kl_tokens": (0.1,) * length}
    return tracked(step, 0, sample, tokens=("a",) * length, reward=reward, **values)


def test_page_token_values_are_kept_rounded_worst_first_as_far_as_they_fit(tmp_path: Path) -> None:
    rollouts = [
        with_tokens(1, 0, 4, 0.9),
        with_tokens(1, 1, 4, 0.1),
        with_tokens(1, 2, 6, 0.0),
        with_tokens(2, 0, 4, float("nan")),
    ]
    data = written(tmp_path, rollouts, tokens=9, tokens_of_one=5)
    assert [len(tokens) for tokens in data["columns"]["tokens"]] == [0, 4, 0, 4]
    assert [len(values) for values in data["columns"]["kl_tokens"]] == [0, 4, 0, 4]
    assert data["columns"]["sampler_logprobs"][1] == [-0.1235] * 4
    assert data["held"][1].startswith(
        "Values for each token are here for 2 of them, worst first: at most 9 tokens in all"
    )


def test_page_holds_a_conversation_with_its_results_beside_their_calls(tmp_path: Path) -> None:
    columns = written(tmp_path, [tracked_conversation(), tracked(1, 1, 0)])["columns"]
    first, alone = columns["messages"]
    assert alone == []
    assert [message["role"] for message in first] == [message["role"] for message in MESSAGES]
    assert [message.get("call") for message in first] == [None, None, 0, None, None, 1, None, 2]
    assert first[2]["calls"] == [["get", '{"key": "C"}'], ["get", '{"key": "K"}']]
    assert first[2]["reasoning"] == "Two keys."
    assert [message.get("record") for message in first[3:5]] == [
        {"name": "get", "error": "", "seconds": 0.25},
        {"name": "get", "error": "timeout", "seconds": 0.5},
    ]
    segments, none = columns["segments"]
    assert none == []
    assert [(segment["epoch"], segment["kinds"]) for segment in segments] == [(0, "sccstttscstt"), (1, "sccsrrscstt")]
    assert segments[0]["tokens"] == list(SEGMENTS[0].tokens)
    assert segments[1]["calls"] == [[2, 9, 11, "act", "stop", 0.75]]
    assert columns["tokens"][0] == [], "they stand in the segments"
    assert columns["sampler_logprobs"][0] == list(tracked_conversation().sampler_logprobs)
    assert columns["problems"] == [["empty_reasoning"], []]


def test_page_cuts_and_counts_the_texts_of_a_conversation(tmp_path: Path) -> None:
    """It read 23 tokens."""
    data = written(tmp_path, [tracked_conversation()], text_chars=8, tokens_of_conversation=23)
    said = data["columns"]["messages"][0]
    assert (said[0]["content"], said[0]["left_out"]) == ("You keep", 9)
    assert (said[2]["calls"][1], said[2]["left_out"]) == (["get", '{"key": '], 1 + 2 * 4)
    assert said[4]["record"]["error"] == "timeout", "the record is found by the whole text"
    assert data["held"][1] == "Of 1 rollouts a text is cut after 8 characters, and says so."
    assert len(data["columns"]["segments"][0]) == 2


def test_page_leaves_the_tokens_of_a_long_conversation_out_and_says_so(tmp_path: Path) -> None:
    data = written(tmp_path, [tracked_conversation()], tokens_of_conversation=22)
    assert data["columns"]["segments"] == [[]]
    assert data["columns"]["sampler_logprobs"] == [[]]
    assert len(data["columns"]["messages"][0]) == 8
    assert data["held"][1].endswith("and 2,000 of one answer or 22 of a conversation.")


def test_page_counts_the_texts_of_conversations_as_it_chooses_steps(tmp_path: Path) -> None:
    rollouts = [tracked_conversation(step=step) for step in (1, 2, 3)]
    chars = sum(len(text) for text in ("C plus K?", "25", *texts(rollouts[0])))
    assert chars > 100
    assert written(tmp_path / "fits", rollouts, chars=3 * chars)["columns"]["step"] == [1, 2, 3]
    assert written(tmp_path / "not", rollouts, chars=3 * chars - 1)["columns"]["step"] == [1, 3]


def test_page_of_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="step-"):
        write_rollout_report(tmp_path, tmp_path / "r.html")
