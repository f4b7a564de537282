"""An environment's rows as a task, an evaluation set of it, and what a recipe may not say beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.evaluation.sets import build_sets
from samepath.rl.feed import Feed
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.environment import build_environment
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.row import TaskError
from samepath.rl.tasks.survey import survey
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.import_path import ImportPathError
from samepath.rollout.sampling_settings import SamplingSettings
from tests.marked_conversations import marked_tokenizer
from tests.scripted_engine import Toy, failing


def task(options: dict[str, Any] | None = None, **changes: Any) -> EnvironmentTask:
    return EnvironmentTask.model_validate(
        {
            "environment": "tests.scripted_engine:Toy",
            "options": options or {"rows": ["a b", "c"], "held_out": ["d", "e f"]},
            **changes,
        }
    )


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "runtime": "inline",
        "model": {"kind": "checkpoint", "path": "anywhere"},
        "task": task().model_dump(),
        **changes,
    }


def test_build_environment_gives_its_rows_with_their_conversation() -> None:
    settings = task(episode={"budgets": {"max_turns": 3}})
    made = build_environment(settings, Path())
    assert (made.name, len(made.train), [row.text for row in made.held_out]) == ("Toy", 2, ["d", "e f"])
    request = group_request(made.train[0], marked_tokenizer(), SamplingSettings(max_new_tokens=5), "g", (1, 2))
    assert isinstance(request, EpisodeRequest)
    assert (request.row.text, request.seeds, request.sampling.max_new_tokens) == ("a b", (1, 2), 5)
    assert request.episode.budgets.max_turns == 3
    assert request.environment.options == settings.options
    assert (request.prompt.dataset, request.prompt.text, request.prompt.row) == ("Toy", "a b", 0)


def test_build_environment_rows_are_of_the_dataset_that_they_name_or_of_the_environment() -> None:
    store = EnvironmentTask(
        environment="samepath.rollout.environments.store:StoreEnvironment",
        options={"harder_share": 0.5, "num_train": 40},
    )
    rows = [*build_environment(store, Path()).train]
    named = {row.dataset for row in rows}
    assert named == {"StoreEnvironment", "chain", "terms"}
    assert all(row.answer["dataset"] == row.dataset for row in rows)
    build_environment(store, Path()).check_datasets(["what only rows can tell"])


@pytest.mark.parametrize(
    ("rl", "one_version"),
    [
        ({}, False),
        ({"max_weight_lag": 1}, False),
        ({"max_weight_lag": 1, "on_new_weights": "continue", "max_gap_at_lag_0": 1}, False),
        ({"max_weight_lag": 1, "on_new_weights": "recompute"}, True),
    ],
)
def test_feed_has_conversations_cut_at_new_weights_as_the_recipe_says(rl: dict[str, Any], one_version: bool) -> None:
    made = Recipe.model_validate(recipe(runtime="ray", rl=rl))
    feed = Feed(recipe=made, task=build_environment(task(), Path()), tokenizer=marked_tokenizer())
    request = feed.request(1)
    assert isinstance(request, EpisodeRequest)
    assert request.one_version == one_version
    again = group_request(feed.task.train_row(1), feed.tokenizer, made.sampling, request.group_id, request.seeds)
    assert replace(request, one_version=False) == again, "nothing else is asked otherwise"


def test_build_environment_keeps_as_many_held_out_rows_as_asked() -> None:
    assert [row.text for row in build_environment(task(max_held_out=1), Path()).held_out] == ["d"]


def test_build_environment_orders_an_epoch_by_the_seed() -> None:
    rows = {"rows": [f"k{n}" for n in range(20)]}
    orders = [
        [build_environment(task(rows, seed=seed), Path()).train_row(place).text for place in range(20)]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rows": []}, "must have at least one row"), ({"rows": ["a", "b"], "held_out": ["b"]}, "must not ask the same")],
)
def test_build_environment_refuses_rows_that_cannot_be_a_task(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        build_environment(task(options), Path())


def test_build_environment_finds_a_module_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_recipe.py").write_text("from tests.scripted_engine import Toy\n")
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    settings = EnvironmentTask(environment="beside_the_recipe:Toy")
    assert len(build_environment(settings, tmp_path).train) == 1
    with pytest.raises(ImportPathError, match="no module"):
        build_environment(EnvironmentTask(environment="not_beside_the_recipe:Toy"), tmp_path)


def test_encode_starts_a_session_and_gives_what_the_model_reads_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "log", [])
    row = build_environment(task(), Path()).train[0]
    tokenizer = marked_tokenizer()
    assert "<｜User｜>key a<｜Assistant｜><think>" in tokenizer.text(list(row.encode(tokenizer)))
    assert Toy.log == ["start", "close"]
    monkeypatch.setattr(Toy, "faults", {"start": failing("start", "no license")})
    with pytest.raises(ValueError, match="environment_start: no license"):
        row.encode(tokenizer)


def test_survey_starts_few_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "log", [])
    made = build_environment(task({"rows": [f"k{n}" for n in range(50)]}), Path())
    found = survey(made, marked_tokenizer())
    assert (found.num_read, found.usable_train, found.usable_held_out) == (51, 50, 1)
    assert Toy.log.count("start") <= 4


def test_set_of_an_environment_lays_its_options_over_those_of_the_task() -> None:
    sets = {"hard": {"task": {"kind": "environment", "options": {"held_out": ["x y z"]}}}, "plain": {}}
    made = Recipe.model_validate(recipe(evaluation={"sets": sets}))
    hard, plain = build_sets(made, build_environment(task(), Path()), Path())
    assert [row.text for row in hard.rows] == ["x y z"]
    assert [row.text for row in plain.rows] == ["d", "e f"]
    assert hard.rows[0].episode is not None
    assert hard.rows[0].episode.environment.options["rows"] == ["a b", "c"]
    trained = {"hard": {"task": {"kind": "environment", "split": "train"}}}
    made = Recipe.model_validate(recipe(evaluation={"sets": trained}))
    assert [row.text for row in build_sets(made, build_environment(task(), Path()), Path())[0].rows] == ["a b", "c"]


def test_set_of_an_environment_needs_a_task_of_one() -> None:
    gym = {"kind": "reasoning_gym", "dataset": "chain_sum"}
    made = Recipe.model_validate(
        recipe(
            task=gym,
            reward="samepath.rewards.exact:number",
            evaluation={"sets": {"hard": {"task": {"kind": "environment"}}}},
        )
    )
    with pytest.raises(TaskError, match=r"evaluation.sets.hard: kind environment needs task.kind: environment"):
        build_sets(made, build_environment(task(), Path()), Path())


def test_recipe_of_an_environment_takes_no_reward_and_every_other_one_needs_one() -> None:
    assert Recipe.model_validate(recipe()).reward.parts == {}
    with pytest.raises(ValueError, match=r"reward.parts must be left out with task.kind: environment"):
        Recipe.model_validate(recipe(reward="samepath.rewards.exact:number"))
    with pytest.raises(ValueError, match="reward must name a function"):
        Recipe.model_validate(recipe(task={"kind": "reasoning_gym", "dataset": "chain_sum"}))


def test_recipe_of_an_environment_needs_an_engine_that_keeps_keys() -> None:
    with pytest.raises(ValueError, match=r"task.kind=environment .*prefix_cache=true"):
        Recipe.model_validate(recipe(engine={"kind": "builtin", "prefix_cache": False}))


def test_tokenizer_of_another_form_is_refused_with_its_setting(tokenizer: Tokenizer) -> None:
    row = build_environment(task(episode={"form": {"form": "deepseek_v32"}}), Path()).train[0]
    with pytest.raises(ValueError, match="control tokens"):
        row.encode(tokenizer)
