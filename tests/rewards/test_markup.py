"""Marks around a whole answer are taken off; marks within it are not."""

import pytest

from samepath.rewards.markup import without_markup


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("51", "51"),
        ("**51**", "51"),
        ("***51***", "51"),
        ("**`51`**", "51"),
        ("“51”", "51"),
        ("<b><i>51</i></b>", "51"),
        (r"\begin{aligned} x &= 51 \end{aligned}", " x = 51 "),
        (r"51 \\", "51 "),
        ("**51** or **52**", "**51** or **52**"),
        ('"a" or "b"', '"a" or "b"'),
        ("~~51~~", "~~51~~"),
        ("2**3", "2**3"),
        (r"\begin{pmatrix} 5 & 1 \end{pmatrix}", r"\begin{pmatrix} 5 & 1 \end{pmatrix}"),
        ("**", "**"),
        ("", ""),
    ],
)
def test_without_markup_takes_off_what_encloses_all(text, expected):
    assert without_markup(text) == expected
