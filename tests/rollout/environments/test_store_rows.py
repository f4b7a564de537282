"""Rows of the store: splits, chains, what is asked, and options that cannot hold."""

import random
from typing import Any

import pytest

from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.store import StoreEnvironment
from samepath.rollout.environments.store_rows import (
    HELD_OUT_SHARE,
    StoreOptions,
    draw_questions,
    draw_row,
    links,
    number,
)

STORE = {"A": 17, "B": "A", "C": "B", "D": 5, "E": 40}


def rows(count: int = 60, **options: Any) -> list[EnvironmentRow]:
    """The first training rows."""
    return list(StoreEnvironment(**options).tasks("train")[:count])


def pointers(row: EnvironmentRow, question: int) -> list[int]:
    """Pointers between each key of a question and its number."""
    data: Any = row.data
    return [links(data["store"], key) for key in data["questions"][question]]


def test_number_and_links_follow_the_pointers() -> None:
    assert [number(STORE, key) for key in "ABCD"] == [17, 17, 17, 5]
    assert [links(STORE, key) for key in "ABCD"] == [0, 1, 2, 0]


def test_rows_are_those_of_an_equal_environment_and_no_others() -> None:
    first, second = rows(seed=3), rows(seed=3)
    assert first == second
    assert len({row.text for row in first}) == 60
    assert first != rows(seed=4)
    held_out = StoreEnvironment(seed=3).tasks("held_out")
    assert held_out == StoreEnvironment(seed=3).tasks("held_out") != StoreEnvironment(seed=4).tasks("held_out")
    assert first[5] == StoreEnvironment(seed=3).tasks("train")[5]


def test_held_out_rows_are_disjoint_from_training_rows_of_any_options() -> None:
    """A store of two keys has so few rows that both splits would meet at once."""
    small: Any = {"num_keys": 2, "num_pointers": 0, "depth": 0, "terms": 1, "questions": 1}
    held_out = [row.text for row in StoreEnvironment(**small, num_held_out=200).tasks("held_out")]
    assert len(set(held_out)) == 200
    assert not set(held_out) & {row.text for seed in range(3) for row in rows(2000, seed=seed, **small)}
    assert all(is_held_out(text, HELD_OUT_SHARE) for text in held_out)


def test_rows_count_as_the_options_say() -> None:
    environment = StoreEnvironment(num_train=7, num_held_out=5)
    assert len(environment.tasks("train")) == 7
    assert len(environment.tasks("held_out")) == 5
    with pytest.raises(IndexError, match="0 … 6; got 7"):
        environment.tasks("train")[7]


def test_rows_hold_keys_pointers_and_questions_as_the_options_say() -> None:
    for row in rows(num_keys=12, num_pointers=3, terms=4, questions=3):
        data: Any = row.data
        assert list(data["store"]) == list("ABCDEFGHIJKL")
        assert sum(isinstance(value, str) for value in data["store"].values()) == 3
        assert [len(keys) for keys in data["questions"]] == [4, 4, 4]
        asked = [key for keys in data["questions"] for key in keys]
        assert len(set(asked)) == 12, "no key is asked for twice"
        assert data["answers"] == [sum(number(data["store"], key) for key in keys) for keys in data["questions"]]
        assert all(1 <= number(data["store"], key) <= 99 for key in asked)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rows_have_chains_of_up_to_depth_pointers(depth: int) -> None:
    longest = {max(pointers(row, 0) + pointers(row, 1)) for row in rows(200, depth=depth)}
    assert longest == set(range(depth + 1))


def test_harder_rows_have_one_question_with_a_longer_chain_or_more_terms() -> None:
    drawn = rows(300, harder_share=1.0, harder_depth=3, harder_terms=4)
    kinds = [row.data["harder"] for row in drawn]
    assert 100 < kinds.count("chain") < 200
    assert kinds.count("chain") + kinds.count("terms") == 300
    places = set()
    for row in drawn:
        found = [pointers(row, question) for question in range(2)]
        if row.data["harder"] == "chain":
            (place,) = [question for question in range(2) if max(found[question]) > 1]
            assert sorted(map(len, found)) == [2, 2]
            assert sum(count > 1 for count in found[place]) == 1
            assert max(found[place]) == 3
        else:
            (place,) = [question for question in range(2) if len(found[question]) == 4]
            assert max(found[0] + found[1]) <= 1
            assert len(found[1 - place]) == 2
        places.add((row.data["harder"], place, tuple(found[place])))
    assert {place for _, place, _ in places} == {0, 1}
    assert {(3, 0), (0, 3)} <= {found for kind, _, found in places if kind == "chain"}, "in either place"


def test_harder_share_is_the_share_of_marked_rows() -> None:
    assert {row.data["harder"] for row in rows(200)} == {""}
    drawn = rows(400, harder_share=0.25)
    assert [row.dataset for row in drawn] == [row.data["harder"] for row in drawn]
    marked = sum(row.data["harder"] != "" for row in drawn)
    assert 70 < marked < 130
    held_out = StoreEnvironment(harder_share=1.0).tasks("held_out")
    assert all(row.data["harder"] for row in held_out)


def test_draw_questions_without_enough_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="ample"):
        draw_questions(random.Random(0), STORE, depth=0, terms=[2, 2])


def test_draw_row_of_options_with_too_few_texts_is_refused() -> None:
    options = StoreOptions(num_keys=1, num_pointers=0, depth=0, terms=1, questions=1)
    taken = {draw_row(options, "held_out", index).text for index in range(400)}
    assert len(taken) < 30
    with pytest.raises(ValueError, match="too few different rows"):
        draw_row(options, "held_out", 0, taken)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_keys": 27}, "1 to 26"),
        ({"num_keys": 6, "num_pointers": 6}, "a number is left"),
        ({"depth": 0}, "depth must be"),
        ({"depth": 7}, "depth must be"),
        ({"terms": 0}, "terms must be"),
        ({"questions": 0}, "questions must be"),
        ({"num_train": 0}, "num_train must be"),
        ({"num_held_out": 0}, "num_held_out must be"),
        ({"harder_share": 1.5}, "harder_share must be"),
        ({"share_weight": -0.1}, "share_weight must be"),
        ({"noise": -1}, "noise must be"),
        ({"questions": 9}, "at least 18"),
        ({"harder_depth": 7, "harder_share": 0.1}, "num_pointers must be at least 7"),
        ({"questions": 7, "harder_share": 0.1, "harder_terms": 5}, "num_keys must be at least 17"),
        ({"questions": 7, "harder_share": 0.1, "harder_depth": 5}, "num_keys must be at least 17"),
        ({"harder_share": 0.1, "harder_depth": 1}, "harder_depth and harder_terms must be above"),
        ({"harder_share": 0.1, "harder_terms": 2}, "harder_depth and harder_terms must be above"),
    ],
)
def test_options_that_cannot_hold_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StoreEnvironment(**options)
