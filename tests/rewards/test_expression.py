"""math-verify's verdicts, and where they are overruled."""

import pytest

pytest.importorskip("math_verify", reason="needs samepath[math]")

from math_verify import parse, verify

from samepath.rewards import expression
from samepath.rewards.expression import finds_expression, parsed_gold, same_expression, same_words
from samepath.rewards.number import read_number


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No verdict depends on how busy the machine is."""
    monkeypatch.setattr(expression, "TIMEOUT_S", 60)


def same(gold, given):
    return same_expression(gold, given, None, read_number(given))


OVERRULED = [
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{2}\cdot 10^{-21}"),
    (r"\sqrt{2}+10^{-20}", r"\sqrt{2}"),
    (r"(10^{-20},1)", r"(10^{-21},1)"),
    (r"\{0.1234567,1\}", r"\{0.1234569,1\}"),
    ("x < 10^{-20}", "x < 10^{-21}"),
    ("10^{-20} < x < 1", "10^{-21} < x < 1"),
    (r"\{1,2\}", "(1,2)"),
    (r"\frac{A}{2}", r"\frac{a}{2}"),
    (r"\frac{\sqrt{2}}{10^7}", "0.0000003"),
    (r"\sqrt{2}", r"2x = \sqrt{2}"),
]


@pytest.mark.parametrize(("gold", "given"), OVERRULED)
def test_same_expression_what_only_math_verify_calls_equal_is_different(gold, given):
    assert verify(
        parse(f"\\boxed{{{gold}}}", parsing_timeout=60),
        parse(f"\\boxed{{{given}}}", parsing_timeout=60),
        timeout_seconds=60,
    )
    assert not same(gold, given)
    assert same(gold, gold)


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        ("x^2-1", "(x-1)(x+1)"),
        (r"\sqrt{2}", "1.414214"),
        (r"\log_2 8", "3"),
        ("0.5x", r"\frac{x}{2}"),
        (r"\sqrt{2}", r"y = \sqrt{2} = 2^{1/2}"),
        (r"\begin{pmatrix}1\\x\end{pmatrix}", r"\begin{pmatrix}\frac22\\x\end{pmatrix}"),
        (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}"),
    ],
)
def test_same_expression_equal_ones(gold, given):
    assert same(gold, given)


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        (r"\sqrt{2}", "1.41421"),
        (r"\sqrt{2}", r"\frac{665857}{470832}"),
        (r"\log_2 8", "3.000001"),
        ("x^2", "x^3"),
        (r"\sqrt{2}", r"\sqrt{2} = \sqrt{3}"),
    ],
)
def test_same_expression_different_ones(gold, given):
    assert not same(gold, given)


@pytest.mark.parametrize(
    "given",
    [
        "9^{9^{9^{9^9}}}",
        "99999999!",
        r"\frac{1}{10^{10^{10}}}",
        "(" * 51 + "x" + ")" * 51,
        r"3^{10000000}",
        r"e^{e^{e^{e^{10}}}}",
    ],
)
def test_same_expression_numbers_too_large_to_evaluate_are_refused_without_waiting(given, monkeypatch):
    monkeypatch.setattr(expression, "verify", lambda *_, **__: pytest.fail("must not be compared"))
    assert not same("x+1", given)


def test_parsed_gold_that_cannot_be_evaluated_is_refused():
    with pytest.raises(ValueError, match="cannot read the right answer"):
        parsed_gold("9^{9^{9^{9}}}")


@pytest.mark.parametrize(
    ("gold", "given", "verdict"),
    [
        ("Paris", r"\text{paris}.", True),
        ("east", "seat", False),
        ("No", "On", False),
        ("2024-01-05", "2024-05-01", False),
        ("5:30", "5:30", True),
        (r"\text{no solution}", "No solution", True),
        ("B", r"\text{(B)}.", True),
        ("B", "C", False),
        ("B", "b", None),
        ("ab", "ba", None),
        (r"\sin x", "x", None),
        ("x+1", "x", None),
    ],
)
def test_same_words(gold, given, verdict):
    assert same_words(gold, given) is verdict


def test_finds_expression_in_a_text():
    assert finds_expression("51", "after all, 51 remain on the list", read_number("51"))
    assert not finds_expression("51", "after all, 52 remain on the list", read_number("51"))
