r"""LaTeX for math-verify: what changes only the look is gone, arguments have braces, and the rest is kept."""

import pytest

from samepath.rewards.plain_latex import in_plain_latex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\mathbf{\dfrac\pi6}\,x^23", r"\frac{\pi}{6} x^{23}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\left\{1,2\right\}", r"\{1,2\}"),
        (r"\sqrt\frac12", r"\sqrt{\frac{1}{2}}"),
        (r"\sqrt[3]{2}", r"\sqrt[3]{2}"),
        (r"\mathbf{x+1}^2", r"{x+1}^{2}"),
        (r"-\mathbf{x+1}", r"-x+1"),
        (r"\mathbb{R}", r"\mathbb{R}"),
        (r"\textcolor[rgb]{1,0,0}{\sqrt2}", r"\sqrt{2}"),
        (r"{\sqrt2 \over 3}", r"{\frac{\sqrt{2}}{3}}"),
        (r"\text{a}\textbf{2}", r"\text{a}2"),
        (r"\mathrm{e}^x", r"\mathrm{e}^{x}"),
        (r"\log_2 8", r"\log_{2} 8"),
        (r"\frac{1}", None),
        (r"\genfrac{(}{)}{0pt}{}{1}{2}", None),
    ],
)
def test_in_plain_latex_forms(text, expected):
    assert in_plain_latex(text) == expected
