"""Groups that are sampled ahead of the learner: handed out as the feed allows, scored as they end, taken in the order of their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from samepath.rl.batch.refill import has_spread
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.begun_journal import BegunJournal
from samepath.rl.feed import Feed
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rl.history import History
from samepath.rl.kept_samples import KeptSamples
from samepath.rl.leftovers import Leftovers
from samepath.rollout.begun import going_on
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Weights


@dataclass(slots=True, kw_only=True)
class RolloutStream:
    """The groups from the feed to the learner. Nothing is dropped: whatever was handed out is trained, but for what `rl.refill` replaces."""

    feed: Feed
    pool: RolloutPool
    scorer: GroupScorer
    on_new_weights: OnNewWeights
    journal: GroupJournal
    begun: BegunJournal
    history: History
    _left: Leftovers = field(init=False)
    _kept: KeptSamples = field(init=False)
    _held: set[int] = field(default_factory=set, init=False)
    """Numbers that may be handed out and are not: what was drawn for them waits for its weights."""
    _version: int = field(default=0, init=False)
    """The newest that the pool was given."""
    _next: int = field(default=0, init=False)
    """Step whose groups are handed out next."""
    _granted: dict[int, list[int]] = field(default_factory=dict, init=False)
    """Numbers of the groups that replace some without spread, by step."""
    _judged: set[int] = field(default_factory=set, init=False)
    """Numbers of the groups whose spread is known."""
    _under_way: dict[str, int] = field(default_factory=dict, init=False)
    """Number of each group that is being sampled, by its id."""
    _finished: dict[int, Group] = field(default_factory=dict, init=False)
    """Groups that wait to be trained, by number."""

    def __post_init__(self) -> None:
        self._kept = KeptSamples(feed=self.feed, journal=self.journal, begun_journal=self.begun)
        self._left = Leftovers(feed=self.feed, history=self.history)

    def begin(self, step: int) -> None:
        """Go on with the groups of `step`, whose weights the pool has; of them, and of those ahead, the journals may have some."""
        self._version, self._next = step, step
        self._left.begin(step)
        left, ahead = self._left.left(step), self.feed.batch(step).start
        self._kept.read(
            range(max(0, step - 1), self.feed.recipe.rl.steps), lambda number: number in left or number >= ahead
        )
        self._hand_out(left)

    def pump(self, wait_s: float) -> None:
        """Take what has ended, and note what is under way; waits for the first group, `wait_s` seconds at most."""
        groups = self.pool.poll(wait_s)
        ended = {group.group_id for group in groups}
        told: dict[int, list[tuple[int, bytes]]] = {}
        for group_id, content in self.pool.progress():
            if group_id in self._under_way and group_id not in ended:
                number = self._under_way[group_id]
                told.setdefault(self.feed.step(number), []).append((number, content))
        for step, entries in told.items():
            self.begun.append(step, entries)
        for group in groups:
            number = self._under_way.pop(group.group_id)
            self.journal.append(self.feed.step(number), SampledGroup(number=number, group=group))
            self._take(number, group)

    def complete(self, step: int) -> bool:
        """Whether the groups that a step trains have ended and their scores are there; what lacks spread is replaced meanwhile (`rl.refill`)."""
        if not self.feed.recipe.rl.refill:
            return self._left.choice(step, self._done) is not None
        self._refill()
        return self._judged.issuperset(self._asked(step))

    def taken(self, step: int) -> list[Group]:
        """The groups of a step that is complete, in order and without their scores, replacements last; the stream lets go of them."""
        if self.feed.recipe.rl.refill:
            numbers = self._asked(step)
            self._granted.pop(step, None)
            self._judged.difference_update(numbers)
        else:
            numbers = self._left.taken(step)
        return [self._finished.pop(number) for number in numbers]

    def _done(self, number: int) -> bool:
        return number in self._finished and self.scorer.known(self._finished[number])

    def _asked(self, step: int) -> list[int]:
        """Numbers of the groups that a step has asked for, replacements last."""
        return [*self.feed.batch(step), *self._granted.get(step, [])]

    def _refill(self) -> None:
        """Hand out a group for each that has no spread, as far as its step may (`rl.refill`)."""
        rl = self.feed.recipe.rl
        if not rl.refill:
            return
        fresh: list[int] = []
        for number, group in sorted(self._finished.items()):
            if number in self._judged or not self.scorer.known(group):
                continue
            self._judged.add(number)
            step = self.feed.step(number)
            granted = self._granted.setdefault(step, [])
            if len(granted) < rl.refill and not has_spread(self.scorer.peek(group), rl):
                granted.append(self.feed.refills(step)[len(granted)])
                fresh.append(granted[-1])
        if fresh:
            self._hand_out(fresh)

    def offer(self, weights: Weights, version: int, *, known: bool = True) -> int:
        """Hand new weights to the pool, and the groups that they allow; returns how many tokens this loses.

        `known` says that they are those which drew what the journals have of this version; else that is drawn again.
        """
        self.pool.offer_weights(weights, version, self.on_new_weights)
        self._version = version
        lost = 0 if known else self._kept.drop(version)
        self._hand_out()
        return lost

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

    def _hand_out(self, more: Sequence[int] = ()) -> None:
        """Hand out groups of steps that may begin, `more`, and what has waited for its weights."""
        for entry in self._kept.ready(self._version):
            self._take(entry.number, entry.group)
        limit = max(self._next, self.feed.limit(self._version))
        fresh = [number for step in range(self._next, limit) for number in self.feed.batch(step)]
        numbers = sorted({*self._held, *fresh, *more} - set(self._finished))
        self._held = {number for number in numbers if self._kept.waits(number, self._version)}
        self._next = limit
        requests = []
        for number in numbers:
            if number in self._held:
                continue
            request = self.feed.request(number)
            if isinstance(request, Group):
                self._finished[number] = request
            else:
                self._under_way[request.group_id] = number
                requests.append(self._gone_on(number, request))
        if requests:
            self.pool.submit(requests)

    def _gone_on(self, number: int, request: Request) -> Request:
        """The request behind what was drawn for it before; conversations begin again."""
        told = self._kept.taken(number)
        return going_on(request, told) if isinstance(request, GroupRequest) else request
