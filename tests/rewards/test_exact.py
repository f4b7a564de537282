"""Exact comparison: gold earns full marks, near misses nothing."""

import pytest

from samepath.rewards.exact import number, text
from samepath.rewards.request import RewardRequest


def request(response: str, gold: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=response, answer={"answer": gold})


@pytest.mark.parametrize("response", ["51", " 51\n", "51.0", "+51"])
def test_number_gold_gives_one(response):
    assert number(request(response, "51")) == 1.0


@pytest.mark.parametrize("response", ["", "510", "-51", "5.1", "51 52", "50+1", "51#", "five"])
def test_number_near_miss_gives_zero(response):
    assert number(request(response, 51)) == 0.0


def test_number_with_marker_reads_only_what_follows():
    assert number(request("17+34 #51", "51"), marker="#") == 1.0
    assert number(request("51", "51"), marker="#") == 0.0
    assert number(request("51 #52", "51"), marker="#") == 0.0


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [(1e-7, "0.0000001", "e-7"), (1e16, "10^{16}", "10^{17}"), (2**53 + 1, "9007199254740993", "9007199254740992")],
)
def test_number_gold_from_json_is_that_number(gold, right, wrong):
    assert number(request(right, gold)) == 1.0
    assert number(request(wrong, gold)) == 0.0


def test_thinking_does_not_count():
    assert number(request("<think>52</think>51", "51")) == 1.0
    assert number(request("<think>51", "51")) == 0.0
    assert text(request("<think>London?</think>Paris", "Paris")) == 1.0


def test_number_gold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="must be a plain number; got 'x\\+1'"):
        number(request("51", "x+1"))


def test_text_letter_by_letter():
    assert text(request(" Paris ", "Paris")) == 1.0
    assert text(request("paris", "Paris")) == 0.0
    assert text(request("paris", "Paris"), ignore_case=True) == 1.0
    assert text(request("Paris, France", "Paris")) == 0.0
    assert text(request("Paris", "Paris"), marker="#", ignore_case=True) == 0.0
