"""Which groups are asked for, and when: a function of the recipe and a group's number alone, so that no group is ever too old to be trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.requests import train_request
from samepath.rl.tasks.row import Task
from samepath.rollout.environments.request import EpisodeRequest, Request
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The endless order of groups: number n is the (n mod (P + R))-th of step ⌊n / (P + R)⌋, of which the last R (`rl.refill`) are asked for only
    where others have no spread.

    Example:
        feed.request(35).group_id == "s3-g3"  # with 16 prompts a step
    """

    recipe: Recipe
    """Its seed, sampling, group size, prompts a step (P) and refill (R) count."""
    task: Task
    """Whose rows are asked."""
    tokenizer: Tokenizer
    """Encodes them."""

    def request(self, number: int) -> Request | Group:
        """The group of a number with a seed for every sample; where its row cannot be asked, the group of its failed samples."""
        rl, seed = self.recipe.rl, self.recipe.seed
        step, index = divmod(number, rl.prompts_per_step + rl.refill)
        asked = train_request(
            self.task,
            number,
            self.tokenizer,
            self.recipe.sampling,
            f"s{step + 1}-g{index}",
            tuple(seed_of(seed, step, index, sample) for sample in range(rl.group_size)),
        )
        if isinstance(asked, EpisodeRequest):
            return replace(asked, one_version=rl.recomputes)
        return asked

    def step(self, number: int) -> int:
        """The step that asks for a group."""
        return number // (self.recipe.rl.prompts_per_step + self.recipe.rl.refill)

    def number(self, group_id: str) -> int:
        """Number of the group that has this id."""
        step, index = group_id.removeprefix("s").split("-g")
        return (int(step) - 1) * (self.recipe.rl.prompts_per_step + self.recipe.rl.refill) + int(index)

    def batch(self, step: int) -> range:
        """Numbers of the groups that a step asks for first, and trains on unless one is replaced or left over.

        With E = `rl.oversample` they are E ahead of the step's own, and it trains of them the first that are done.
        """
        rl = self.recipe.rl
        if rl.oversample:
            return range(self._asked_by(step - 1), self._asked_by(step))
        first = step * (rl.prompts_per_step + rl.refill)
        return range(first, first + rl.prompts_per_step)

    def _asked_by(self, step: int) -> int:
        """Groups, by number, that the steps up to this one have asked for, with `rl.oversample`."""
        rl = self.recipe.rl
        return min((step + 1) * rl.prompts_per_step + rl.oversample, rl.steps * rl.prompts_per_step) if step >= 0 else 0

    def refills(self, step: int) -> range:
        """Numbers of the groups that may replace some of them, in the order in which they are asked for."""
        end = self.batch(step).stop
        return range(end, end + self.recipe.rl.refill)

    def limit(self, version: int) -> int:
        """Steps below this may ask engines that have this version, or get it before: see `admitted`. What may be left over is trained a step later."""
        rl = self.recipe.rl
        lag = rl.max_weight_lag - (rl.oversample > 0)
        return admitted(version, rl.prompts_per_step, lag, rl.steps) // rl.prompts_per_step


def of_other_steps(group_ids: Sequence[str], step: int, rl: AlgorithmSettings) -> float:
    """Share of the groups that a step trains although another one asks for them; with `rl.oversample` its neighbours may."""
    reach = int(rl.oversample > 0)
    asked = [int(group_id.removeprefix("s").split("-g")[0]) - 1 for group_id in group_ids]
    return sum(abs(one - step) > reach for one in asked) / max(len(asked), 1)


def admitted(version: int, prompts_per_step: int, max_weight_lag: int, steps: int) -> int:
    """How many groups, by number, may have been handed out when engines sample with `version`.

    Step s learns with version s, so tokens of `version` that it trains are s − version old, at most K = `max_weight_lag`: those of the steps up
    to version + K. While the learner has this version itself, (K + 1)·P groups are under way or wait.
    """
    return prompts_per_step * min(version + max_weight_lag + 1, steps)
