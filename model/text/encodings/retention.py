"""Which reasoning stays in the context: the boundary behind which it is kept."""

from collections.abc import Sequence
from typing import Literal

from samepath.model.text.conversation import Message

Retention = Literal["v32", "r1", "retain_all", "v4"]


def boundary(messages: Sequence[Message], retention: Retention, *, tools: bool) -> int:
    """Index of the last message before kept reasoning: later assistant messages keep theirs, and it is visible from this message on.

    `v32`: the last user or developer message (arXiv:2512.02556 §3.2.1). `r1`: the last message, or the one before where that is the
    assistant's. `retain_all`: none. `v4`: as `retain_all` if tools are declared, else as `v32`.
    """
    if retention == "r1":
        return len(messages) - (2 if messages and messages[-1].role == "assistant" else 1)
    if retention == "retain_all" or (retention == "v4" and tools):
        return -1
    asking = [index for index, message in enumerate(messages) if message.role in ("user", "developer")]
    return asking[-1] if asking else -1
