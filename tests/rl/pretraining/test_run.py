"""Runs on text from the command line: warm-up, sparse stage on its checkpoint, resumed to the last bit, refused in a sentence."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.learner.checkpoints import CheckpointError
from samepath.rl.pretraining import trainer as trainer_module
from samepath.rl.pretraining.run import check_text_run, resume_text_run, start_text_run
from samepath.rl.pretraining.text_folder import text_recipe_of_run
from samepath.rl.preview import sample_source
from samepath.rl.preview_conversation import play_conversations
from samepath.rl.recipe.text import TextRecipe
from samepath.rl.tracking.tracker import Tracker
from tests.rl.pretraining.texts import text_recipe, write_model, write_text

INDEXER_KEY = "model.layers.0.self_attn.indexer.wk.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with model, text, and a finished warm-up of three steps."""
    folder = tmp_path_factory.mktemp("text")
    write_model(folder / "model")
    write_text(folder / "text")
    start_text_run(text_recipe(folder), folder)
    return folder


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:06d}/model.safetensors")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{"step": line["step"], **line["metrics"]} for line in found]


def test_run_keeps_every_step_and_a_summary_with_recall_by_layer(made: Path) -> None:
    run_dir = made / "runs" / "warmup"
    found = lines(run_dir)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 3]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["checkpoint"] == str(run_dir / "checkpoints" / "step-000003")
    assert [len(by_layer) for by_layer in summary["recall_by_layer"].values()] == [2]
    assert len(summary["recall_best_by_layer"]["8"]) == len(summary["output_error_by_layer"]["8"]) == 2
    names = sorted(path.name for path in (run_dir / "pictures").iterdir())
    assert names == ["course.png", "excess.png", "layers.png", "mass.png"]
    assert summary["sparse/recall"] > found[0]["sparse/recall"]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_sparse_stage_goes_on_from_the_warm_ups_checkpoint(made: Path) -> None:
    recipe = text_recipe(made, "sparse", measured_topk=[4], measure_every=2)
    path = str(made / "runs/warmup/checkpoints/step-000003")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": path})})
    summary = start_text_run(recipe, made)
    assert summary["stage"] == "sparse"
    first = lines(made / "runs/sparse")[0]
    assert first["sparse/recall"] == pytest.approx(
        json.loads((made / "runs/warmup/summary.json").read_text())["sparse/recall"]
    )
    assert "sparse/perplexity_top4" in lines(made / "runs/sparse")[2]


def test_run_keeps_summary_and_pictures_as_artifacts(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(Tracker, "log_artifact", lambda self, path: kept.append(path.name))
    recipe = text_recipe(made, steps=1)
    start_text_run(recipe.model_copy(update={"name": "kept"}), made)
    assert {"summary.json", "pictures", "report.html"} <= set(kept)
    page = (made / "runs/kept/report.html").read_text()
    assert "Does the indexer find the keys?" in page
    assert "1 of 1" in page


NEEDLES = {"lengths": [30], "depths": [0.5], "samples": 1, "others": 0, "digits": 2, "text": "+{key}={value}-"}


def test_run_with_needles_asks_for_them_and_draws(made: Path) -> None:
    recipe = text_recipe(made, steps=1, measured_topk=[4], needles=NEEDLES).model_copy(update={"name": "needles"})
    summary = start_text_run(recipe, made)
    assert 0 < summary["sparse/needle_probability_top4"] < 1
    kept = json.loads((made / "runs/needles/summary.json").read_text())["needles"]
    assert kept["lengths"] == [30]
    assert kept["probability"]["sparse"]["4"] == [[summary["sparse/needle_probability_top4"]]]
    assert "sparse/needle_dense_accuracy" in lines(made / "runs/needles")[0]
    assert (made / "runs/needles/pictures/needles.png").is_file()
    table = CliRunner().invoke(app, ["eval", str(made / "runs/needles"), "--suite", "sparse"], catch_exceptions=False)
    assert "needles found" in table.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [200]}, r"stage.needles.lengths must be above the model's index_topk=8.*embeddings=128; got 200"),
        ({"text": "the {key} is {value}"}, "must be in the tokenizer's alphabet"),
        ({"lengths": [16], "others": 2}, "must have room for the needle"),
    ],
)
def test_needles_that_cannot_be_asked_for_are_refused_before_any_work(
    made: Path, change: dict[str, Any], message: str
) -> None:
    recipe = text_recipe(made, needles={**NEEDLES, **change}).model_copy(update={"name": "refused"})
    for start in (check_text_run, start_text_run):
        with pytest.raises(ValueError, match=message):
            start(recipe, made)
    assert not (made / "runs" / "refused").exists()


def interrupted(recipe: TextRecipe, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A run that a Ctrl-C ends in the step behind `at` steps."""
    step, calls = trainer_module.TextTrainer.step, []

    def cut(self: Any, sequences: Any) -> Any:
        calls.append(1)
        if len(calls) > at:
            raise KeyboardInterrupt
        return step(self, sequences)

    monkeypatch.setattr(trainer_module.TextTrainer, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        start_text_run(recipe, folder)
    monkeypatch.setattr(trainer_module.TextTrainer, "step", step)


def test_resumed_run_is_the_uninterrupted_one_to_the_last_bit(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = text_recipe(made).model_copy(update={"name": "cut"})
    interrupted(recipe, made, monkeypatch, at=2)
    run_dir = made / "runs" / "cut"
    assert [line["step"] for line in lines(run_dir)] == [0, 1, 2]
    resume_text_run(text_recipe_of_run(run_dir), run_dir)
    wanted, got = weights(made / "runs/warmup", 3), weights(run_dir, 3)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert [line["step"] for line in lines(run_dir)] == [0, 1, 2, 3, 3]


def test_run_cut_before_its_first_checkpoint_begins_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = text_recipe(made).model_copy(update={"name": "early"})
    interrupted(recipe, made, monkeypatch, at=1)
    shutil.rmtree(made / "runs/early/checkpoints", ignore_errors=True)
    resume_text_run(text_recipe_of_run(made / "runs/early"), made / "runs/early")
    wanted, got = weights(made / "runs/warmup", 3), weights(made / "runs/early", 3)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert [line["step"] for line in lines(made / "runs/early")] == [0, 1, 2, 3, 3]


def test_seed_changes_the_order(made: Path) -> None:
    start_text_run(text_recipe(made).model_copy(update={"name": "seed", "seed": 1}), made)
    wanted, got = weights(made / "runs/warmup", 3), weights(made / "runs/seed", 3)
    assert any(not torch.equal(wanted[name], got[name]) for name in wanted)


def test_resume_refuses_what_would_change_done_steps_and_takes_more_steps(made: Path) -> None:
    run_dir = made / "runs" / "warmup"
    with pytest.raises(ValueError, match=r"stage.sequences_per_step would have changed the steps that are done"):
        text_recipe_of_run(run_dir, ["stage.sequences_per_step=2"])
    longer = text_recipe_of_run(run_dir, ["stage.steps=5", "stage.measured_topk=[4]"])
    assert (longer.stage.steps, longer.stage.measured_topk) == (5, (4,))
    falling = run_dir.parent / "falling"
    falling.mkdir()
    data = yaml.safe_load((run_dir / "text-recipe.yaml").read_text())
    data["stage"]["optimizer"]["schedule"] = "cosine"
    (falling / "text-recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=r"stage.steps \(stage.optimizer.schedule=cosine falls over all of them\)"):
        text_recipe_of_run(falling, ["stage.steps=5"])


def write_recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**text_recipe(folder).model_dump(mode="json"), **changes}))
    return path


def test_commands_run_validate_and_resume_take_a_recipe_with_a_stage(made: Path) -> None:
    path = write_recipe(made, name="command")
    checked = CliRunner().invoke(app, ["validate", str(path)])
    assert checked.exit_code == 0, checked.output
    assert "samepath_grouped, 2 layers, 2 indexer heads, 8 keys selected of 40" in checked.output
    plain = json.loads(CliRunner().invoke(app, ["validate", str(path), "--json"], catch_exceptions=False).stdout)
    assert (plain["passed"], plain["recipe"]["name"], len(plain["said"])) == (True, "command", 2)
    assert not (made / "runs" / "command").exists()
    assert CliRunner().invoke(app, ["run", str(path), "stage.steps=1"], catch_exceptions=False).exit_code == 0
    again = CliRunner().invoke(app, ["run", str(path)])
    assert "already holds a run" in str(again.exception)
    resumed = CliRunner().invoke(app, ["resume", str(made / "runs/command"), "stage.steps=2"], catch_exceptions=False)
    assert resumed.exit_code == 0
    assert [line["step"] for line in lines(made / "runs/command")] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nowhere"}, "model.path must be a folder or a hub name"),
        ({"text": {"paths": ["text/*.md"], "length": 40}}, "no file is named"),
        ({"text": {"paths": ["text/*.jsonl"], "length": 8000}}, "max_position_embeddings=128"),
        ({"text": {"paths": ["text/*.jsonl"], "path": "both"}}, "kind: files needs paths and no path"),
        ({"stage": {"kind": "warm", "steps": 1}}, "kind"),
    ],
)
def test_what_is_wrong_is_said_before_the_runs_folder_is_made(made: Path, change: dict[str, Any], message: str) -> None:
    path = write_recipe(made, name="wrong", **change)
    for command in ("validate", "run"):
        found = CliRunner().invoke(app, [command, str(path)])
        assert message in str(found.exception)
    assert not (made / "runs" / "wrong").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(INDEXER_KEY), rf"missing \['{INDEXER_KEY}'\]"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"unknown \['more'\].*model\.safetensors"),
        (
            lambda tensors: tensors.update({INDEXER_KEY: torch.zeros(2, 2)}),
            rf"{INDEXER_KEY} must have shape .*\(2, 2\)",
        ),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_weights_that_do_not_fit_are_named_before_text_is_read(
    made: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    shutil.copytree(made / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    path = write_recipe(made, name="wrong", model=str(tmp_path / "model"), runs_dir=str(tmp_path / "runs"))
    for command in ("validate", "run"):
        found = CliRunner().invoke(app, [command, str(path)])
        assert re.search(message, str(found.exception)), found.exception
    assert not (tmp_path / "runs" / "wrong").exists()
    assert not (tmp_path / "runs" / "tokens").exists()


def test_eval_suite_sparse_measures_runs_recipes_and_folders(made: Path) -> None:
    run_dir = made / "runs" / "warmup"
    wanted = json.loads((run_dir / "summary.json").read_text())

    def measured(*arguments: str) -> dict[str, Any]:
        found = CliRunner().invoke(app, ["eval", *arguments, "--suite", "sparse", "--json"], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        result: dict[str, Any] = json.loads(found.stdout)
        return result

    whole = measured(str(run_dir), "stage.measured_topk=[4]")
    assert whole["perplexity"]["8"] == pytest.approx(wanted["sparse/perplexity"])
    assert whole["recall_by_layer"]["8"] == pytest.approx(wanted["recall_by_layer"]["8"])
    assert list(whole["recall_by_layer"]) == ["4", "8"]
    path = write_recipe(made, name="measured")
    first = measured(str(path))
    assert first["checkpoint"] == str(made / "model")
    assert first["perplexity"]["8"] == pytest.approx(math.exp(lines(run_dir)[0]["sparse/loss"]))
    assert measured(str(made / "model"), "--recipe", str(path)) == first
    assert measured(str(run_dir), "--step", "2")["checkpoint"].endswith("step-000002")
    assert measured(str(run_dir), "text.length=30")["perplexity"] != whole["perplexity"]
    table = CliRunner().invoke(app, ["eval", str(run_dir), "--suite", "sparse"], catch_exceptions=False)
    assert "recall, layer 1" in table.output
    assert "output error, mean" in table.output
    assert "best recall, layer 0" in table.output
    assert (
        CliRunner().invoke(app, ["eval", str(path), "--suite", "sparse", "--pictures", str(made / "drawn")]).exit_code
        == 0
    )
    assert sorted(file.name for file in (made / "drawn").iterdir()) == ["excess.png", "layers.png", "mass.png"]
    wrong = CliRunner().invoke(app, ["eval", str(path), "--pictures", str(made / "drawn")])
    assert "--pictures goes with --suite sparse" in str(wrong.exception)
    for arguments, message in [
        ([str(made / "model")], "Name a recipe with a stage"),
        ([str(run_dir), "--best"], "no sets and no best checkpoint"),
        ([str(run_dir), "--step", "1"], "must hold a whole checkpoint of step 1"),
        ([str(path), "--step", "1"], "--step goes with a run on text"),
    ]:
        assert message in str(CliRunner().invoke(app, ["eval", *arguments, "--suite", "sparse"]).exception)


def test_resume_from_an_earlier_step_makes_the_later_ones_again(made: Path) -> None:
    shutil.copytree(made / "runs/warmup", made / "runs/again")
    for _ in range(2):
        resume_text_run(text_recipe_of_run(made / "runs/again"), made / "runs/again", step=2)
        assert [line["step"] for line in lines(made / "runs/again")] == [0, 1, 2, 3, 3]
    wanted, got = weights(made / "runs/warmup", 3), weights(made / "runs/again", 3)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    resume_text_run(text_recipe_of_run(made / "runs/again"), made / "runs/again")


def test_export_takes_a_run_on_text_and_eval_says_how_it_is_measured(made: Path, tmp_path: Path) -> None:
    run_dir = made / "runs" / "warmup"
    assert (
        CliRunner().invoke(app, ["export", str(run_dir), str(tmp_path / "out")], catch_exceptions=False).exit_code == 0
    )
    wanted, got = weights(run_dir, 3), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert "--suite sparse" in str(CliRunner().invoke(app, ["eval", str(run_dir)]).exception)


def test_sample_answers_with_a_run_on_text_and_with_its_recipe(made: Path) -> None:
    run_dir = made / "runs" / "warmup"
    checkpoint = run_dir / "checkpoints" / "step-000003"
    answers = [
        [rollout.text for rollout in sample_source(source, "1+2+", 2, {"max_new_tokens": 8}, seed=0)]
        for source in (run_dir, checkpoint, write_recipe(made, name="warmup"), made / "model")
    ]
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises(CheckpointError, match="names no best checkpoint"):
        sample_source(run_dir, "1+2+", 1, {}, seed=0, best=True)
    with pytest.raises(ValueError, match="--conversation needs a recipe or a run, which names an environment"):
        play_conversations(run_dir, 0, 1, {}, seed=0)


def test_commands_for_runs_with_rewards_say_what_to_use_of_a_run_on_text(made: Path) -> None:
    run_dir = str(made / "runs/warmup")
    for arguments, message in [
        (["inspect", run_dir], "which samples nothing: it has no rollouts to look at. See `samepath doctor"),
        (["compare", run_dir, str(made)], "samepath compare takes runs with rewards"),
    ]:
        assert message in str(CliRunner().invoke(app, arguments).exception)


def test_schema_of_recipes_on_text_has_their_keys() -> None:
    found = json.loads(CliRunner().invoke(app, ["schema", "--text"], catch_exceptions=False).stdout)
    assert {"stage", "text", "learner", "extends"} <= found["properties"].keys()
    assert "stage" not in json.loads(CliRunner().invoke(app, ["schema"], catch_exceptions=False).stdout)["properties"]
