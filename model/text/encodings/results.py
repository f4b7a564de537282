"""Results of tool calls, one for each call, in the order of the calls."""

from collections.abc import Sequence

from samepath.model.text.conversation import Message, ToolCall

MISSING_RESULT = "Error: this call has no result."
"""What the model reads where a call was not answered: its block of results would not close otherwise."""


def in_call_order(calls: Sequence[ToolCall], results: Sequence[Message]) -> list[Message]:
    """One tool message for each call, found by call id, or by order where ids are empty; `MISSING_RESULT` where there is none.

    Raises ValueError for a message of another role, a result of no call, and a second result of one call.
    """
    if wrong := [message.role for message in results if message.role != "tool"]:
        raise ValueError(f"results of tool calls must be tool messages; got one of the {wrong[0]}")
    ids = [call.call_id for call in calls]
    if len(set(ids)) < len(ids) and any(ids):
        raise ValueError(f"calls of one message must have ids of their own, or none; got {ids}")
    if len(results) > len(calls):
        raise ValueError(f"a message with {len(calls)} calls can have as many results; got {len(results)}")
    found: dict[int, Message] = {}
    for place, message in enumerate(results):
        if message.call_id and message.call_id not in ids and any(ids):
            raise ValueError(
                f"a result must name a call of the message before ({', '.join(ids)}); got {message.call_id!r}"
            )
        index = ids.index(message.call_id) if message.call_id in ids and message.call_id else place
        if index in found:
            raise ValueError(f"a call must have one result; call {index} ({calls[index].name}) has two")
        found[index] = message
    return [
        found.get(index, Message(role="tool", content=MISSING_RESULT, call_id=call.call_id))
        for index, call in enumerate(calls)
    ]


def with_all_results(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the results of each message's calls complete and in order.

    Calls of the last message may still wait for theirs. Raises ValueError for results that belong to no call.
    """
    whole: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        if message.role == "tool":
            raise ValueError(f"a tool message must follow the calls that it answers; message {place} does not")
        whole.append(message)
        place += 1
        results = []
        while message.role == "assistant" and place < len(messages) and messages[place].role == "tool":
            results.append(messages[place])
            place += 1
        if results or (message.calls and place < len(messages)):
            whole += in_call_order(message.calls, results)
    return whole
