"""Every spelling of a number is that number and none of its neighbours."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.number import MAX_NUMBER_CHARS, WrittenNumber, quantity_name, read_number, same_number


def same(gold: str, given: str) -> bool:
    right, answer = read_number(gold), read_number(given)
    assert right is not None
    return answer is not None and same_number(right, answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("51", WrittenNumber(value=Fraction(51))),
        (r"x = 2.50\text{ cm}", WrittenNumber(value=Fraction(5, 2), unit=(("cm", 1),), name="x", digits=2)),
        ("-0b1101", WrittenNumber(value=Fraction(-13), base=2)),
        (r"-\$1.5\text{ million}", WrittenNumber(value=Fraction(-1500000), unit=(("dollar", 1),), digits=2)),
        (r"\frac{1}{2} = 0.5", WrittenNumber(value=Fraction(1, 2))),
        ("**50%**", WrittenNumber(value=Fraction(50), unit=(("%", 1),))),
        (r"\$5/\text{hour}", WrittenNumber(value=Fraction(5), unit=(("dollar", 1), ("h", -1)))),
    ],
)
def test_read_number_parts(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "--5", "-(-5)", "5 = 6", "x =", "= =", "x = y", "1" * (MAX_NUMBER_CHARS + 1), r"\$5 cm", "5 + 1"]
)
def test_read_number_anything_else_is_none(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("side", "name"),
    [
        ("x", "x"), ("", ""), ("x_(1)", "x_(1)"), ("f(2)", "f(2)"), (r"\angle ABC", r"\angleABC"), ('"Area"', "Area"),
        ("2x", None), ("x^(2)", None), ("I get x", None), ("x+1", None), (r"\sqrt x", None), ("log x", None), ("-x", None),
    ],
)  # fmt: skip
def test_quantity_name(side, name):
    assert quantity_name(side) == name


def test_same_number_printed_double_is_the_shorter_number_it_was_meant_to_be():
    for value, short in [(0.1 + 0.2, "0.3"), (1 / 3, "1/3"), (1.1 * 1.1, "1.21"), (sum([0.1] * 10), "1")]:
        assert same(repr(value), short)
        assert same(repr(value), repr(value))
    assert [same(repr(0.3 + ulps * math.ulp(0.3)), "0.3") for ulps in (3, 4, 5, 100)] == [True, True, False, False]
    assert not same("0.30000000000000004", "0.30000000000000010")
    assert not same("0.30000000000000004", "0.300000000000001")
    assert not same("0.3", "0.30000000000000004")
    assert not same("847158353660386.5", "847158353660387")
    assert not same("8471583536603869.0", "8471583536603870")
    assert not same("30000000000000004", "30000000000000000")
    assert not same("1.2345678901234567e400", "1.23456789012345e400")


def test_same_number_holds_percent_base_and_name_apart() -> None:
    assert same("50%", "0.5")
    assert same("0.5", "50%")
    assert same("50", "50%")
    assert not same("50", "0.5%"), "the percent sign divides, it never multiplies"
    assert not same("50 cm", "50%")
    assert not same("1101_2", "13")
    assert not same("13", "1101_2")
    assert same("1101_2", "(1101)_2")
    assert same("x = 5", "5")
    assert not same("x = 5", "y = 5")


SPELLINGS = {
    "itself": "{}",
    "plus": "+{}",
    "dollars": "${}$",
    "text": r"\text{{{}}}",
    "bold": r"\mathbf{{{}}}",
    "brackets": r"\left({}\right)",
    "equation": "x = {}",
    "centimetres": r"{}\,\text{{cm}}",
    "money": r"\${}",
    "percent": r"{}\%",
    "dot": "{}.",
    "over one": r"\frac{{{}}}{{1}}",
    "over two": "double/2",
    "times a power": r"{}\times 10^{{0}}",
    "exponent": "e",
    "full width": "wide",
    "Arabic": "arabic",
    "mathematical": "double-struck",
    "commas": "commas",
    "thin spaces": "thin",
    "zeros": "zeros",
}


def grouped(text: str, mark: str) -> str:
    whole, dot, part = text.partition(".")
    return f"{int(whole):,}".replace(",", mark) + dot + part


def spell(value: Decimal, spelling: str) -> str:
    """Write a positive decimal in one of the spellings."""
    text = f"{value:f}"
    pattern = SPELLINGS[spelling]
    match pattern:
        case "double/2":
            return rf"\frac{{{2 * value:f}}}{{2}}"
        case "e":
            return f"{value:E}"
        case "wide":
            return text.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789."})
        case "arabic":
            return text.translate({ord(str(d)): 0x0660 + d for d in range(10)} | {ord("."): "٫"})
        case "double-struck":
            return text.translate({ord(str(d)): 0x1D7D8 + d for d in range(10)})
        case "commas":
            return grouped(text, ",")
        case "thin":
            return grouped(text, r"\,")
        case "zeros":
            return text + ("00" if "." in text else ".00")
    # A trailing dot or unit must not run into another dot.
    return pattern.format(text)


DECIMALS = st.builds(lambda digits, shift: Decimal(digits).scaleb(-shift), st.integers(1, 10**9), st.integers(0, 8))


@given(DECIMALS, st.sampled_from(sorted(SPELLINGS)), st.sampled_from(sorted(SPELLINGS)), st.booleans())
def test_same_number_any_spelling_answers_any_other_and_no_neighbour(value, gold_spelling, spelling, negative):
    sign = "-" if negative else ""
    money = {"money", "centimetres", "percent"}
    if spelling == gold_spelling or not {spelling, gold_spelling} <= money:
        minus = "" if "plus" in (spelling, gold_spelling) or "equation" in (spelling, gold_spelling) else sign
        gold = minus + spell(value, gold_spelling)
        assert same(gold, minus + spell(value, spelling))
        step = Decimal(1).scaleb(value.as_tuple().exponent)
        for other in (value + step, value * 10, value / 10 if value % 10 == 0 else value * 2):
            if "percent" in (spelling, gold_spelling) and other * 100 == value:
                continue
            assert not same(gold, minus + spell(other, spelling))
        if minus:
            assert not same(gold, spell(value, spelling))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_same_number_json_number_answers_itself_and_no_neighbour(value):
    gold = str(value)
    assert same(gold, gold)
    assert same(gold, f"{Decimal(gold):f}") or len(f"{Decimal(gold):f}") > MAX_NUMBER_CHARS
    for other in (value * 2, -value, value + 1):
        if other != value and abs(other) < 1e308:
            assert not same(gold, str(other))


@given(st.integers(-(10**60), 10**60))
def test_same_number_whole_numbers_of_any_size_are_exact(value):
    assert same(str(value), f"{value:,}")
    assert not same(str(value), str(value + 1))


@given(
    st.fractions(),
    st.sampled_from(["{0}/{1}", r"\frac{{{0}}}{{{1}}}", r"\dfrac {{{0}}}{{{1}}}", "({0})/({1})", r"{{{0} \over {1}}}"]),
)
def test_same_number_fractions(value, pattern):
    text = pattern.format(value.numerator, value.denominator)
    assert same(f"{value.numerator}/{value.denominator}", text)
    assert not same(f"{value.numerator + 1}/{value.denominator}", text)


@given(st.text(max_size=60) | st.text(alphabet="0123456789.,/-+ $%\\{}=x^_()eE'\"½²", max_size=40))
def test_read_number_any_text_gives_a_number_or_none(text):
    found = read_number(text)
    assert found is None or same_number(found, found)
