"""recipes/smollm2_store.yaml: what its cold start shows, in a chat template that knows neither tools nor reasoning, as SmolLM2's."""

from pathlib import Path

import pytest

from samepath.model.text.conversation import Completion
from samepath.model.text.encodings.template import TemplateRenderer
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.types import Segment
from tests.conftest import tiny_config
from tests.model.text.encodings.test_template import SMALL

PATH = Path(__file__).resolve().parents[3] / "recipes" / "smollm2_store.yaml"
RECIPE = load_recipe(PATH, [], Recipe)
STEPS = 20
LOOK, ANSWER = 29, 3
"""Tokens of a look and of a number, end token included, with SmolLM2's tokenizer."""


def task() -> EnvironmentTask:
    assert isinstance(RECIPE.task, EnvironmentTask)
    return RECIPE.task


def drawn(segment: Segment) -> list[list[int]]:
    """Ids of each of the assistant's messages."""
    messages: list[list[int]] = []
    for place in segment.trained.nonzero()[0]:
        if not segment.trained[place - 1]:
            messages.append([])
        messages[-1].append(int(segment.token_ids[place]))
    return messages


@pytest.fixture(scope="module")
def worked() -> list[list[Completion]]:
    """The assistant's messages in each conversation of the first steps."""
    renderer = renderer_of(SMALL, task().episode.form)
    assert isinstance(renderer, TemplateRenderer)
    batches = WorkedBatches(SMALL, build_task(task(), PATH.parent), RECIPE.cold_start, RECIPE.seed, renderer=renderer)
    # The template's words are spelt in letters here.
    shape = tiny_config(max_position_embeddings=8192)
    return [
        [renderer.parse(ids) for ids in drawn(entry.segment)]
        for step in range(STEPS)
        for entry in batches.batch(step, shape)
    ]


def test_cold_start_shows_a_look_and_an_answer_or_a_guess(worked: list[list[Completion]]) -> None:
    assert len(worked) == STEPS * RECIPE.cold_start.batch_size
    for *looks, answer in worked:
        assert answer.content.isdecimal()
        assert [[call.name for call in look.calls] for look in looks] in ([], [["get"]])
        assert not any(message.problems or message.reasoning for message in (*looks, answer))
    guesses = sum(len(messages) == 1 for messages in worked) / len(worked)
    assert abs(guesses - RECIPE.cold_start.options["guess_share"]) < 0.12


def test_budgets_have_room_for_a_look_an_answer_and_a_slip(worked: list[list[Completion]]) -> None:
    budgets = task().episode.budgets
    assert budgets.max_turns == 1 + max(map(len, worked))
    assert RECIPE.sampling.max_new_tokens >= LOOK
    assert budgets.max_tokens >= 2 * LOOK + ANSWER


def test_recipe_is_one_question_without_pointers_60_supervised_steps_and_30_of_rl() -> None:
    assert (task().options["questions"], task().options["num_pointers"]) == (1, 0)
    assert (RECIPE.cold_start.steps, RECIPE.rl.steps) == (60, 30)
    assert (RECIPE.engine.kind, RECIPE.rl.max_gap_at_lag_0) == ("builtin", 0)
