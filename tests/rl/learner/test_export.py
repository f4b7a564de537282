"""`samepath export` writes what others load: the checkpoint's weights bit by bit, configuration and tokenizer, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from samepath.model.files.policy_files import load_policy, policy_tensors
from samepath.model.files.stored_weights import StoredWeights
from samepath.model.files.weight_files import INDEX_FILE
from samepath.model.manifest import BrokenFolderError
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.cli import app
from samepath.rl.learner import export as exporting
from samepath.rl.learner.export import ExportError, export
from samepath.rl.learner.learner import Learner
from samepath.rl.recipe.file import dump_recipe

WHOLE = 1 << 40


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    stored = StoredWeights(folder)
    return dict(stored.read(stored.shapes))


@pytest.fixture
def run_dir(tiny_recipe, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 and 2, and a reference, of one process."""
    recipe = tiny_recipe("cold_start.steps=0", "checkpoint.asynchronous=false")
    learner = Learner(recipe, tmp_path, recipe.run_dir, None)
    learner.start_rl()
    learner.save(1)
    with torch.no_grad():
        learner._model.head += 1
    learner.save(2)
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe.run_dir


def test_export_of_a_run_is_its_newest_checkpoint_for_samepath_and_transformers(run_dir: Path, tmp_path: Path) -> None:
    done = export(run_dir, tmp_path / "out", WHOLE)
    checkpoint = run_dir / "checkpoints" / "step-000002"
    assert (done.checkpoint, done.folder, done.files) == (checkpoint, tmp_path / "out", 1)
    written = read_weights(tmp_path / "out")
    assert done.tensors == len(written)
    expected = read_weights(checkpoint)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert load_tokenizer(tmp_path / "out").encode("1+2=") == load_tokenizer(checkpoint).encode("1+2=")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.lm_head.weight, written["lm_head.weight"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_export_of_a_checkpoint_above_a_size_has_several_files_and_an_index(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "step-000001"
    done = export(checkpoint, tmp_path / "out", 100_000)
    assert done.files > 2
    weight_map = json.loads((tmp_path / "out" / INDEX_FILE).read_text())["weight_map"]
    assert len(set(weight_map.values())) == done.files
    again, expected = load_policy(tmp_path / "out", "own", "torch"), load_policy(checkpoint, "own", "torch")
    assert all(torch.equal(policy_tensors(again)[name], one) for name, one in policy_tensors(expected).items())


def test_export_of_a_run_without_checkpoint_is_its_reference(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    assert export(run_dir, tmp_path / "out", WHOLE).checkpoint == run_dir / "reference"


def test_export_refuses_what_is_missing_torn_or_taken_and_leaves_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, taken = tmp_path / "out", tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(ExportError, match=f"OUT must be a new or an empty folder; {taken} holds something"):
        export(run_dir, taken, WHOLE)
    with pytest.raises(ExportError, match=f"{taken} is neither"):
        export(taken, out, WHOLE)
    with pytest.raises(ExportError, match=f"{tmp_path / 'nowhere'} is neither"):
        export(tmp_path / "nowhere", out, WHOLE)
    checkpoint = run_dir / "checkpoints" / "step-000002"
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BrokenFolderError, match=r"model\.safetensors must have \d+ bytes; it has 1000"):
        export(checkpoint, out, WHOLE)
    # Of a run the one before is taken.
    assert export(run_dir, tmp_path / "before", WHOLE).checkpoint.name == "step-000001"

    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(exporting, "write_weights", full)
    with pytest.raises(OSError, match=f"{out}: No space left"):
        export(run_dir, out, WHOLE)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_export_command_says_what_it_wrote_and_what_is_wrong(run_dir: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run_dir), str(tmp_path / "out"), "--max-file-gib", "0.0001"])
    assert done.exit_code == 0
    assert "tensors" in done.output
    assert "step-000002" in done.output
    assert (tmp_path / "out" / INDEX_FILE).is_file()
    again = CliRunner().invoke(app, ["export", str(run_dir), str(tmp_path / "out")])
    assert isinstance(again.exception, ExportError)
