"""Batches that do not wait for their slowest group (`rl.oversample`): what one leaves over, the next one trains for sure."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from samepath.rl.feed import Feed
from samepath.rl.history import History


@dataclass(slots=True, kw_only=True)
class Leftovers:
    """Which groups each step trains. With E = 0 those that it asks for."""

    feed: Feed
    history: History
    """A step that is made again trains what it trained."""
    _before: Collection[int] = field(default=(), init=False)
    """What the step before trained."""
    _chosen: dict[int, list[int]] = field(default_factory=dict, init=False)

    def begin(self, step: int) -> None:
        """Go on with a step. Raises ValueError where it is not known what the step before left over."""
        if not step or not self.feed.recipe.rl.oversample:
            return
        line = self.history.line(step - 1)
        if line is None:
            raise ValueError(
                f"with rl.oversample step {step + 1} trains what step {step} left over, and the run's history does not say what that is. Resume from "
                "another checkpoint with --step."
            )
        self._before = {group.number for group in line.groups}

    def left(self, step: int) -> list[int]:
        """Numbers of the groups that the step before left over to this one."""
        if not step or not self.feed.recipe.rl.oversample:
            return []
        # What that one was left over itself, it has trained.
        return [number for number in self.feed.batch(step - 1) if number not in self._before]

    def choice(self, step: int, done: Callable[[int], bool]) -> list[int] | None:
        """Numbers of the groups that a step trains, in order, once it can; `done` says which are. It does not change any more."""
        if step not in self._chosen and (found := self._choice(step, done)) is not None:
            self._chosen[step] = found
        return self._chosen.get(step)

    def taken(self, step: int) -> list[int]:
        """What was chosen; the step trains it now."""
        numbers = self._chosen.pop(step)
        self._before = set(numbers)
        return numbers

    def _choice(self, step: int, done: Callable[[int], bool]) -> list[int] | None:
        left, fresh = self.left(step), self.feed.batch(step)
        known = self.history.line(step) if self.feed.recipe.rl.oversample else None
        if known is not None:
            numbers = [group.number for group in known.groups]
            return numbers if all(map(done, numbers)) else None
        wanted = self.feed.recipe.rl.prompts_per_step - len(left)
        first = [number for number in fresh if done(number)][:wanted]
        return [*left, *first] if len(first) == wanted and all(map(done, left)) else None
