"""Where the answer stands, and which right answers are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.final_answer import after_marker, final_text, gold_answer, last_boxed, without_thinking
from samepath.rewards.request import RewardRequest


@pytest.mark.parametrize(
    ("text", "marker", "expected"),
    [
        ("17+34=51 #51", "#", "51"),
        ("#1 #2", "#", "2"),
        (" 51\n", "", "51"),
        ("51", "#", None),
        ("51#", "#", ""),
        ("Answer: 3\nAnswer: 4", "Answer:", "4"),
    ],
)
def test_after_marker_text_gives_what_follows_the_last_marker(text, marker, expected):
    assert after_marker(text, marker) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{51}", "51"),
        (r"\boxed{4}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and then \boxed{5", "4"),
        (r"\boxed {\{1, 2\}} }", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        ("51", None),
        (r"\boxed{51", None),
        (r"\fbox{51}", "51"),
        (r"\boxed{f = \left\{ 1 \right.}", r"f = \left\{ 1 \right."),
        (r"\boxed{1 \\{2}}", r"1 \\{2}"),
    ],
)
def test_last_boxed_text_gives_the_last_complete_box(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>A</think>B", "\nB"),
        ("A</think>B", "B"),
        ("A<think>B", "A"),
        ("A<think>B</think>C<Thinking>D</thinking>E", "A\nC\nE"),
        ("<think>A<think>B</think>C</think>D", "D"),
        ("<think>A, as <think> says</think>B", "\nB"),
        ("<thinker>A", "<thinker>A"),
        ("<reasoning>A</reasoning>B</thought>C", "C"),
    ],
)
def test_without_thinking_sections_are_left_out(text, expected):
    assert without_thinking(text) == expected


@pytest.mark.parametrize(
    ("prompt", "response", "marker", "expected"),
    [
        ("", " 51 ", "", "51"),
        ("", "<think>#1</think> #2", "#", "2"),
        ("", "#2 <think>#1</think>", "#", "2"),
        ("", "<think>#1", "#", None),
        ("2+2=<think>\n", "4", "", ""),
        ("2+2=<think>\n", "3</think>4", "", "4"),
        ("<think>2+2</think>", "4", "", "4"),
        ("", "1</think>2</think>3", "</think>", "3"),
        ("", "no end", "</think>", None),
        ("", "1</think>2<think>3", "</think>", "2"),
    ],
)
def test_final_text_thinking_and_markers(prompt, response, marker, expected):
    assert final_text(RewardRequest(prompt_text=prompt, response_text=response), marker) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "51", "#", "\n"]), max_size=12).map("".join))
def test_without_thinking_any_text_loses_every_tag_and_nothing_behind_the_last_one_that_closes(text):
    found = without_thinking(text)
    assert "think" not in found
    _, closed, rest = text.rpartition("</think>")
    assert found.endswith(rest) if closed and "<think>" not in rest else True


@given(st.text(alphabet="\\boxed{} 5", max_size=60))
def test_last_boxed_any_text_gives_a_piece_with_balanced_braces(text):
    found = last_boxed(text)
    unescaped = "" if found is None else re.sub(r"\\.", "", found)
    assert found is None or (found in text and unescaped.count("{") == unescaped.count("}"))


def test_gold_answer_missing_names_what_is_there():
    with pytest.raises(ValueError, match=r"under 'answer'; got \['solution'\]"):
        gold_answer(RewardRequest(prompt_text="", response_text="", answer={"solution": 1}))


@pytest.mark.parametrize("gold", [float("nan"), float("inf"), "NaN", "-inf", None])
def test_gold_answer_without_a_finite_value_is_refused(gold):
    with pytest.raises(ValueError, match="must"):
        gold_answer(RewardRequest(prompt_text="", response_text="", answer={"answer": gold}))


@pytest.mark.parametrize(
    ("gold", "text"), [(1e-7, "1e-07"), (2**64 + 1, "18446744073709551617"), (" 51\n", "51"), (True, "True")]
)
def test_gold_answer_is_the_text_of_the_value(gold, text):
    assert gold_answer(RewardRequest(prompt_text="", response_text="", answer={"answer": gold})) == text
