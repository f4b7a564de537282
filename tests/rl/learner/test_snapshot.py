"""A checkpoint written while training goes on has the bytes of one that was written before it went on."""

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from samepath.rl.learner import checkpoint_writer
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.snapshot import in_host_memory
from tests.rl.saved import saved
from tests.update_runs import rollout_batch


def test_in_host_memory_copies_every_tensor_and_keeps_what_is_one_in_one() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    tree = {"a": {0: matrix, 1: matrix.t()}, "tied": matrix.detach(), "groups": [{"betas": (0.9, 0.99), "lr": 0.1}]}
    held, ready = in_host_memory(tree, copied=True)
    ready()
    matrix.zero_()
    assert held["groups"] == tree["groups"]
    assert torch.equal(held["a"][0], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(held["a"][1], torch.arange(6.0).reshape(2, 3).t())
    assert held["tied"] is held["a"][0]


def test_in_host_memory_without_a_copy_takes_no_memory() -> None:
    matrix = torch.ones(2)
    held, _ = in_host_memory([matrix], copied=False)
    assert held[0].data_ptr() == matrix.data_ptr()


def test_in_host_memory_gives_the_copies_back_with_the_tree() -> None:
    """A circle of references would keep them until the garbage collector came by, one more with every checkpoint."""
    held, ready = in_host_memory({"a": [torch.ones(2)]}, copied=True)
    copy = weakref.ref(held["a"][0])
    gc.disable()
    try:
        ready()
        del held
        assert copy() is None
    finally:
        gc.enable()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_checkpoint_written_after_the_next_update_has_the_bytes_of_one_written_before_it(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, original = threading.Event(), checkpoint_writer.write_folder
    folders = []
    for asynchronous in (False, True):
        recipe = tiny_recipe(f"name=run-{asynchronous}", f"checkpoint.asynchronous={asynchronous}", "optimizer.lr=0.1")
        learner = Learner(recipe, tmp_path, recipe.run_dir, None)
        learner.start_rl()
        batch = rollout_batch(learner._tokenizer)
        learner.update(batch)
        if asynchronous:
            monkeypatch.setattr(
                checkpoint_writer, "write_folder", lambda *both: go.wait(60) and original(*both) and None
            )
        folder = learner.save(1)
        learner.update(batch)
        assert learner.saved(1, wait=False) != asynchronous
        if asynchronous:
            go.set()
        assert learner.saved(1, wait=True)
        folders.append(contents(folder))
    assert {"model.safetensors", "learner.pt", "step.json", "tokenizer.json", "manifest.json"} <= folders[0].keys()
    assert folders[0] == folders[1]


def test_saved_knows_no_step_that_was_never_begun(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    learner = Learner(recipe, tmp_path, recipe.run_dir, None)
    learner.start_rl()
    saved(learner, 0)
    assert not learner.saved(1, wait=True)
