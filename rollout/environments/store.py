"""The store: hidden numbers behind keys, tools to look them up and to add, and a user who asks for sums one after the other.

A guess is right about once in a hundred times; looking up and adding, always. Some keys point to another key.

    task:
      kind: environment
      environment: samepath.rollout.environments.store:StoreEnvironment
      options: {num_keys: 16, num_pointers: 6, questions: 2}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from samepath.model.text.conversation import JsonValue, Message, ToolSchema
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentRow, Split, ToolResult
from samepath.rollout.environments.rows_on_demand import RowsOnDemand
from samepath.rollout.environments.store_rows import Store, StoreOptions, draw_row, noise_of, question_text

MAX_ADDEND = 10**9
"""Largest size of a number that the tool adds."""
GET = ToolSchema(
    function={
        "name": "get",
        "description": "Value of a key",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    }
)
ADD = ToolSchema(
    function={
        "name": "add",
        "description": "Sum of two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    }
)


class StoreEnvironment(StoreOptions):
    """Rows with hidden stores; see `StoreOptions` for what each option says."""

    __slots__ = ()

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `Environment.tasks`. Training rows are made when they are asked for."""
        if split == "train":
            return RowsOnDemand(self.num_train, lambda index: draw_row(self, split, index))
        rows: dict[str, EnvironmentRow] = {}
        for index in range(self.num_held_out):
            row = draw_row(self, split, index, taken=rows)
            rows[row.text] = row
        return list(rows.values())

    async def start(self, row: EnvironmentRow, seed: int) -> "StoreSession":
        """See `Environment.start`; nothing in a session is random."""
        return StoreSession(row)


class StoreSession:
    """One conversation about a row's store. The user asks the questions one after the other and says nothing about the answers."""

    def __init__(self, row: EnvironmentRow) -> None:
        data: Any = row.data
        self._store: Store = data["store"]
        self._questions: list[list[str]] = data["questions"]
        self._right: list[int] = data["answers"]
        self._share_weight: float = data["share_weight"]
        self._noise: int = data["noise"]
        self._row_id = row.row_id
        self._answers: list[str] = []
        system = [Message(role="system", content=data["system"])] if data["system"] else []
        self.messages: Sequence[Message] = (*system, self._question(0))
        self.tools: Sequence[ToolSchema] = (GET, ADD) if data["tools"] else ()

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """See `Session.call`."""
        return self.result(name, arguments)

    def result(self, name: str, arguments: Mapping[str, JsonValue]) -> ToolResult:
        """What the tool gives at once."""
        if name == "get" and self.tools and set(arguments) == {"key"}:
            return self._value(arguments["key"])
        if name == "add" and self.tools and set(arguments) == {"a", "b"}:
            return _sum(arguments["a"], arguments["b"])
        return ToolResult(text=f"there is no {name}({', '.join(arguments)})", error="bad_arguments")

    def _value(self, key: JsonValue) -> ToolResult:
        if not isinstance(key, str) or key not in self._store:
            return ToolResult(text=f"there is no key {key}", error="bad_arguments")
        value = self._store[key]
        text = str(value) if isinstance(value, int) else f"see {value}"
        return ToolResult(text=f"{text} {noise_of(self._row_id, key, self._noise)}" if self._noise else text)

    async def reply(self, content: str) -> Message | None:
        """See `Session.reply`."""
        self._answers.append(content)
        return self._question(len(self._answers)) if len(self._answers) < len(self._questions) else None

    def _question(self, place: int) -> Message:
        return Message(role="user", content=question_text(self._questions[place]))

    async def score(self) -> Score:
        """See `Session.score`: `right` is 1 if all answers are, `share` the share of right ones, questions never reached being wrong."""
        share = sum(map(is_right, self._answers, self._right)) / len(self._right)
        right = float(share == 1)
        total = (1 - self._share_weight) * right + self._share_weight * share
        return Score(total=total, parts={"right": right, "share": share})

    async def close(self) -> None:
        """See `Session.close`; it holds nothing."""


def is_right(answer: str, right: int) -> bool:
    """Whether an answer is the number and nothing else, white space around it left out."""
    return answer.strip() == str(right)


def _sum(a: JsonValue, b: JsonValue) -> ToolResult:
    addends = []
    for addend in (a, b):
        # True is an int in Python, and a number of thousands of digits could not be written.
        if not isinstance(addend, int) or isinstance(addend, bool) or abs(addend) > MAX_ADDEND:
            return ToolResult(text=f"a and b must be whole and at most {MAX_ADDEND}", error="bad_arguments")
        addends.append(addend)
    return ToolResult(text=str(sum(addends)))
