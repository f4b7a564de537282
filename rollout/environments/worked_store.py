"""Worked conversations of the store for a cold start: right, careless or guessed, and none longer than an ordinary row asks for."""

import random
from typing import Any

from samepath.model.text.conversation import Conversation, Message, ToolCall
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.store import StoreSession
from samepath.rollout.environments.store_rows import LARGEST, Store, draw_questions, number, question_text

MOST_LOOKS = 30
"""Looks for one number, after which a slip that leads in circles is given up."""


def worked_conversation(
    row: EnvironmentRow,
    rng: random.Random,
    *,
    questions: int = 0,
    guess_share: float = 0.0,
    slip_rate: float = 0.0,
    head_share: float = 0.0,
) -> Conversation:
    """A conversation about the row's store with questions of the ordinary kind, whatever the row asks.

    `C plus K?` is thought through as `C?` get, `17+K?` get, `17+D?` get, `17+5` add, `22`, and answered with `22`. `questions`: as many,
    0 for as many as the row has. `guess_share`: share of conversations in which each answer is a number at random and nothing is looked up,
    as always without tools. `head_share`: chance that a question's sum is made without the tool. `slip_rate`: chance of each step to go wrong,
    another key looked up, a number misread or a sum off by a little; the rest follows from it.

    Raises ValueError for rates outside 0 to 1, and for a store that is too small.
    """
    for name, rate in (("guess_share", guess_share), ("slip_rate", slip_rate), ("head_share", head_share)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must be 0 to 1; got {rate}")
    session, data = StoreSession(row), dict[str, Any](row.data)
    asked = draw_questions(
        rng, data["store"], depth=data["depth"], terms=data["terms"], questions=questions or len(data["questions"])
    )
    guesses = not session.tools or rng.random() < guess_share
    messages = [message for message in session.messages if message.role == "system"]
    for keys in asked:
        messages.append(Message(role="user", content=question_text(keys)))
        if guesses:
            guess = str(rng.randint(len(keys), LARGEST * len(keys)))
            messages.append(Message(role="assistant", reasoning="guess", content=guess))
        else:
            work = _Work(session, data["store"], rng, slip_rate)
            messages += work.conversation(keys, in_head=rng.random() < head_share)
    return Conversation(messages=tuple(messages), tools=tuple(session.tools))


class _Work:
    """A question worked step by step, with slips."""

    def __init__(self, session: StoreSession, store: Store, rng: random.Random, slip_rate: float) -> None:
        self.session, self.store, self.rng, self.slip_rate = session, store, rng, slip_rate
        self.messages: list[Message] = []

    def conversation(self, keys: list[str], *, in_head: bool) -> list[Message]:
        numbers: list[int] = []
        for key in keys:
            numbers.append(self._found(numbers, key))
        while len(numbers) > 1 and not in_head:
            a, b = numbers[:2]
            said = self._call(_thought(numbers), "add", a=self._slipped(a), b=b)
            numbers[:2] = [int(said)]
        answer = sum(numbers) if len(numbers) == 1 else self._slipped(sum(numbers))
        return [*self.messages, Message(role="assistant", reasoning=_thought(numbers), content=str(answer))]

    def _found(self, numbers: list[int], key: str) -> int:
        """Look for the key's number, along its pointers."""
        for _ in range(MOST_LOOKS):
            looked = self.rng.choice(list(self.store)) if self.rng.random() < self.slip_rate else key
            said = self._call(_thought([*numbers, f"{key}?"]), "get", key=looked)
            if not said.startswith("see "):
                return int(said)
            key = said.removeprefix("see ")
        return number(self.store, key)

    def _call(self, reasoning: str, name: str, **arguments: Any) -> str:
        said = self.session.result(name, arguments).text
        call = ToolCall(name=name, arguments=arguments)
        self.messages += [
            Message(role="assistant", reasoning=reasoning, calls=(call,)),
            Message(role="tool", content=said),
        ]
        return said

    def _slipped(self, value: int) -> int:
        return value + self.rng.choice((-10, -2, -1, 1, 2, 10)) if self.rng.random() < self.slip_rate else value


def _thought(parts: list[Any]) -> str:
    """Numbers found so far, and what is looked for."""
    return "+".join(map(str, parts))
