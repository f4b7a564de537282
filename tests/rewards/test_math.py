"""Mathematical equality: gold earns full marks, near misses and tricks nothing."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify", reason="needs samepath[math]")

from samepath.rewards.math import answer
from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.settings import RewardSettings


def request(response: str, gold: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=response, answer={"answer": gold})


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("51", "51"),
        ("51", 51),
        (r"so \boxed{51}.", "51"),
        (r"\boxed{52}, no: \boxed{51}", "51"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1+x^2}", "x^2+1"),
        (r"\boxed{\{2,1\}}", r"$\{1,2\}$"),
        (r"\sqrt{2}", r"\boxed{\sqrt{2}}"),
    ],
)
def test_answer_gold_gives_one(response, gold):
    assert answer(request(response, gold)) == 1.0


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("510", "51"),
        ("-51", "51"),
        ("5.1", "51"),
        ("51 52", "51"),
        ("51 52", "103"),
        ("", "51"),
        ("51", "-51"),
        (r"\boxed{51}, no: \boxed{52}", "51"),
        (r"\boxed{}", "51"),
        ("the answer is 51", "51"),
        (r"\boxed{x^2+2}", "x^2+1"),
        (r"\boxed{\{1,2,3\}}", r"\{1,2\}"),
        (r"\sqrt{2}} or \sqrt{3", r"\sqrt{2}"),
        ("(" * 300 + "5" + ")" * 300, "5"),
        ("x" * 501, "x+1"),
    ],
)
def test_answer_near_miss_gives_zero(response, gold):
    assert answer(request(response, gold)) == 0.0


@pytest.mark.parametrize(
    "response", ["12+34+5", r"\boxed{12+34+5}", r"\boxed{17 \times 3}", r"\boxed{9^{9^{9^{9}}}}", "99999999!"]
)
def test_answer_number_left_unevaluated_gives_zero(response):
    assert answer(request(response, "51")) == 0.0


def test_answer_power_tower_against_an_expression_ends_as_wrong():
    assert answer(request(r"\boxed{9^{9^{9^{9}}}}", "x+1")) == 0.0


def test_answer_not_strict_searches_the_text_and_evaluates():
    assert answer(request("the answer is 51", "51"), strict=False) == 1.0
    assert answer(request(r"\boxed{17 \cdot 3}", "51"), strict=False) == 1.0
    assert answer(request("the answer is 52", "51"), strict=False) == 0.0


def test_answer_with_marker_reads_only_what_follows():
    assert answer(request("17+34 #51", "51"), marker="#") == 1.0
    assert answer(request(r"\boxed{51} #52", "51"), marker="#") == 0.0
    assert answer(request("51", "51"), marker="#") == 0.0


def test_answer_without_gold_raises():
    with pytest.raises(ValueError, match="under 'answer'"):
        answer(RewardRequest(prompt_text="", response_text="51"))


def test_answer_in_a_child_uses_its_own_alarm_before_the_limit():
    settings = {
        "parts": {"answer": {"function": "samepath.rewards.math:answer", "options": {"strict": False}}},
        "num_workers": 1,
    }
    with RewardRunner(RewardSettings.model_validate(settings)) as runner:
        scores = runner.score([request(text, "51") for text in (r"\boxed{9^{9^{9^{9}}}}", r"\boxed{17 \cdot 3}")])
    assert [(score.status, score.total) for score in scores] == [("ok", 0.0), ("ok", 1.0)]


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        (r"\boxed{50+1}", 0.0, 1.0),
        ("After the trade, 51 cards are left on the table", 0.0, 1.0),
        ("The answer is 51 million.", 0.0, 0.0),
        ("51 is wrong, it is 52", 0.0, 0.0),
        ("The answer is\n**51**", 0.0, 1.0),
        (r"\boxed{51 52}", 0.0, 0.0),
        (r"\boxed{2x = 51}", 0.0, 0.0),
        (r"\boxed{51\text{ dozen}}", 0.0, 0.0),
    ],
)
def test_answer_strict_and_not(response, strict, lenient):
    assert answer(request(response, "51")) == strict
    assert answer(request(response, "51"), strict=False) == lenient


@pytest.mark.parametrize(
    ("prompt", "response", "reward"),
    [
        ("", r"<think>\boxed{51}</think>\boxed{52}", 0.0),
        ("", r"<think>\boxed{52}</think>\boxed{51}", 1.0),
        ("", r"<think>\boxed{51}", 0.0),
        ("<think>", r"\boxed{51}", 0.0),
        ("<think>", r"\boxed{52}</think>\boxed{51}", 1.0),
    ],
)
def test_answer_in_thinking_does_not_count(prompt, response, reward):
    given = RewardRequest(prompt_text=prompt, response_text=response, answer={"answer": "51"})
    assert answer(given) == answer(given, strict=False) == reward


PIECES = st.sampled_from(
    ["\\boxed{", "}", "{", "\\frac", "\\sqrt", "1", "2", "x", "+", "^", "(", ")", "=", "$", ",", " ", "é", "\x00"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=10).map("".join) | st.text(max_size=30), st.sampled_from(["51", "x+1"]))
def test_answer_any_text_gives_zero_or_one(text, gold):
    assert answer(request(text, gold)) in (0.0, 1.0)
    assert answer(request(text, gold), strict=False) in (0.0, 1.0)
