"""The trainer of a run on text: in this process, and with `learner.ranks` above 1 in others beside it, its children."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samepath.model.files.policy_files import load_policy
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import place, require
from samepath.rl.learner.rank_children import RankChildren
from samepath.rl.learner.rank_host import RankOf
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.snapshot import read_state
from samepath.rl.pretraining.trainer import TextTrainer
from samepath.rl.recipe.text import TextRecipe


def build_trainer(recipe: TextRecipe, folder: Path, resumed: bool, ranks: Ranks = ALONE) -> TextTrainer:
    """The trainer of one rank, of the model in `folder`: a checkpoint of this run if `resumed`, whose optimiser goes on."""
    require(recipe.model.placement)
    model = load_policy(folder, "own", recipe.model.backend)
    assert isinstance(model, CausalLM)
    trainer = TextTrainer(place(model, recipe.model.placement), recipe.stage, ranks, recipe.learner.min_passes)
    if resumed:
        trainer.optimizer.restore(read_state(folder))
    return trainer


class TrainerRanks:
    """Rank 0 and the others. All hold the same weights; `trainer`, that of this process, is measured and saved."""

    def __init__(self, recipe: TextRecipe, recipe_dir: Path, folder: Path, *, resumed: bool) -> None:
        """See `build_trainer`. Raises LearnerLostError if a rank does not come."""
        self._others: RankChildren | None = None
        if recipe.learner.ranks == 1:
            self.trainer = build_trainer(recipe, folder, resumed)
            return
        build = partial(build_trainer, recipe, folder.resolve(), resumed)
        make = partial(RankOf, recipe.model.device, build)
        self._others = RankChildren(recipe.learner, recipe.model.device, recipe_dir, make)
        with ExitStack() as failed:
            failed.callback(self.close)
            self.trainer = build(self._others.ranks)
            self._others.end("start")
            failed.pop_all()

    def step(self, sequences: Sequence[NDArray[np.int64]]) -> Mapping[str, float]:
        """See `TextTrainer.step`: each rank runs a share. Raises LearnerLostError, which says what has become of one that is lost."""
        if self._others is None:
            return self.trainer.step(sequences)
        with self._others.beside("step", sequences):
            return self.trainer.step(sequences)

    def close(self) -> None:
        """End the others."""
        if self._others is not None:
            self._others.close()
            self._others.ranks.leave()
