"""A checkpoint that ranks write in shards is there whole or not at all, and one that is torn is refused by the file's name."""

from pathlib import Path

import pytest

from samepath.model.manifest import require_whole
from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.learner.ranks import ALONE
from tests import sharded_cases
from tests.ranks import on_ranks

SHORT = ("cold_start.steps=0", "learner.shard=full")


@pytest.mark.parametrize("asynchronous", ["true", pytest.param("false", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("bad", "what", "said"), [(1, "shards", "shards of rank 1: "), (0, "tokenizer", "No space left")]
)
def test_checkpoint_that_one_rank_cannot_write_is_not_there_and_the_one_before_stays(
    tiny_recipe, tmp_path: Path, bad: int, what: str, said: str, asynchronous: str
) -> None:
    recipe = tiny_recipe(*SHORT, "learner.ranks=2", f"checkpoint.asynchronous={asynchronous}")
    first, second = on_ranks(2, sharded_cases.saving, recipe, tmp_path, bad, what)
    assert first[0].startswith("CheckpointError: ")
    assert said in first[0]
    assert "step-000002" in first[0]
    assert first[1] == second[1] == ["step-000001"]
    assert first[2] == second[2] == "whole"
    require_whole(recipe.run_dir / "checkpoints" / "step-000003")


def test_torn_shard_is_refused_by_name_and_the_checkpoint_before_is_taken(
    tiny_recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(*SHORT, "learner.ranks=2")
    on_ranks(2, sharded_cases.saving, recipe, tmp_path, -1, "")
    folders = [recipe.run_dir / "checkpoints" / f"step-00000{step}" for step in (1, 2, 3)]
    shard = next((folders[2] / "shards").glob("__1_*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert latest_checkpoint(recipe.run_dir) == (folders[1], 2)
    assert f"{shard} has other content" in caplog.text
    shard.unlink()
    assert latest_checkpoint(recipe.run_dir) == (folders[1], 2)
    assert f"{shard} is missing" in caplog.text


def test_checkpoint_of_another_model_is_refused_by_a_tensors_name(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(*SHORT, "learner.ranks=1")
    on_ranks(1, sharded_cases.saving, recipe, tmp_path, -1, "")
    checkpoint = recipe.run_dir / "checkpoints" / "step-000001"
    other = tiny_recipe(
        "cold_start.steps=0", "learner.indexer=trained", "model.config.moe_intermediate_size=16", "name=other"
    )
    learner = sharded_cases.Learner(other, tmp_path, other.run_dir, None, ALONE)
    learner.start_rl()
    with pytest.raises(
        ValueError, match=r"weights\.layers\.1\.feed_forward\.down. Go on with the recipe that wrote it"
    ):
        learner._restore(checkpoint)
