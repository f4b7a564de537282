"""Unicode's digits, signs and spaces become ASCII and LaTeX."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.characters import in_ascii


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("−１½", r"-1\frac{1}{2}"),
        ("×10⁻³", r"\times 10^{-3}"),
        ("1101₂", "1101_{2}"),
        ("⁵⁄₂", r"\frac{5}{2}"),
        ("1\u202f000\u200b", "1 000"),
        ("𝐱＝𝟓", "x=5"),
        ("5㎡", "5 m^2 "),
        ("㎧", " m/s"),
        ("＄5", r"\$5"),
        ("⅟9", "1/9"),
        ("\u202e15", "\u202e15"),
        ("五", "五"),
    ],
)
def test_in_ascii_signs(text, expected):
    assert in_ascii(text) == expected


def test_in_ascii_every_decimal_digit_of_unicode():
    digits = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) == "Nd"]
    assert len(digits) > 600
    assert [in_ascii(digit) for digit in digits] == [str(unicodedata.decimal(digit)) for digit in digits]


@given(st.text(st.characters(max_codepoint=127)))
def test_in_ascii_leaves_ascii_alone(text):
    assert in_ascii(text) == text


@given(st.text())
def test_in_ascii_is_done_after_one_pass(text):
    assert in_ascii(in_ascii(text)) == in_ascii(text)
