"""Runs on text with several ranks: the same steps to the bit, checkpoints that any number of ranks goes on from, a lost rank that is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.learner import rank_children
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.pretraining import ranks as ranks_module
from samepath.rl.pretraining.corpus import load_corpus
from samepath.rl.pretraining.ranks import TrainerRanks
from samepath.rl.pretraining.run import resume_text_run, start_text_run
from samepath.rl.pretraining.text_folder import text_recipe_of_run
from samepath.rl.pretraining.trainer import TextTrainer
from samepath.rl.recipe.text import TextRecipe
from tests.rl.pretraining.texts import text_recipe, tokenizer, write_model, write_text

TIMED = ("time/", "memory/", "text/tokens_per_s", "text/collectives_")
"""Beginnings of metrics that no two runs have alike."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with model and text."""
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder / "model", "deepseek_v32")
    write_text(folder / "text")
    return folder


def recipe_of(folder: Path, kind: str, name: str, **learner: Any) -> TextRecipe:
    recipe = text_recipe(folder, kind)
    plain = recipe.model_dump(mode="json")
    return TextRecipe.model_validate({**plain, "name": name, "learner": {"update_timeout_s": 60, **learner}})


def computed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(TIMED)}


@pytest.mark.parametrize("kind", ["warmup", pytest.param("sparse", marks=pytest.mark.slow)])
def test_two_ranks_take_the_steps_of_one_to_the_bit(made: Path, kind: str) -> None:
    learned = []
    for count in (1, 2):
        recipe = recipe_of(made, kind, f"{kind}{count}", ranks=count, min_passes=2)
        corpus = load_corpus(recipe.text, tokenizer(), made, made / "tokens", lambda _: None)
        ranks = TrainerRanks(recipe, made, made / "model", resumed=False)
        try:
            steps = [dict(ranks.step(corpus.batch(0, step, 4))) for step in range(2)]
            shares = [one.get("text/collectives_share", 0.0) for one in steps]
            assert all(0 < share < 1 for share in shares) if count == 2 else shares == [0.0, 0.0]
            metrics = [computed(one) for one in steps]
            weights = {name: tensor.detach().clone() for name, tensor in ranks.trainer.model.named_parameters()}
            learned.append((metrics, weights))
        finally:
            ranks.close()
    (metrics, weights), (other_metrics, other_weights) = learned
    assert metrics == other_metrics
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_least_number_of_passes_is_kept(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    run = TextTrainer._pass

    def counted(self: TextTrainer, *arguments: Any) -> Any:
        passes.append(1)
        return run(self, *arguments)

    monkeypatch.setattr(TextTrainer, "_pass", counted)
    for least in (1, 3):
        recipe = recipe_of(made, "sparse", "least", min_passes=least)
        corpus = load_corpus(recipe.text, tokenizer(), made, made / "tokens", lambda _: None)
        passes.clear()
        TrainerRanks(recipe, made, made / "model", resumed=False).step(corpus.batch(0, 0, 4))
        assert len(passes) == least


def test_ranks_are_asked_for_as_the_recipe_says(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def seen(settings: Any, device: str, folder: Path, make: Any) -> None:
        assert (settings.ranks, settings.update_timeout_s, device) == (3, 17, "cpu")
        raise SeenError

    monkeypatch.setattr(ranks_module, "RankChildren", seen)
    recipe = recipe_of(made, "sparse", "asked", ranks=3, update_timeout_s=17)
    with pytest.raises(SeenError):
        TrainerRanks(recipe, made, made / "model", resumed=False)


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_ranks_and_ends_with_the_same_bits(made: Path) -> None:
    start_text_run(recipe_of(made, "sparse", "whole", min_passes=2), made)
    for name, first, then in (("narrowed", 2, 1), ("widened", 1, 2)):
        start = recipe_of(made, "sparse", name, ranks=first, min_passes=2)
        start_text_run(start.model_copy(update={"stage": start.stage.model_copy(update={"steps": 2})}), made)
        run_dir = made / "runs" / name
        resume_text_run(text_recipe_of_run(run_dir, ["stage.steps=3", f"learner.ranks={then}"]), run_dir)
        wanted, got = (
            load_file(made / "runs" / one / "checkpoints/step-000003/model.safetensors") for one in ("whole", name)
        )
        assert all(torch.equal(wanted[tensor], got[tensor]) for tensor in wanted)


@pytest.mark.slow
def test_lost_rank_ends_the_run_by_name_and_resume_goes_on(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_children, "END_WAIT_S", 1.0)
    step, done = TrainerRanks.step, []

    def losing(self: TrainerRanks, sequences: Any) -> Any:
        if len(done) == 2:
            assert self._others is not None
            self._others._children[0].process.kill()
        done.append(1)
        return step(self, sequences)

    monkeypatch.setattr(TrainerRanks, "step", losing)
    run_dir = made / "runs" / "lost"
    with pytest.raises(
        LearnerLostError, match=r"learner rank 1 \(process \d+\) ended with signal SIGKILL.*samepath resume"
    ):
        start_text_run(recipe_of(made, "sparse", "lost", ranks=2), made)
    monkeypatch.setattr(TrainerRanks, "step", step)
    assert CliRunner().invoke(app, ["resume", str(run_dir)], catch_exceptions=False).exit_code == 0
    found = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert found == [0, 1, 2, 3, 3]
