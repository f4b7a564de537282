"""What crosses the boundary between sampler, reward and learner: prompts in, rollouts out.

Axes: T positions of one segment, L layers (L_moe: mixture-of-experts layers, L_sparse: layers that select their keys), X experts chosen a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samepath.model.text.conversation import JsonValue, Message, ProblemKind
from samepath.rewards.score import Score
from samepath.rollout.sampling_settings import SamplingSettings

MISSING_ROUTE = -1
"""Expert id of a route that the engine did not record (the learner falls back to its live router there)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One task instance as the sampler sees it.

    Example:
        Prompt(prompt_id="train-17", text="12+34+5=", token_ids=(4, 5, 13, 6, 7, 13, 8, 14), answer={"answer": "51"},
               dataset="chain_sum", row=17)
    """

    prompt_id: str
    """Unique within a run; groups and rollouts refer to it."""
    text: str
    """The prompt as a person reads it (after the recipe's template)."""
    token_ids: tuple[int, ...]
    """The prompt as the model reads it; never re-made from `text` later."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for the reward function (gold answer, metadata); never shown to the model."""
    dataset: str = ""
    """Name of the dataset that it is from: its task's, unless that mixes several."""
    row: int = -1
    """Row in that task's split."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the recipe's sampling settings for this prompt only; a `GroupRequest` applies them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Candidate tokens kept by top-k/top-p/min-p at each sampled position, as compressed rows.

    Example: two sampled positions, three and one candidates:
        Support(counts=np.array([3, 1], np.int32), ids=np.array([4, 7, 9, 2], np.int32))
    """

    counts: NDArray[np.int32]
    """[number of trained positions] kept ids per position; 0 means the cap was exceeded: full vocabulary."""
    ids: NDArray[np.int32]
    """[sum of counts] the kept token ids, ascending within a row."""


WEIGHTS = "weights"
"""Finish reason of a segment that new weights end in mid-answer: it goes on in the next one."""

CallKind = Literal["act", "edit"]
"""A call of the model as the task goes on, or one that rewrites its own context."""

Ended = Literal["answer", "turns", "calls", "tokens", "time", "malformed", "abort", "environment"]
"""Why a rollout is over: the model's last answer (a single turn always), a budget of the conversation, a completion that cannot be read,
an abort, or the environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpan:
    """What one call of the model drew in a segment.

    Example: the only call of a prompt of 4 tokens that was answered with 3:
        CallSpan(index=0, first=4, end=7, finish_reason="stop", digest=token_digest(segment.token_ids))
    """

    index: int
    """Place among the calls of the rollout, from 0. A call that new weights cut stands in several segments, with one place."""
    first: int
    """Position of its first drawn token; everything before it is what the call read."""
    end: int
    """Position behind its last one."""
    kind: CallKind = "act"
    """What the call was for."""
    finish_reason: str
    """As the segment's, of this call."""
    digest: int
    """`token_digest` of all tokens up to `end`, made by the engine's side: the law of `check_conservation` rests on it."""
    seconds: float = field(default=0.0, compare=False)
    """Time from its submission to its last token; 0 where it goes on in the next segment."""

    @property
    def goes_on(self) -> bool:
        """True if new weights cut it here: the next segment has the rest of it."""
        return self.finish_reason == WEIGHTS


ToolError = Literal["", "bad_arguments", "raised", "timeout"]
"""Why a tool gave no result: arguments that it does not take (or no such tool), an error of its own, or no answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRecord:
    """One call of a tool.

    Example:
        ToolRecord(turn=0, name="get", arguments={"key": "a"}, text="17", seconds=0.002)
    """

    turn: int
    """Index of the model's call that asked for it."""
    name: str
    """Tool."""
    arguments: Mapping[str, JsonValue]
    """What it was given."""
    text: str
    """What the model read of it."""
    error: ToolError = ""
    """Empty, or why it gave no result."""
    seconds: float = field(default=0.0, compare=False)
    """Time that it took."""


TOKEN_KINDS = ("scaffold", "content", "sampled", "trained")
"""Who made a token of a conversation: its form, somebody who speaks, the model in an earlier segment, or the model here. `Segment.kinds` are
places in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One contiguous token sequence as the model saw it, with everything needed to walk the same path again.

    Example: prompt "7+8=" (4 tokens), sampled "15" and end-of-sequence: T = 7, trained = [F,F,F,F,T,T,T].
    """

    token_ids: NDArray[np.int32]
    """[T] prompt and sampled tokens."""
    trained: NDArray[np.bool_]
    """[T] True where the model sampled the token (not prompt, not tool text)."""
    sampler_logprobs: NDArray[np.float32]
    """[T] nats, log π_sampler of the token under the *sampling* distribution; 0 where not trained."""
    routes: NDArray[np.int16]
    """[T, L_moe, X] chosen expert ids; −1 = missing. The last row is never run and is −1."""
    support: Support | None
    """Kept candidates of each trained position, or None when nothing was truncated."""
    selection_fingerprint: NDArray[np.uint64] | None
    """[T, L_sparse] order-free hash of the attended key set; the last row is never run and is 0. None: the engine does not record it."""
    weight_version: NDArray[np.int32]
    """[T] version of the weights that sampled the token; −1 where not trained."""
    finish_reason: str
    """`stop` (stop id, stop string or end of sequence), `length` (max_new_tokens), `abort`; of several calls the last one's. `weights`: new
    weights came, and the answer goes on in the next segment, behind a context that these computed anew."""
    epoch: int = 0
    """Within an epoch of a conversation text is only added; a new one, from 0, begins where something before was dropped."""
    calls: tuple[CallSpan, ...] = ()
    """The calls of the model that drew the trained tokens, in order; none where nobody sampled them (worked answers)."""
    kinds: NDArray[np.uint8] | None = None
    """[T] places in `TOKEN_KINDS`, for people; None for the answer of a single call."""
    route_conflicts: int = 0
    """Rows that two of its calls recorded otherwise (experts or selected keys) at one weight version."""
    superseded_rows: int = 0
    """Rows that two of its calls recorded otherwise at different weight versions: the call that drew the next token decides."""

    @property
    def num_trained(self) -> int:
        """Number of sampled tokens, |o_i| of the objective."""
        return int(self.trained.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer to one prompt.

    Example:
        Rollout(prompt_id="train-17", group_id="s3-g0", sample_index=2, segments=(segment,), text="51",
                score=Score(total=1.0, parts={"answer": 1.0}, status="ok"), generate_s=0.04)
    """

    prompt_id: str
    """Prompt it answers."""
    group_id: str
    """Group (samples of one prompt in one step) it is compared within."""
    sample_index: int
    """0 … G−1 within the group."""
    segments: tuple[Segment, ...]
    """One for a single-turn answer; of a conversation one an epoch (see `joined_segments`). With `rl.on_new_weights: recompute` one more
    wherever new weights came."""
    text: str
    """The sampled tokens decoded for people and reward functions: special tokens by name, the one that ended the response left out."""
    score: Score | None = None
    """Reward; None until scored."""
    generate_s: float = 0.0
    """Seconds from submission to the last token."""
    failure: str = ""
    """Empty, or why there is no usable answer (`no_tokens`, `prompt_too_long`, …)."""
    failure_detail: str = ""
    """For people: the row and what is wrong with it, where the reason alone does not say."""
    ended: Ended = "answer"
    """Why it is over."""
    messages: tuple[Message, ...] = ()
    """The conversation as people read it, its prompt included; empty for a single answer, which `text` holds."""
    tool_calls: tuple[ToolRecord, ...] = ()
    """The calls of tools, in the order in which the model asked for them."""
    problems: tuple[ProblemKind, ...] = ()
    """What was wrong in the model's messages: each kind once a message."""
    environment_score: Score | None = None
    """The environment's own judgement, which stands in place of the recipe's reward functions; None where there is none."""

    @property
    def num_trained(self) -> int:
        """Sampled tokens over all segments."""
        return sum(segment.num_trained for segment in self.segments)

    @property
    def truncated(self) -> bool:
        """True if the answer ran into `max_new_tokens`, or the conversation into its budget of tokens or time."""
        return bool(self.segments) and (self.segments[-1].finish_reason == "length" or self.ended in ("tokens", "time"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All samples of one prompt in one step.

    Example:
        Group(group_id="s3-g0", prompt=prompt, sampling=SamplingSettings(top_p=0.9), rollouts=(first, second))
    """

    group_id: str
    """`s<step>-g<index>`."""
    prompt: Prompt
    """The prompt they answer."""
    sampling: SamplingSettings
    """What they were drawn with (the prompt's own overrides applied): the learner reads it here, never from the recipe."""
    rollouts: tuple[Rollout, ...]
    """[G] in sample order."""
