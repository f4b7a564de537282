"""One conversation from its first prompt to its judgement: what the model draws, what it calls, what the user says, and when it is over."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from samepath.model.text.conversation import Completion, Message, ProblemKind, ToolSchema
from samepath.model.text.renderer import PieceKind, Pieces, Renderer
from samepath.model.text.tokenizer import Tokenizer
from samepath.rewards.score import Score
from samepath.rollout.environments.conversation_loop import settled
from samepath.rollout.environments.plugin import check_session
from samepath.rollout.environments.protocol import Environment, EnvironmentFailure, Session
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.session_calls import ask_session, cut, refused, tool_result
from samepath.rollout.record import failed_rollouts
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.seeds import seed_of
from samepath.rollout.segments import as_calls, joined_segments
from samepath.rollout.types import Ended, Rollout, Segment, ToolRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A message to be drawn.

    Example:
        Ask(group_id="s3-g0", token_ids=(2, 17, 3), sampling=SamplingSettings(max_new_tokens=64), seed=11)
    """

    group_id: str
    """Group of the conversation."""
    token_ids: tuple[int, ...]
    """Its context."""
    sampling: SamplingSettings
    """How; `max_new_tokens` is what the budgets leave."""
    seed: int
    """Of this message alone."""


class Sampler(Protocol):
    """What draws messages, as a conversation sees it."""

    tokenizer: Tokenizer
    longest: int
    """Tokens that context and message may have together."""
    exact: bool
    """True if it promises equal records of equal rows in every call (`joined_segments`)."""

    async def draw(self, ask: Ask) -> Rollout:
        """One message: a rollout of one segment, several where new weights came and computed its context anew, or a failed one."""
        ...


class Episode:
    """One sample's conversation."""

    def __init__(
        self, request: EpisodeRequest, index: int, environment: Environment, renderer: Renderer, sampler: Sampler
    ) -> None:
        self._request, self._index, self._environment = request, index, environment
        self._renderer, self._sampler = renderer, sampler
        self._budgets = request.episode.budgets
        self._seed = request.seeds[index]
        self._messages: list[Message] = []
        self._tools: tuple[ToolSchema, ...] = ()
        self._calls: list[tuple[Segment, ...]] = []
        self._texts: list[str] = []
        self._records: list[ToolRecord] = []
        self._problems: list[ProblemKind] = []
        self._refused = ""
        self._waited_s = 0.0
        self._started_s = time.monotonic()

    async def play(self) -> Rollout:
        """Lead it to its end. An infrastructure failure is a failed rollout without a score; whatever else is raised is a defect."""
        try:
            session = await self._of_session("start", self._environment.start(self._request.row, self._seed))
        except EnvironmentFailure as failure:
            return self._failed(failure)
        check_session(session, self._request.environment.environment)
        alive = True
        try:
            ended = await self._converse(session)
            if not self._calls:
                return self._not_begun()
            score = await self._judged(session, ended)
        except EnvironmentFailure as failure:
            return self._failed(failure)
        except GeneratorExit:
            # The loop is gone, and nothing can be awaited any more.
            alive = False
            raise
        finally:
            # What is left of a session that does not close is the environment's to clean up; the judgement stands.
            if alive:
                await settled(session.close(), self._budgets.session_timeout_s)
        return self._rollout(ended, score)

    async def _converse(self, session: Session) -> Ended:
        """Messages in turn until something ends it."""
        self._messages, self._tools = list(session.messages), tuple(session.tools)
        context = self._opened()
        epoch = 0
        while True:
            drawn = await self._drawn(context, epoch)
            if drawn is None:
                return "tokens"
            if drawn.failure or drawn.segments[-1].finish_reason == "abort":
                return "abort"
            completion, ids = self._read(drawn)
            if drawn.segments[-1].finish_reason == "length":
                return "tokens"
            if completion.malformed and not (self._request.episode.on_malformed == "result" and completion.calls):
                return "malformed"
            ended = await self._answered(session, completion)
            if ended is not None:
                return ended
            following = self._following(completion, ids)
            if following is None:
                epoch, context = epoch + 1, self._opened()
            else:
                drawn_kinds: list[PieceKind] = ["sampled"] * len(ids)
                context = Pieces(
                    ids=(*context.ids, *ids, *following.ids),
                    kinds=(*context.kinds, *drawn_kinds, *following.kinds),
                )

    async def _drawn(self, context: Pieces, epoch: int) -> Rollout | None:
        """The next message; None if no token of it would fit."""
        room = min(
            self._request.sampling.max_new_tokens,
            self._budgets.max_tokens - sum(segment.num_trained for call in self._calls for segment in call),
            self._sampler.longest - len(context.ids),
        )
        number = len(self._calls)
        if room < 1:
            self._refused = "prompt_too_long"
            return None
        drawn = await self._sampler.draw(
            Ask(
                group_id=self._request.group_id,
                token_ids=context.ids,
                sampling=self._request.sampling.model_copy(update={"max_new_tokens": room}),
                seed=self._seed if number == 0 else seed_of(self._seed, number),
            )
        )
        if drawn.failure:
            self._refused = drawn.failure
            return drawn if drawn.failure == "aborted" else None
        self._calls.append(as_calls(drawn.segments, index=number, epoch=epoch, kinds=context.kinds))
        self._texts.append(drawn.text)
        return drawn

    def _read(self, drawn: Rollout) -> tuple[Completion, tuple[int, ...]]:
        """The drawn message, which from now on is part of the conversation, and its ids."""
        ids = tuple(id_ for segment in drawn.segments for id_ in segment.token_ids[segment.trained].tolist())
        completion = self._renderer.parse(ids, self._tools)
        self._problems += dict.fromkeys(problem.kind for problem in completion.problems)
        self._messages.append(completion.message(ids))
        return completion, ids

    async def _answered(self, session: Session, completion: Completion) -> Ended | None:
        """Let tools or the user answer; why it is over, if it is."""
        budgets = self._budgets
        if completion.calls:
            if len(self._records) + len(completion.calls) > budgets.max_calls:
                return "calls"
            records = await self._called(session, completion)
            self._records += records
            self._messages += [
                Message(role="tool", content=record.text, call_id=call.call_id)
                for call, record in zip(completion.calls, records, strict=True)
            ]
        else:
            said = await self._of_session("reply", session.reply(completion.content))
            if said is None:
                return "answer"
            if not isinstance(said, Message) or said.role != "user":
                raise EnvironmentFailure("protocol", f"reply must give a user's Message or None; got {said!r:.200}")
            self._messages.append(said)
        if self._waited_s >= budgets.wall_s:
            return "time"
        return "turns" if len(self._calls) >= budgets.max_turns else None

    async def _called(self, session: Session, completion: Completion) -> list[ToolRecord]:
        """Results of a message's calls, which run side by side, in the order of the calls."""
        started = time.monotonic()
        answers = [self._record(session, completion, number) for number in range(len(completion.calls))]
        records = await asyncio.gather(*answers, return_exceptions=True)
        self._waited_s += time.monotonic() - started
        for record in records:
            if isinstance(record, BaseException):
                raise record
        return [record for record in records if isinstance(record, ToolRecord)]

    async def _record(self, session: Session, completion: Completion, number: int) -> ToolRecord:
        """One call and what the model reads of it."""
        budgets, call, started = self._budgets, completion.calls[number], time.monotonic()
        limit_s = max(min(budgets.tool_timeout_s, budgets.wall_s - self._waited_s), 0.0)
        if completion.malformed:
            said = "; ".join(f"{problem.kind}: {problem.detail}" for problem in completion.problems)
            result = refused(f"this message cannot be read: {said}")
        elif number >= budgets.max_parallel_calls:
            result = refused(f"a message may make {budgets.max_parallel_calls} calls")
        else:
            result = await tool_result(session, call, self._tools, limit_s)
        return ToolRecord(
            turn=len(self._calls) - 1,
            name=call.name,
            arguments=dict(call.arguments),
            text=cut(result.text, budgets.max_result_chars),
            error=result.error,
            seconds=time.monotonic() - started,
        )

    def _opened(self) -> Pieces:
        return self._encoded(lambda: self._renderer.open(self._messages, self._tools))

    def _following(self, completion: Completion, ids: Sequence[int]) -> Pieces | None:
        """Ids behind the drawn message; None where a new epoch begins."""
        ended = bool(ids) and ids[-1] in self._sampler.tokenizer.end_ids
        if completion.calls:
            results = self._messages[-len(completion.calls) :]
            return self._encoded(lambda: self._renderer.bridge(completion.calls, results, ended=ended))
        return self._encoded(lambda: self._renderer.reply(self._messages[-1].content, self._tools, ended=ended))

    def _encoded(self, encode: Callable[[], T]) -> T:
        try:
            return encode()
        except ValueError as error:
            raise EnvironmentFailure("protocol", f"the conversation cannot be encoded: {error}") from error

    async def _judged(self, session: Session, ended: Ended) -> Score:
        score = await self._of_session("score", session.score())
        if not isinstance(score, Score):
            raise EnvironmentFailure("protocol", f"score must give a Score; got {score!r:.200}")
        if score.status == "ok" and not (score.parts and math.isfinite(score.total)):
            raise EnvironmentFailure(
                "protocol", f"a Score must have a finite total and a first part; got {score!r:.200}"
            )
        if ended != "malformed" or self._request.episode.on_malformed != "end_with_penalty":
            return score
        penalty = self._request.episode.malformed_penalty
        return replace(score, total=score.total - penalty, parts={**score.parts, "malformed": -penalty})

    async def _of_session(self, what: str, coroutine: Coroutine[Any, Any, T]) -> T:
        started = time.monotonic()
        try:
            return await ask_session(what, coroutine, self._budgets.session_timeout_s)
        finally:
            self._waited_s += time.monotonic() - started

    def _rollout(self, ended: Ended, score: Score) -> Rollout:
        request, calls = self._request, [segment for call in self._calls for segment in call]
        return Rollout(
            prompt_id=request.prompt.prompt_id,
            group_id=request.group_id,
            sample_index=self._index,
            segments=joined_segments(calls, exact=self._sampler.exact, one_version=request.one_version),
            text="\n".join(self._texts),
            generate_s=time.monotonic() - self._started_s,
            ended=ended,
            messages=tuple(self._messages),
            tool_calls=tuple(self._records),
            problems=tuple(self._problems),
            environment_score=score,
        )

    def _not_begun(self) -> Rollout:
        """No message could be drawn."""
        return failed_rollouts(self._request, self._refused or "aborted").rollouts[self._index]

    def _failed(self, failure: EnvironmentFailure) -> Rollout:
        group = failed_rollouts(self._request, f"environment_{failure.kind}", failure.detail)
        return replace(group.rollouts[self._index], messages=tuple(self._messages), tool_calls=tuple(self._records))
