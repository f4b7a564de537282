"""Calls into an environment's code, each with a bound, and what its errors mean: for the model to read, or a failure of the infrastructure."""

import errno
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from samepath.model.text.conversation import ToolCall, ToolSchema
from samepath.model.text.encodings.schema_check import schema_problems
from samepath.rollout.environments.conversation_loop import settled
from samepath.rollout.environments.protocol import EnvironmentFailure, FailureKind, Session, ToolResult

T = TypeVar("T")

NO_ROOM = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
"""Errors of the system that say that memory, disk, files or processes are used up."""


async def ask_session(what: str, coroutine: Coroutine[Any, Any, T], limit_s: float) -> T:
    """What a method of the environment gives (`what` names it). Raises EnvironmentFailure for every other outcome."""
    task = await settled(coroutine, limit_s)
    if task is None:
        raise EnvironmentFailure("timeout", f"{what} gave no answer within {limit_s:g} s")
    error = None if task.cancelled() else task.exception()
    if task.cancelled() or error is not None:
        raise _failure(error, "start" if what == "start" else "died", what)
    return task.result()


async def tool_result(session: Session, call: ToolCall, tools: Sequence[ToolSchema], limit_s: float) -> ToolResult:
    """What the model reads of a call: the result, or in words why there is none. Raises EnvironmentFailure where the infrastructure failed."""
    if problems := schema_problems([call], tools):
        return refused("; ".join(f"{problem.kind}: {problem.detail}" for problem in problems))
    task = await settled(session.call(call.name, call.arguments, limit_s), limit_s)
    if task is None:
        return ToolResult(text=f"Error: {call.name} gave no result within {limit_s:g} s.", error="timeout")
    error = None if task.cancelled() else task.exception()
    if task.cancelled() or isinstance(error, EnvironmentFailure) or _lacks_room(error):
        raise _failure(error, "died", f"tool {call.name}")
    if error is not None:
        return ToolResult(text=f"Error: {type(error).__name__}: {error}", error="raised")
    result = task.result()
    if not isinstance(result, ToolResult) or not isinstance(result.text, str):
        raise EnvironmentFailure(
            "protocol", f"a call must give a ToolResult with text; {call.name} gave {result!r:.200}"
        )
    return result


def refused(why: str) -> ToolResult:
    """The result of a call that does not come to its tool."""
    return ToolResult(text=f"Error: {why}.", error="bad_arguments")


def cut(text: str, most: int) -> str:
    """A result as long as may be, with the number of characters that are left out."""
    return text if len(text) <= most else f"{text[:most]}\n[{len(text) - most} characters more]"


def _failure(error: BaseException | None, kind: FailureKind, what: str) -> EnvironmentFailure:
    """An error of the environment's code as what it means for the sample."""
    if isinstance(error, EnvironmentFailure):
        return error
    said = f"{what} was cancelled" if error is None else f"{what}: {type(error).__name__}: {error}"
    return EnvironmentFailure("resource" if _lacks_room(error) else kind, said)


def _lacks_room(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in NO_ROOM)
