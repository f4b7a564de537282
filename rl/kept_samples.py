"""What a killed run had sampled and not trained, until the weights that drew it are there again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from samepath.rl.begun_journal import BegunJournal
from samepath.rl.feed import Feed
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rollout.begun import Progress
from samepath.rollout.record_bytes import as_bytes


@dataclass(slots=True, kw_only=True)
class KeptSamples:
    """Groups and begun samples on the disk. Steps that are made again give the same weights, so that what later ones drew stays theirs."""

    feed: Feed
    journal: GroupJournal
    begun_journal: BegunJournal
    groups: dict[int, SampledGroup] = field(default_factory=dict, init=False)
    """Groups that ended, by number."""
    begun: dict[int, list[Progress]] = field(default_factory=dict, init=False)
    """What was told of the others, by number."""

    def read(self, steps: Iterable[int], wanted: Callable[[int], bool]) -> None:
        """Take what stands on the disk of these steps, of groups with a number that is still to be trained."""
        for step in steps:
            entries = {entry.number: entry for entry in self.journal.entries(step) if wanted(entry.number)}
            self.groups |= entries
            told = self.begun_journal.entries(step)
            self.begun |= {
                number: one for number, one in told.items() if wanted(number) and number not in entries and one
            }

    def ready(self, version: int) -> list[SampledGroup]:
        """Groups of which no token was drawn by weights later than `version`; they are let go."""
        found = [entry for entry in self.groups.values() if entry.newest_version <= version]
        for entry in found:
            del self.groups[entry.number]
        return sorted(found, key=lambda entry: entry.number)

    def waits(self, number: int, version: int) -> bool:
        """Whether a group of this number, or its samples, must wait for weights later than `version`."""
        return number in self.groups or _newest(self.begun.get(number, [])) > version

    def taken(self, number: int) -> list[Progress]:
        """What was told of a group; it is let go."""
        return self.begun.pop(number, [])

    def drop(self, version: int) -> int:
        """Let go of what `version` and later weights drew: they are others now. Returns how many tokens that are.

        Of a group stays what was told of it before, and its samples go on from there.
        """
        lost = 0
        for number in [one for one, entry in self.groups.items() if entry.newest_version >= version]:
            lost += self.groups.pop(number).num_tokens
            told = self.begun_journal.entries(self.feed.step(number)).get(number, [])
            lost -= _tokens(self._cut(number, told, version))
        for number in [one for one, told in self.begun.items() if _newest(told) >= version]:
            told = self.begun.pop(number)
            lost += _tokens(told) - _tokens(self._cut(number, told, version))
        return lost

    def _cut(self, number: int, told: list[Progress], version: int) -> list[Progress]:
        """Keep the beginning that older weights drew, here and on the disk."""
        kept = list(takewhile(lambda one: one.newest_version < version, told))
        if kept:
            self.begun[number] = kept
        self.begun_journal.restart(self.feed.step(number), number, [as_bytes(one) for one in kept])
        return kept


def _newest(told: Iterable[Progress]) -> int:
    return max((one.newest_version for one in told), default=-1)


def _tokens(told: Iterable[Progress]) -> int:
    """Tokens that samples had drawn by then."""
    by_sample: dict[int, int] = {}
    for one in told:
        for drawn in one.drawn:
            by_sample[drawn.index] = by_sample.get(drawn.index, 0) + len(drawn.token_ids)
        # They come whole, whatever was told of them before.
        by_sample |= {rollout.sample_index: rollout.num_trained for rollout in one.ended}
    return sum(by_sample.values())
