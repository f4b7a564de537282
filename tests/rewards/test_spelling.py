"""LaTeX in one spelling: what styles is dropped, what means something stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.spelling import MAX_DEPTH, UnreadableError, in_one_spelling


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$-\mathbf{1}\tfrac12\,\text{cm}^2$", '-1[1⁄2] "cm" ^(2)'),
        (r"\frac 34", "[3⁄4]"),
        (r"{1 \over 2}", "[1⁄2]"),
        (r"10^-12", "10^(-12)"),
        (r"10^(-3)", "10^(-3)"),
        (r"30^{\circ}\text{C}", '30° "C"'),
        (r"30^o", "30°"),
        ("1{,}000", "1;,000"),
        (r"1\!000", "1000"),
        (r"1\,000~5", "1 000 5"),
        (r"0.\overline{3}", "0.‾(3)"),
        (r"\color{red}{51}", "51"),
        (r"\textcolor{red}{51}", "51"),
        (r"\phantom{51}", ""),
        (r"\left(\boxed{51}\right)", "(51)"),
        (r"\text{5 apples}", '5 "apples"'),
        (r"\text{\$}5", r"\$5"),
        ("$5", r"\$5"),
        ("-$5", r"-\$5"),
        ("$5$", "5"),
        (r"$\$5$", r"\$5"),
        (r"\pm 5", r"\pm  5".replace("  ", " ")),
        (r"50\%", "50%"),
    ],
)
def test_in_one_spelling_forms(text, expected):
    assert in_one_spelling(text) == expected


@pytest.mark.parametrize(
    "text", ["{5", "5}", r"\frac{1}", r"\text", "^", "{" * (MAX_DEPTH + 1) + "}" * (MAX_DEPTH + 1)]
)
def test_in_one_spelling_broken_or_deep_text_is_refused(text):
    with pytest.raises(UnreadableError):
        in_one_spelling(text)


PIECES = st.sampled_from(
    ["\\", "\\frac", "\\text", "{", "}", "^", "_", "(", ")", "$", "\\$", "1", " ", "\\over", "{,}", '"', "½", "²"]
)


@given(st.lists(PIECES, max_size=15).map("".join) | st.text())
def test_in_one_spelling_any_text_is_read_or_refused(text):
    try:
        spelled = in_one_spelling(text)
    except UnreadableError:
        return
    assert spelled == spelled.strip()
    assert "  " not in spelled
