"""Which words are units, and which units go together."""

import pytest

from samepath.rewards.unit import changes_number, go_together, read_unit
from samepath.rewards.unit_words import NO_UNITS, WORDS


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("", ()),
        (" cm", (("cm", 1),)),
        ("cm^(2)", (("cm", 2),)),
        (" square centimetres", (("cm", 2),)),
        (" cm squared", (("cm", 2),)),
        (" cm2", (("cm", 2),)),
        ('"m/s^(2)"', (("m", 1), ("s", -2))),
        ('["m"⁄"s"]', (("m", 1), ("s", -1))),
        (' "m" \\cdot "s" ^(-1)', (("m", 1), ("s", -1))),
        (" J/(kg*K)", (("J", 1), ("K", -1), ("kg", -1))),
        (" miles per hour", (("h", -1), ("mi", 1))),
        (" mph", (("h", -1), ("mi", 1))),
        ("°", (("degree", 1),)),
        ("°C", (("C", 1), ("degree", 1))),
        (" per cent", (("%", 1),)),
        (' "apples"', (("apple", 1),)),
        (' "red glass marbles"', (("glas", 1), ("marble", 1), ("red", 1))),
        (" p.m.", (("pm", 1),)),
    ],
)
def test_read_unit_spellings(text, unit):
    assert read_unit(text) == unit


@pytest.mark.parametrize(
    "text",
    [
        "m", " x", "xy", " xyz", "/s", "/abc", "m/g", "^(2)", " (", " ()", "%%", " cm cm", " 5", " cm 5", ' "or"', ' "is it"',
        ' "million"', ' "Millionen"', ' "k"', ' "i"', ' "not sure"', ' "four long words here"', " square", " km/foo", " cm^(7)",
        ' "purple wooden zebra quilts"',
    ],
)  # fmt: skip
def test_read_unit_anything_else_is_none(text):
    assert read_unit(text) is None


def test_read_unit_takes_three_words_that_no_table_knows():
    assert read_unit(' "wooden zebra quilts"') == (("quilt", 1), ("wooden", 1), ("zebra", 1))


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("", " cm", True),
        (" cm", " centimeter", True),
        (" cm", " m", False),
        (" cm", " cm^(2)", False),
        (" square units", " cm^(2)", True),
        (" units", " cm^(2)", False),
        ("°", "° C", True),
        ("° F", "° C", False),
        ("°", " rad", False),
        ("", ' "K"', False),
        (" J/K", "", True),
    ],
)
def test_go_together(first, second, together):
    assert go_together(read_unit(first), read_unit(second)) is together
    assert go_together(read_unit(second), read_unit(first)) is together


def test_no_word_is_a_unit_and_another_number():
    assert set(WORDS) & NO_UNITS == set()


@pytest.mark.parametrize(
    ("text", "changes"), [(r"5\text{ dozen}", True), ("5 squared", True), (r"5\times 3", False), ("5 and 6", False)]
)
def test_changes_number(text, changes):
    assert changes_number(text) is changes
