"""Worked conversations of the store for a cold start: right, careless or guessed, and none longer than an ordinary row asks for."""

import random
from dataclasses import replace
from typing import Any

from samepath.model.text.conversation import Conversation, Message, ToolCall
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.store import StoreSession
from samepath.rollout.environments.store_rows import LARGEST, Store, draw_questions, number, question_text

MOST_LOOKS = 60
"""Looks for one question's numbers, after which slips that lead in circles are given up."""


def worked_conversation(
    row: EnvironmentRow,
    rng: random.Random,
    *,
    questions: int = 0,
    guess_share: float = 0.0,
    slip_rate: float = 0.0,
    head_share: float = 0.0,
    reasons: bool = True,
) -> Conversation:
    """A conversation about the row's store with questions of the ordinary kind, whatever the row asks.

    `C plus K?` is thought through as what is left to find: `C+K` get, `17+K` get, `17+D` get, `17+5` add, `22`, answered with `22`. `questions`: as many,
    0 for as many as the row has. `guess_share`: share of conversations in which each answer is a number at random and nothing is looked up,
    as always without tools. `head_share`: chance that a question's sum is made without the tool. `slip_rate`: chance of each step to go wrong,
    another key looked up, a number misread or a sum off by a little; the rest follows from it. `reasons`: without, nothing is thought, as in
    chat mode.

    Raises ValueError for rates outside 0 to 1, and for a store that is too small.
    """
    for name, rate in (("guess_share", guess_share), ("slip_rate", slip_rate), ("head_share", head_share)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must be 0 to 1; got {rate}")
    session, data = StoreSession(row), dict[str, Any](row.data)
    terms = [data["terms"]] * (questions or len(data["questions"]))
    asked = draw_questions(rng, data["store"], depth=data["depth"], terms=terms)
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
    if not reasons:
        messages = [replace(message, reasoning="") for message in messages]
    return Conversation(messages=tuple(messages), tools=tuple(session.tools))


class _Work:
    """A question worked step by step, with slips."""

    def __init__(self, session: StoreSession, store: Store, rng: random.Random, slip_rate: float) -> None:
        self.session, self.store, self.rng, self.slip_rate = session, store, rng, slip_rate
        self.messages: list[Message] = []
        self.looks = 0

    def conversation(self, keys: list[str], *, in_head: bool) -> list[Message]:
        terms: list[str | int] = [*keys]
        while open_places := [place for place, term in enumerate(terms) if isinstance(term, str)]:
            place = open_places[0]
            terms[place] = self._found(terms, str(terms[place]))
        while len(terms) > 1 and not in_head:
            said = self._call(_thought(terms), "add", a=self._slipped(int(terms[0])), b=terms[1])
            terms[:2] = [int(said)]
        total = sum(map(int, terms))
        answer = total if len(terms) == 1 else self._slipped(total)
        return [*self.messages, Message(role="assistant", reasoning=_thought(terms), content=str(answer))]

    def _found(self, terms: list[str | int], key: str) -> str | int:
        """What a look at the key gives: its number, or the key to look at next."""
        self.looks += 1
        if self.looks > MOST_LOOKS:
            return number(self.store, key)
        looked = self.rng.choice(list(self.store)) if self.rng.random() < self.slip_rate else key
        said = self._call(_thought(terms), "get", key=looked).split()
        return said[1] if said[0] == "see" else int(said[0])

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


def _thought(terms: list[str | int]) -> str:
    """The sum as far as it is found."""
    return "+".join(map(str, terms))
