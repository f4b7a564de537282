"""A learner of two ranks with an engine in each, for tests. A process has room for one at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.learner import rank_children
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.model_source import save_model
from samepath.rl.learner.rank_pool import RankPool
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.training import inline_pool
from samepath.rollout.pool.pool import InlinePool
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import ALPHABET, tiny_model
from tests.random_conversations import talking_tokenizer
from tests.rl.conftest import TINY
from tests.tiny_runs import random_prompt, request
from tests.update_runs import rollout_batch

TWO: dict[str, Any] = {"learner": {"ranks": 2}, "engine": {"max_sequences": 4}}
"""Of a recipe."""


class Pools:
    """A learner of two ranks, the pool of both engines, and one of an engine alone."""

    def __init__(self, folder: Path) -> None:
        save_model(tiny_model(), talking_tokenizer(), folder / "model")
        self.recipe = recipe = Recipe.model_validate(
            {**TINY, **TWO, "model": str(folder / "model"), "runs_dir": str(folder / "runs")}
        )
        self.version = 0
        self.learner = InlineLearner(recipe, folder, recipe.run_dir, None)
        self.learner.start_rl()
        arguments = (self.learner.reference_dir, recipe.engine, recipe.rollout, recipe.model.placement)
        pool = inline_pool(*arguments, folder, self.learner.sampling_ranks)
        assert isinstance(pool, RankPool)
        self.both, self.alone = pool, InlinePool(*arguments)
        for one in (self.both, self.alone):
            one.load_weights(self.learner.weights(), 0)

    def learn(self) -> None:
        self.learner.update(rollout_batch(character_tokenizer(ALPHABET)))
        self.version += 1

    def drained(self, count: int) -> list[Group]:
        groups: list[Group] = []
        while len(groups) < count:
            groups += self.both.poll(1.0)
        return groups

    def rank_1(self) -> rank_children._Child:
        assert self.learner._others is not None
        (child,) = self.learner._others._children
        return child

    def close(self) -> None:
        self.both.close()
        self.learner.close()


def asked(count: int, tokens: int = 12) -> list[GroupRequest]:
    rng = np.random.default_rng(4)
    sampling = SamplingSettings(max_new_tokens=tokens, ignore_stop=True)
    return [request(f"g{index}", random_prompt(rng, 9, 8), sampling, (index, index + 50)) for index in range(count)]
