"""An environment of your own: any class with `tasks` and `start`, whose sessions have a user, tools and a score.

Keep this file beside the recipe (or where you start the run from) and write in the recipe:

    task:
      kind: environment
      environment: own_environment:GuessEnvironment
      options: {largest: 63}

A number is hidden. The model may compare guesses with it, and the user wants to know it. Play a conversation without a model:

    python examples/own_environment/own_environment.py
"""

import asyncio
import random
from collections.abc import Mapping, Sequence

from samepath.model.text.conversation import Conversation, JsonValue, Message, ToolCall, ToolSchema
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentRow, Split, ToolResult

COMPARE = ToolSchema(
    function={
        "name": "compare",
        "description": "Say whether the number is larger than a guess",
        "parameters": {"type": "object", "properties": {"guess": {"type": "integer"}}, "required": ["guess"]},
    }
)


class GuessEnvironment:
    """Rows with a hidden number. Built once in each process, with the recipe's `options`."""

    def __init__(self, *, largest: int = 63, calls_weight: float = 0.1) -> None:
        """`largest`: numbers are 1 … largest. `calls_weight`: taken off the score for each comparison beyond those that halving needs."""
        if largest < 10:
            raise ValueError(f"largest must be at least 10, so that numbers are left to hold out; got {largest}")
        self.largest, self.calls_weight = largest, calls_weight

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """One row a number; those that end in 7 are held out. Rows cross processes: plain data only."""
        numbers = [number for number in range(1, self.largest + 1) if (number % 10 == 7) == (split == "held_out")]
        return [
            EnvironmentRow(
                row_id=f"{split}-{number}",
                text=f"{number} of {self.largest}",
                data={"number": number, "largest": self.largest, "calls_weight": self.calls_weight},
            )
            for number in numbers
        ]

    async def start(self, row: EnvironmentRow, seed: int) -> "GuessSession":
        """A session for one sample. `seed` differs from sample to sample: what is random in a session must come from it."""
        return GuessSession(row)


class GuessSession:
    """One conversation. Its methods run on an event loop beside the engine: await what takes time, never block."""

    def __init__(self, row: EnvironmentRow) -> None:
        self.number, self.largest = int(str(row.data["number"])), int(str(row.data["largest"]))
        self.calls_weight = float(str(row.data["calls_weight"]))
        self.messages: Sequence[Message] = (Message(role="user", content=f"1 to {self.largest}?"),)
        self.tools: Sequence[ToolSchema] = (COMPARE,)
        self.answer = ""
        self.num_calls = 0

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """What the model reads of a call. Its arguments fit the tool's schema: others do not come here."""
        self.num_calls += 1
        return self.compared(int(str(arguments["guess"])))

    def compared(self, guess: int) -> ToolResult:
        """What there is to say of a guess."""
        if not 1 <= guess <= self.largest:
            return ToolResult(text=f"guess 1 to {self.largest}", error="bad_arguments")
        return ToolResult(text="more" if self.number > guess else "less" if self.number < guess else "equal")

    async def reply(self, content: str) -> Message | None:
        """The user's next message; None ends the conversation. A first wrong answer is given a second chance."""
        if not self.answer and content != str(self.number):
            self.answer = content or "none"
            return Message(role="user", content="No. Once more?")
        self.answer = content
        return None

    async def score(self) -> Score:
        """Called once, however the conversation ended. The first part says whether it is right; accuracy is measured by it."""
        right = float(self.answer == str(self.number))
        surplus = max(0, self.num_calls - self.largest.bit_length())
        return Score(total=right - self.calls_weight * surplus, parts={"right": right, "surplus_calls": surplus})

    async def close(self) -> None:
        """Give back what the session holds: nothing here."""


def worked(row: EnvironmentRow, rng: random.Random, *, guess_share: float = 0.0) -> Conversation:
    """A conversation for the cold start: halve the range, with one number left answer; or guess at once, wrong as a rule."""
    session = GuessSession(row)
    messages = [*session.messages]
    low, high = 1, session.largest
    if rng.random() < guess_share:
        low = high = rng.randint(low, high)
    while low < high:
        middle = (low + high) // 2
        call = ToolCall(name="compare", arguments={"guess": middle})
        said = session.compared(middle).text
        messages += [
            Message(role="assistant", reasoning=f"{low}-{high}", calls=(call,)),
            Message(role="tool", content=said),
        ]
        if said == "equal":
            low = high = middle
        elif said == "more":
            low = middle + 1
        else:
            high = middle
    messages.append(Message(role="assistant", reasoning=f"{low}-{high}", content=str(low)))
    return Conversation(messages=tuple(messages), tools=tuple(session.tools))


async def play(row: EnvironmentRow, answers: Sequence[str]) -> Score:
    """Print what user and tool say to a few comparisons and to the answers, and return the score."""
    session = await GuessEnvironment().start(row, seed=0)
    print("user:", session.messages[-1].content)
    for guess in (32, 48):
        print(f"compare({guess}):", (await session.call("compare", {"guess": guess}, 1.0)).text)
    for answer in answers:
        said = await session.reply(answer)
        print("model:", answer)
        if said is None:
            break
        print("user:", said.content)
    score = await session.score()
    await session.close()
    return score


def main() -> None:
    """Play a right conversation and a wrong one."""
    row = GuessEnvironment().tasks("train")[39]
    print(row.text)
    for answers in (("42", "44"), ("42", "43")):
        print(asyncio.run(play(row, answers)))


if __name__ == "__main__":
    main()
