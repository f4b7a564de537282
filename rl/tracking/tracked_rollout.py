"""One rollout as people look at it, and which of a step's rollouts are worth looking at first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KIND_LETTERS = "scrt"
"""Letters of `samepath.rollout.types.TOKEN_KINDS`: scaffold, content, read again, trained."""
TOKEN_FIELDS = (
    "tokens",
    "sampler_logprobs",
    "kl_tokens",
    "log_ratios",
    "entropies",
    "roles",
    "support_sizes",
    "weight_versions",
    "routes",
)
"""Fields of a rollout that go by drawn token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedCall:
    """What one call of the model drew in a segment (`samepath.rollout.types.CallSpan`).

    Example:
        TrackedCall(index=0, first=4, end=7, kind="act", finish_reason="stop", seconds=0.4)
    """

    index: int
    """Place among the calls of the rollout, from 0."""
    first: int
    """Position of its first drawn token."""
    end: int
    """Position behind its last one."""
    kind: str
    """`act`, or `edit` of its own context."""
    finish_reason: str
    """`stop`, `length` or `abort`; `weights` where new weights cut it and it goes on in the next segment."""
    seconds: float
    """Time from its submission to its last token; 0 where it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTool:
    """One call of a tool (`samepath.rollout.types.ToolRecord`).

    Example:
        TrackedTool(turn=0, name="get", arguments={"key": "a"}, text="17", error="", seconds=0.002)
    """

    turn: int
    """Index of the model's call that asked for it."""
    name: str
    """Tool."""
    arguments: Mapping[str, Any]
    """What it was given, plain data."""
    text: str
    """What the model read of it."""
    error: str
    """Empty, or why it gave no result (`samepath.rollout.types.ToolError`)."""
    seconds: float
    """Time that it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedSegment:
    """A segment of a conversation as people look at it: what the model read and drew, token by token.

    Example:
        TrackedSegment(epoch=0, tokens=("<user>", "7+8=", "<assistant>", "15", "<end>"), kinds="scstt", calls=(call,))
    """

    epoch: int
    """Of its conversation, from 0."""
    tokens: tuple[str, ...]
    """[T] text of each token."""
    kinds: str
    """[T] a letter of `KIND_LETTERS` for each."""
    calls: tuple[TrackedCall, ...]
    """What the model drew, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRoutes:
    """Experts of the drawn tokens of a rollout, at the rows that predict them (`samepath.rl.tracking.token_columns.routes`).

    Example: two layers that choose two experts each; of token 3 the live router would take experts 1 and 6 in layer 2:
        TrackedRoutes(layers=(1, 2), experts=2, chosen="eJxjYGBg…", live=((3, 1, 1, 6),))
    """

    layers: tuple[int, ...]
    """[L] global numbers of the layers."""
    experts: int
    """Chosen in each."""
    chosen: str
    """[T, L, X] expert ids, −1 where none was recorded: 16-bit numbers, low byte first, zlib, base64."""
    live: tuple[tuple[int, ...], ...]
    """(token, place of the layer, experts…) wherever the learner's live router would have chosen others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRollout:
    """One rollout as people look at it: text, reward, and what the objective did with it.

    Example:
        TrackedRollout(step=3, group_id="s3-g0", sample_index=2, dataset="chain_sum", prompt_text="12+34+5=",
                      response_text="51", gold="51", reward=1.0, reward_parts={"answer": 1.0}, advantage=0.4, num_tokens=3)
    """

    step: int
    """Training step, from 0 or 1 as the loop counts."""
    group_id: str
    """Samples of one prompt in one step share it."""
    sample_index: int
    """0 … G−1 within the group."""
    prompt_text: str
    """The prompt as a person reads it."""
    response_text: str
    """The sampled answer."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """A conversation's messages, prompt included, as plain data (role, content, reasoning_content, tool_calls, …); one that the model drew has
    the index of its call as `call`. Empty for a single answer."""
    tool_calls: tuple[TrackedTool, ...] = ()
    """The calls of tools, in the order in which the model asked for them."""
    problems: tuple[str, ...] = ()
    """What was wrong in the model's messages: each kind once a message."""
    segments: tuple[TrackedSegment, ...] = ()
    """What the model read and drew in a conversation, where token-level values are kept; empty for a single answer."""
    dataset: str = ""
    """Task the prompt came from."""
    gold: str = ""
    """Gold answer, as text; empty where the task has none."""
    reward: float = math.nan
    """Total reward; NaN where the scoring failed."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted reward parts by name."""
    reward_status: str = "ok"
    """`ok`, or how the scoring failed (`samepath.rewards.score.Status`)."""
    reward_detail: str = ""
    """The exception or limit behind a failed scoring."""
    advantage: float = math.nan
    """Advantage given to every token of the answer."""
    kl: float = math.nan
    """Mean KL estimate to the reference over the answer's tokens, nats."""
    off_policy: float = math.nan
    """Mean of log π_sampler − log π over the answer's tokens, nats; what the off-policy mask looks at."""
    masked: bool = False
    """True if the off-policy mask took the answer out of the loss."""
    route_flips: float = math.nan
    """Share of expert choices that the learner's live router would have made otherwise, 0 … 1."""
    weight_lag: int = 0
    """Largest number of weight versions between the sampler of a token and the learner."""
    num_tokens: int = 0
    """Sampled tokens."""
    finish_reason: str = ""
    """`stop`, `length` or `abort`; of a conversation its last call's."""
    ended: str = "answer"
    """Why the rollout is over (`samepath.rollout.types.Ended`)."""
    generate_s: float = 0.0
    """Seconds from submission to the last token."""
    tokens: tuple[str, ...] = ()
    """[T] text of each sampled token, where token-level values are kept; of a conversation segment by segment."""
    sampler_logprobs: tuple[float, ...] = ()
    """[T] log π_sampler of each token, nats."""
    kl_tokens: tuple[float, ...] = ()
    """[T] KL estimate to the reference of each token, nats."""
    log_ratios: tuple[float, ...] = ()
    """[T] log π − log π_sampler of each token when it was trained, nats; NaN outside the loss, empty without an update."""
    entropies: tuple[float, ...] = ()
    """[T] entropy of the learner's distribution over the whole vocabulary, nats; empty without an update."""
    roles: str = ""
    """[T] a letter for each token: `t` in the loss, `m` taken out of the surrogate by the off-policy mask, `o` neither; empty without an update."""
    support_sizes: tuple[int, ...] = ()
    """[T] candidates that each token was drawn from, 0 for the whole vocabulary; empty where nothing was truncated."""
    weight_versions: tuple[tuple[int, int], ...] = ()
    """(version of the weights, how many tokens in a row they drew)."""
    routes: TrackedRoutes | None = None
    """Experts of the tokens; None for a dense model, without an update, or where a token has too many to keep."""
    segment_tokens: tuple[int, ...] = ()
    """Sampled tokens of each segment, in order; one number for an answer of a single turn."""

    @property
    def failed(self) -> bool:
        """True if the scoring did not give a reward."""
        return self.reward_status != "ok" or not math.isfinite(self.reward)


def choose_rollouts(rollouts: Sequence[TrackedRollout], limit: int) -> list[TrackedRollout]:
    """Return up to `limit` rollouts: whole groups where they fit, and always (from 3) some best, worst and failed ones.

    Groups that show more of these kinds come first, then groups whose rewards differ most. The order of `rollouts` is kept.
    """
    if limit >= len(rollouts):
        return list(rollouts)
    groups: dict[str, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group_id, []).append(index)
    missing = _kinds(rollouts)
    chosen: list[int] = []
    while groups:
        ranked = sorted(groups, key=lambda name: (-_num_shown(groups[name], missing), -_spread(rollouts, groups[name])))
        # A place stays free for each kind that the group would leave out.
        room = limit - len(chosen) - len(missing)
        fitting = [name for name in ranked if len(groups[name]) - _num_shown(groups[name], missing) <= room]
        if not fitting:
            break
        members = groups.pop(fitting[0])
        chosen += members
        missing = [kind for kind in missing if not kind & set(members)]
    for kind in missing:
        if len(chosen) < limit and not kind & set(chosen):
            chosen.append(min(kind))
    rest = [index for members in groups.values() for index in members if index not in chosen]
    chosen += rest[: max(limit - len(chosen), 0)]
    return [rollouts[index] for index in sorted(chosen[:limit])]


def _kinds(rollouts: Sequence[TrackedRollout]) -> list[set[int]]:
    """Return the indices of failed, best and worst rollouts; kinds that do not occur are left out."""
    failed = {index for index, rollout in enumerate(rollouts) if rollout.failed}
    rewards = [rollout.reward for rollout in rollouts if not rollout.failed]
    highest, lowest = max(rewards, default=math.nan), min(rewards, default=math.nan)
    best = {index for index, rollout in enumerate(rollouts) if not rollout.failed and rollout.reward == highest}
    worst = {index for index, rollout in enumerate(rollouts) if not rollout.failed and rollout.reward == lowest}
    return [kind for kind in (failed, best, worst) if kind]


def _num_shown(members: Sequence[int], kinds: Sequence[set[int]]) -> int:
    return sum(bool(kind.intersection(members)) for kind in kinds)


def _spread(rollouts: Sequence[TrackedRollout], members: Sequence[int]) -> float:
    rewards = [rollouts[index].reward for index in members if not rollouts[index].failed]
    return max(rewards) - min(rewards) if rewards else 0.0
