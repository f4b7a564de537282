"""What is offered for the last word of a command line."""

from pathlib import Path

import pytest
import typer

from samepath.rl.cli import app
from samepath.rl.completion.candidates import candidates


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two recipes, a run and a few files that are neither."""
    for name in ("recipes/quickstart.yaml", "recipes/notes.md", "mine.yml", "runs/first/recipe.yaml", ".hidden/x.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "runs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    """For the text behind `samepath `; an empty last word where the line ends in a blank."""
    return candidates(typer.main.get_command(app), line.split(" "))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("re", ["replay", "replay-run", "resume"]),
        ("--v", ["--version"]),
        ("comp", ["compare", "completion"]),
        ("compare runs/first --", ["--out", "--json", "--help"]),
        ("sweep recipes/quickstart.yaml rl.group", ["rl.group_size="]),
        ("validate --", ["--strict", "--quiet", "--json", "--help"]),
        ("sample runs/first 1+2= --no", ["--no-chat"]),
        ("sample x y --temperature ", []),
        ("convert x y --dtype b", ["bfloat16"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("completion bash ", []),
        ("doctor --", ["--json", "--help"]),
        ("nonsense r", []),
    ],
)
def test_candidates_of_commands_options_and_their_values(line: str, wanted: list[str]) -> None:
    assert offered(line) == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("run ", ["recipes/quickstart.yaml", "mine.yml", "recipes/", "runs/"]),
        ("run recipes/", ["recipes/quickstart.yaml"]),
        ("run --x ./m", ["./mine.yml"]),
        ("run .h", [".hidden/"]),
        ("resume ", ["runs/first", "recipes/", "runs/"]),
        ("resume runs/", ["runs/empty/", "runs/first"]),
        ("doctor runs/f", ["runs/first"]),
        ("eval mi", ["mine.yml"]),
        ("eval runs/f", ["runs/first"]),
        ("eval runs/first --checkpoint ru", ["runs/"]),
        ("run no/such/", []),
    ],
)
def test_candidates_of_files_and_folders(line: str, wanted: list[str], folder: Path) -> None:
    assert offered(line) == wanted


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("rl.group", ["rl.group_size="]),
        ("tr", ["tracking."]),
        ("rl.objective.k", ["rl.objective.kl."]),
        ("runtime=", ["runtime=ray", "runtime=inline"]),
        ("runtime=i", ["runtime=inline"]),
        ("rl.drop_uninformative=", ["rl.drop_uninformative=true", "rl.drop_uninformative=false"]),
        ("task.held_out_p", ["task.held_out_path="]),
        ("task.kind=h", ["task.kind=hub"]),
        ("engine.kind=", ["engine.kind=builtin", "engine.kind=vllm"]),
        ("reward.parts.mine.w", ["reward.parts.mine.weight="]),
        ("evaluation.sets.aime.sampling.temp", ["evaluation.sets.aime.sampling.temperature="]),
        ("~rl.ste", ["~rl.steps"]),
        ("rl.steps=", []),
        ("nonsense.", []),
        ("ext", []),
    ],
)
def test_candidates_of_override_keys_and_values(word: str, wanted: list[str]) -> None:
    for before in ("run recipes/quickstart.yaml", "resume runs/first rl.steps=3", "validate --strict x.yaml"):
        assert offered(f"{before} {word}") == wanted


def test_candidates_name_every_top_level_key_once() -> None:
    keys = offered("run x.yaml ")
    assert {"name=", "seed=", "model.", "task.", "reward.", "rl.", "evaluation."} <= set(keys)
    assert len(keys) == len(set(keys))
