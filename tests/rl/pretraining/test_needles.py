"""Needles stand where they should, are asked for as they were written, and are scored as the definition says."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from samepath.rl.pretraining import needles as module
from samepath.rl.pretraining.needles import NeedlePrompt, check_needles, measure_needles, needle_prompt
from samepath.rl.recipe.text import NeedleSettings
from tests.families import family_model
from tests.rl.pretraining.texts import tokenizer
from tests.tiny_runs import packed_input, run

HAY = np.array(tokenizer().encode_continuation("abc-abcc-"))


def settings(**changes: Any) -> NeedleSettings:
    return NeedleSettings.model_validate(
        {
            "lengths": [40],
            "depths": [0, 1],
            "samples": 2,
            "others": 1,
            "digits": 3,
            "text": "+{key}={value}-",
            **changes,
        }
    )


def text(ids: tuple[int, ...]) -> str:
    return tokenizer().text(ids)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_needle_prompt_has_its_needle_at_the_depth_and_asks_for_its_key(depth: float) -> None:
    asked = needle_prompt(settings(others=0), tokenizer(), HAY, 40, depth, np.random.default_rng(0))
    assert len(asked.prompt) + len(asked.answer) == 40
    first, end = asked.needle
    needle, answer = text(asked.prompt[first:end]), text(asked.answer)
    assert needle[0] + needle[4] + needle[-1] == "+=-"
    assert needle[5:8] == answer
    assert text(asked.prompt)[-5:] == needle[:5]
    start = len(tokenizer().prefix_ids)
    room = 40 - start - 9 - 5 - 3
    assert first == start + round(depth * room)
    straw = text(asked.prompt[start:first]) + text(asked.prompt[end : len(asked.prompt) - 5])
    assert len(straw) == room
    assert straw in text(tuple(HAY)) * 6


def test_needle_prompt_has_other_pairs_with_other_keys() -> None:
    asked = needle_prompt(settings(others=7, digits=1), tokenizer(), HAY, 80, 0.5, np.random.default_rng(1))
    whole = text(asked.prompt)
    keys = [whole[place - 1] for place, one in enumerate(whole) if one == "="]
    assert len(keys) == 9
    assert len(set(keys[:-1])) == 8
    assert keys[-1] == text(asked.prompt[slice(*asked.needle)])[1]


def test_needle_prompt_leaves_the_blank_to_the_word_behind_it() -> None:
    class Words:
        prefix_ids = ()

        def __init__(self) -> None:
            self.seen: list[str] = []

        def encode_continuation(self, one: str) -> tuple[int, ...]:
            self.seen.append(one)
            return tuple(map(ord, one))

    words = Words()
    ours = settings(text="key {key} is {value}.", others=0)
    asked = needle_prompt(ours, words, HAY, 60, 0.5, np.random.default_rng(0))  # type: ignore[arg-type]
    assert [one[:4] for one in words.seen] == ["key ", words.seen[1][:4], "."]
    assert words.seen[0].endswith(" is")
    assert chr(asked.answer[0]) == " "


def test_measure_needles_scores_are_those_of_the_definition() -> None:
    model, ours = (
        family_model("samepath_grouped", initializer_range=0.3),
        settings(lengths=[40, 24], others=0, digits=1),
    )
    found = measure_needles(model, tokenizer(), HAY, ours, [4])
    assert list(found.sparse) == [4, 8]
    for amount, scores in ((64, found.dense), (4, found.sparse[4]), (8, found.sparse[8])):
        for row, length in enumerate((40, 24)):
            for column, depth in enumerate((0.0, 1.0)):
                right, likely = [], []
                for sample in range(2):
                    rng = np.random.default_rng((length, column, sample))
                    asked = needle_prompt(ours, tokenizer(), HAY, length, depth, rng)
                    ids = torch.tensor((*asked.prompt, *asked.answer))
                    with torch.no_grad():
                        hidden, _ = run(model, packed_input(model.config, [ids[:-1]]), amount)
                        logits = (hidden @ model.head_weight.T)[len(asked.prompt) - 1 : length - 1].double()
                    answer = torch.tensor(asked.answer)
                    right.append(float((logits.argmax(-1) == answer).all()))
                    likely.append(float(logits.log_softmax(-1).gather(1, answer[:, None]).sum().exp()))
                assert scores.accuracies[row][column] == np.mean(right)
                assert scores.probabilities[row][column] == pytest.approx(np.mean(likely), rel=1e-4)
    metrics = found.metrics(8)
    assert metrics["sparse/needle_accuracy_top4"] == pytest.approx(np.mean(found.sparse[4].accuracies))
    assert metrics["sparse/needle_probability"] == pytest.approx(np.mean(found.sparse[8].probabilities))
    assert metrics["sparse/needle_dense_accuracy"] == pytest.approx(np.mean(found.dense.accuracies))
    assert metrics["sparse/needle_probability"] != pytest.approx(metrics["sparse/needle_probability_top4"])


@pytest.mark.parametrize(("changed", "wanted"), [((), 1.0), ((0,), 0.0), ((1,), 0.0), ((0, 1), 0.0)])
def test_measure_needles_value_is_found_only_if_each_token_is_the_likeliest(
    monkeypatch: pytest.MonkeyPatch, changed: tuple[int, ...], wanted: float
) -> None:
    """The answer is what the model itself says, with some of its two tokens changed."""
    model, ids = family_model("samepath_grouped"), list(range(2, 18)) * 2
    said: list[int] = []
    for place in range(2):
        with torch.no_grad():
            hidden, _ = run(model, packed_input(model.config, [torch.tensor(ids + said)]), 64)
        best = int((hidden[len(ids + said) - 1] @ model.head_weight.T).argmax())
        # A token that is changed is the context of the next.
        said.append((best + 1) % 18 if place in changed else best)
    asked = NeedlePrompt(prompt=tuple(ids), answer=tuple(said), needle=(0, 0))
    monkeypatch.setattr(module, "needle_prompt", lambda *_: asked)
    assert measure_needles(model, tokenizer(), HAY, settings(), []).dense.accuracies == ((wanted, wanted),)


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [36]},
        {"depths": [0.4, 0.6]},
        {"samples": 3},
        {"others": 0},
        {"digits": 2},
        {"text": "-{key}={value}+"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_measure_needles_every_setting_counts(change: dict[str, Any]) -> None:
    model = family_model("samepath_grouped", num_hidden_layers=1)
    first, other = (measure_needles(model, tokenizer(), HAY, one, []) for one in (settings(), settings(**change)))
    assert first.dense.probabilities != other.dense.probabilities


def test_needles_that_do_not_fit_or_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage.needles.lengths must have room .* 20 is 7 tokens too short"):
        check_needles(settings(lengths=[40, 20]), tokenizer())
    with pytest.raises(ValueError, match="must be in the tokenizer's alphabet"):
        check_needles(settings(text="key {key} is {value}"), tokenizer())
    for wrong in ("{value} of {key}", "{key}", "{key} {key} {value}"):
        with pytest.raises(ValidationError, match=r"needles.text must have \{key\} once and \{value\} once behind it"):
            settings(text=wrong)
    with pytest.raises(ValidationError, match=r"there are 10 keys of needles.digits=1, and needles.others=10"):
        settings(digits=1, others=10)
