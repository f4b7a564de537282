"""How the driver reaches the learner: the object itself, or a Ray actor with a bound on every wait."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.rank_children import RankChildren
from samepath.rl.learner.rank_host import RankHost, summed
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.weights.publication import Publication


class LearnerHandle(Protocol):
    """The learner's calls (see `Learner`)."""

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]: ...

    def start_rl(self) -> None: ...

    def update(self, batch: TrainBatch) -> UpdateReport: ...

    def advance(self) -> None: ...

    def weights(self) -> Publication: ...

    def save(self, step: int, best: int | None = None) -> Path: ...

    def saved(self, step: int, *, wait: bool) -> bool: ...

    def statistics(self) -> dict[str, float]: ...

    @property
    def sampling_ranks(self) -> RankChildren | None: ...

    def close(self) -> None: ...


class InlineLearner(Learner):
    """The learner in the driver's process; with `learner.ranks` above 1 it is rank 0, and the others are its children."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> None:
        arguments = recipe, recipe_dir, run_dir, resume_from
        self._others: RankChildren | None = None
        if recipe.learner.ranks == 1 and recipe.learner.shard == "none":
            super().__init__(*arguments)
            return
        make = partial(RankHost, recipe, recipe_dir.resolve(), run_dir.resolve(), resume_from)
        self._others = RankChildren(recipe.learner, recipe.model.device, recipe_dir, make)
        with ExitStack() as failed:
            failed.callback(self.close)
            super().__init__(*arguments, self._others.ranks)
            self._others.end("start")
            failed.pop_all()

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]:
        """See `Learner.cold_start`."""
        with self._all("cold_start", first, count):
            return super().cold_start(first, count)

    def start_rl(self) -> None:
        """See `Learner.start_rl`."""
        with self._all("start_rl"):
            super().start_rl()

    def update(self, batch: TrainBatch) -> UpdateReport:
        """See `Learner.update`."""
        with self._all("update", batch):
            return super().update(batch)

    def advance(self) -> None:
        """See `Learner.advance`."""
        with self._all("advance"):
            super().advance()

    def _all(self, method: str, *arguments: object) -> AbstractContextManager[None]:
        """The other ranks make the call while this one does (see `RankChildren.beside`)."""
        return nullcontext() if self._others is None else self._others.beside(method, *arguments)

    def weights(self) -> Publication:
        """See `Learner.weights`."""
        with self._all_with_shards("weights"):
            return super().weights()

    def save(self, step: int, best: int | None = None) -> Path:
        """See `Learner.save`."""
        with self._all_with_shards("save", step, best):
            return super().save(step, best)

    def _all_with_shards(self, method: str, *arguments: object) -> AbstractContextManager[None]:
        """`_all` where rank 0 has but its share of what the call needs."""
        return self._all(method, *arguments) if self._recipe.learner.shard == "full" else nullcontext()

    def statistics(self) -> dict[str, float]:
        """See `Learner.statistics`; the memory is that of all ranks."""
        if self._others is None:
            return super().statistics()
        self._others.begin("statistics")
        return summed([super().statistics(), *self._others.end("statistics")])

    @property
    def sampling_ranks(self) -> RankChildren | None:
        """The other ranks, if each holds a whole model that an engine may sample from."""
        return self._others if self._recipe.learner.shard == "none" else None

    def close(self) -> None:
        """End the other ranks."""
        if self._others is not None:
            self._others.close()
            self._others.ranks.leave()


def build_learner(recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> LearnerHandle:
    """The learner that the recipe's runtime asks for."""
    if recipe.runtime == "inline":
        return InlineLearner(recipe, recipe_dir, run_dir, resume_from)
    # Late: `runtime: inline` must work without Ray.
    from samepath.rl.learner.ray_learner import RayLearner

    return RayLearner(recipe, recipe_dir, run_dir, resume_from)
