"""Groups that are sampled ahead of the learner: handed out as the feed allows, scored as they end, taken in the order of their numbers."""

from dataclasses import dataclass, field

from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.feed import Feed
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Weights


@dataclass(slots=True, kw_only=True)
class RolloutStream:
    """The groups from the feed to the learner. Nothing is dropped: whatever was handed out is trained."""

    feed: Feed
    pool: RolloutPool
    scorer: GroupScorer
    on_new_weights: OnNewWeights
    journal: GroupJournal
    _version: int = field(default=0, init=False)
    """The newest that the pool was given."""
    _next: int = field(default=0, init=False)
    """Number of the group that is handed out next."""
    _under_way: dict[str, int] = field(default_factory=dict, init=False)
    """Number of each group that is being sampled, by its id."""
    _finished: dict[int, Group] = field(default_factory=dict, init=False)
    """Groups that wait to be trained, by number."""

    def begin(self, step: int) -> None:
        """Go on with the groups of `step`, whose weights the pool has; of them, and of those ahead, the journal may have some."""
        self._version, self._next = step, self.feed.batch(step).start
        for later in self.feed.steps_ahead(step):
            for entry in self.journal.entries(later):
                self._take(entry.number, entry.group)
        self._hand_out()

    def pump(self, wait_s: float) -> None:
        """Take what has ended; waits for the first group, `wait_s` seconds at most."""
        for group in self.pool.poll(wait_s):
            number = self._under_way.pop(group.group_id)
            self.journal.append(self.feed.step(number), SampledGroup(number=number, group=group))
            self._take(number, group)

    def complete(self, step: int) -> bool:
        """Whether all groups of a step have ended and all their scores are there."""
        wanted = self.feed.batch(step)
        return all(number in self._finished and self.scorer.known(self._finished[number]) for number in wanted)

    def taken(self, step: int) -> list[Group]:
        """The groups of a step that is complete, in order and without their scores; the stream lets go of them."""
        return [self._finished.pop(number) for number in self.feed.batch(step)]

    def offer(self, weights: Weights, version: int) -> None:
        """Hand new weights to the pool, and the groups that they allow."""
        self.pool.offer_weights(weights, version, self.on_new_weights)
        self._version = version
        self._hand_out()

    @property
    def waiting(self) -> int:
        """Groups that have ended and are not trained yet."""
        return len(self._finished)

    @property
    def under_way(self) -> int:
        """Groups that were handed out and have not ended."""
        return len(self._under_way)

    def _take(self, number: int, group: Group) -> None:
        self._finished[number] = group
        self.scorer.submit(group)

    def _hand_out(self) -> None:
        requests, limit = [], self.feed.limit(self._version)
        for number in range(self._next, limit):
            if number in self._finished:
                continue
            request = self.feed.request(number)
            if isinstance(request, Group):
                self._finished[number] = request
            else:
                self._under_way[request.group_id] = number
                requests.append(request)
        self._next = max(self._next, limit)
        if requests:
            self.pool.submit(requests)
