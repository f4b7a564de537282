"""A question from a table's column: text, or the messages of a conversation whose last one asks it."""

from samepath.model.text.conversation import Message, Role
from samepath.rl.recipe.prompt import ChatSettings
from samepath.rl.tasks.row import TaskError

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
"""Roles of a conversation that asks for one answer."""


def conversation(value: object, chat: ChatSettings, where: str) -> tuple[str, tuple[Message, ...]]:
    """The question and the messages before it. Raises TaskError naming `where` if it is neither text nor a conversation that a user's message ends.

    Example: `[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]` gives `1+1?` and the system's message.
    """
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list) or not value:
        raise TaskError(f"{where} must be text or a list of messages (role, content); got {value!r:.80}.")
    messages = [_message(one, f"{where}, message {index}") for index, one in enumerate(value)]
    if not chat.enabled:
        raise TaskError(f"{where} holds messages, which only a chat prompt can give. Set task.chat.enabled to true.")
    if any(message.role == "system" for message in messages[1:]):
        raise TaskError(f"{where} must have a system message at its head only; got {value!r:.300}.")
    if messages[0].role == "system" and chat.system:
        raise TaskError(
            f"{where} has a system message, and task.chat.system gives another. Leave task.chat.system out."
        )
    if messages[-1].role != "user":
        raise TaskError(
            f"{where} must end with the user's message, which is to be answered; the last is the {messages[-1].role}'s. "
            "Leave the answer out of the prompt's column."
        )
    return messages[-1].content, tuple(messages[:-1])


def _message(value: object, where: str) -> Message:
    """One message. A key without a value is as good as none: tables have every key in every row."""
    given = {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else {}
    if set(given) != {"role", "content"} or not all(isinstance(entry, str) for entry in given.values()):
        raise TaskError(f"{where} must be an object of role and content, both text; got {value!r:.80}.")
    if given["role"] not in ROLES:
        raise TaskError(f"{where}: role must be {', '.join(ROLES)}; got {given['role']!r}.")
    try:
        given["content"].encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{where}: content must be Unicode text; got {value!r:.80}: {error.reason}.") from error
    return Message(role=given["role"], content=given["content"])
