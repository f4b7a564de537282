"""Where the answer stands, and which texts are one written-out number."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.final_answer import after_marker, gold_answer, last_boxed, plain_number
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
    ],
)
def test_last_boxed_text_gives_the_last_complete_box(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("51", Fraction(51)),
        ("-51", Fraction(-51)),
        ("− 51", Fraction(-51)),
        ("+51.0", Fraction(51)),
        (".5", Fraction(1, 2)),
        ("51.", Fraction(51)),
        ("1,234,567", Fraction(1234567)),
        ("1{,}000", Fraction(1000)),
        ("2/4", Fraction(1, 2)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"\dfrac{-1}{4}", Fraction(-1, 4)),
        ("$51$", Fraction(51)),
        (r"\$51", Fraction(51)),
        (r"x = 5", Fraction(5)),
        (r"12 \text{ cm}", Fraction(12)),
        (r"90^\circ", Fraction(90)),
        ("50%", Fraction(50)),
    ],
)
def test_plain_number_written_out_number_gives_its_exact_value(text, expected):
    assert plain_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "51 52",
        "5 1",
        "50+1",
        "3^2",
        "10!",
        "--5",
        "1/0",
        "1,23",
        "fifty",
        "51 or 52",
        "5.1.2",
        "1e9",
        "9" * 101,
        "٥١",
    ],
)
def test_plain_number_anything_else_gives_none(text):
    assert plain_number(text) is None


@given(st.text(alphabet="0123456789.,/-+ $%\\{}=x", max_size=40))
def test_plain_number_any_text_gives_a_fraction_or_none(text):
    value = plain_number(text)
    assert value is None or isinstance(value, Fraction)


@given(st.text(alphabet="\\boxed{} 5", max_size=60))
def test_last_boxed_any_text_gives_a_piece_with_balanced_braces(text):
    found = last_boxed(text)
    assert found is None or (found in text and found.count("{") == found.count("}"))


def test_gold_answer_missing_names_what_is_there():
    with pytest.raises(ValueError, match=r"under 'answer'; got \['solution'\]"):
        gold_answer(RewardRequest(prompt_text="", response_text="", answer={"solution": 1}))
