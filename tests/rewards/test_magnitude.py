"""The values of digits, fractions, powers of ten and numerals of other bases."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.magnitude import MAX_BRACKETS, MAX_EXPONENT, read_magnitude, read_numeral


@pytest.mark.parametrize(
    ("text", "value", "digits", "rest"),
    [
        ("51 cm", Fraction(51), 0, " cm"),
        ("1,234,567", Fraction(1234567), 0, ""),
        ("1,23", Fraction(1), 0, ",23"),
        ("0,125", Fraction(0), 0, ",125"),
        ("0;,125", Fraction(1, 8), 3, ""),
        ("1;,000", Fraction(1000), 0, ""),
        ("1,234 567", Fraction(1234), 0, " 567"),
        ("2.50", Fraction(5, 2), 2, ""),
        ("3.141 592 6", Fraction(31415926, 10**7), 8, ""),
        (".5", Fraction(1, 2), 1, ""),
        ("0.1‾(6)", Fraction(1, 6), 0, ""),
        ("0.‾(1)4285‾(7)", Fraction(1, 7), 0, ""),
        ("0.(3)", Fraction(1, 3), 0, ""),
        ("1.5e-3", Fraction(3, 2000), 2, ""),
        ("1.5\\times 10^(3)", Fraction(1500), 2, ""),
        ("10^(-2)", Fraction(1, 100), 0, ""),
        ("[1⁄-3]x", Fraction(-1, 3), 0, "x"),
        ("1[1⁄2]", Fraction(3, 2), 0, ""),
        ("1 1/2", Fraction(3, 2), 0, ""),
        ("(-1)/3", Fraction(-1, 3), 0, ""),
        ("((5))", Fraction(5), 0, ""),
    ],
)
def test_read_magnitude_values(text, value, digits, rest):
    number, found_rest = read_magnitude(text)
    assert (number.value, number.digits, found_rest) == (value, digits, rest)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "-5", "1/0", "[1⁄0]", "[1⁄2", "[[1⁄2]⁄3]", "[1⁄2]/3", "1[3⁄2]", "1 200/300", "(1,234)", "(5", ".",
        f"1e{MAX_EXPONENT + 1}", f"10^(-{MAX_EXPONENT + 1})", "(" * (MAX_BRACKETS + 2) + "5" + ")" * (MAX_BRACKETS + 2),
    ],
)  # fmt: skip
def test_read_magnitude_anything_else_is_none(text):
    assert read_magnitude(text) is None


@pytest.mark.parametrize(
    ("text", "value", "base"),
    [
        ("1101_(2)", Fraction(13), 2),
        ("(1101)_(two)", Fraction(13), 2),
        ("1101_(base 2)", Fraction(13), 2),
        ("1101 in base 2", Fraction(13), 2),
        ("1111 0000_(2)", Fraction(240), 2),
        ("0.1_(2)", Fraction(1, 2), 2),
        ("Ff_(16)", Fraction(255), 16),
        ("0xFF", Fraction(255), 16),
        ("0b11_01", Fraction(13), 2),
        ("0o17", Fraction(15), 8),
        ("13_(10)", Fraction(13), 10),
    ],
)
def test_read_numeral_bases(text, value, base):
    assert read_numeral(text) == (value, base)


@pytest.mark.parametrize("text", ["1101", "1021_(2)", "5_(1)", "5_(37)", "5_(x)", "x_(n)", "0b12", "0x", "1101_(2) 5"])
def test_read_numeral_anything_else_is_none(text):
    assert read_numeral(text) is None


@given(st.integers(0, 10**12), st.integers(2, 36))
def test_read_numeral_is_what_python_reads(value, base):
    digits, rest = "", value
    while rest:
        digits, rest = "0123456789abcdefghijklmnopqrstuvwxyz"[rest % base] + digits, rest // base
    assert read_numeral(f"{digits or '0'}_({base})") == (value, base)
