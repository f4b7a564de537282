"""Settings of a prompt: how a question is rewritten, its template, and the checkpoint's chat form."""

import re
from collections.abc import Collection
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from samepath.model.text.chat import ChatForm


def _names_in(template: str, known: Collection[str]) -> set[str]:
    """Return the names in the template's `{…}`; raises ValueError for one that is not known."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template must pair its braces ({error}); write {{{{ and }}}} for literal ones") from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in known or spec or conversion):
            shown = ", ".join(f"{{{one}}}" for one in known)
            raise ValueError(
                f"template may hold {shown}; got {{{name}}} in {template!r}. Write {{{{ and }}}} for literal braces"
            )
    return {name for _, name, _, _ in parts if name is not None}


class PromptRewrite(BaseModel):
    """Cuts parts out of a question or answer and puts them together anew; by default leaves it as it is.

    Example: `{match: "problem: (.+) =", template: "{1}=", remove: [" "]}` makes `42-25-73=` of
    `State the final answer to the following arithmetic problem: 42 - 25 - 73 =`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str = Field(
        default=r"(?s).*", description="Python regular expression, searched in the text; every row must match it."
    )
    template: str = Field(
        default="{0}",
        description="New text; {0} is the whole match, {1} or {name} a group; write {{ and }} for literal braces.",
    )
    remove: tuple[str, ...] = Field(
        default=(), description="Strings deleted, in this order, from each group before it enters the template."
    )

    @model_validator(mode="after")
    def _check(self) -> "PromptRewrite":
        try:
            pattern = re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match must be a regular expression: {error}; got {self.match!r}") from error
        groups = [str(number) for number in range(pattern.groups + 1)]
        _names_in(self.template, [*groups, *pattern.groupindex])
        if "" in self.remove:
            raise ValueError('remove must hold no empty string; got "". Take it out.')
        return self


class ChatSettings(BaseModel):
    """Prompts in the chat form of the checkpoint, by its own template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=False,
        description="True gives the prompt as a user's message; a checkpoint without a chat template is refused.",
    )
    system: str = Field(
        default="", description="System message before it; empty gives none, and a template may then put in its own."
    )
    options: dict[str, JsonValue] = Field(
        default={},
        description="Variables of the template, such as {enable_thinking: false} of Qwen3; one that it does not know is refused.",
    )

    @model_validator(mode="after")
    def _check_enabled(self) -> "ChatSettings":
        if (self.system or self.options) and not self.enabled and "enabled" not in self.model_fields_set:
            raise ValueError("chat.enabled must be given when chat has a system message or options; set it to true")
        return self

    @property
    def form(self) -> ChatForm | None:
        """What a row carries: None when switched off."""
        return ChatForm(system=self.system, options=self.options) if self.enabled else None


class PromptSettings(BaseModel):
    """Settings that every kind of task has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rewrite: PromptRewrite = Field(
        default=PromptRewrite(), description="Rewrites the question before the template; by default keeps it."
    )
    template: str = Field(
        default="{question}",
        description="The prompt; {question} is the rewritten question; write {{ and }} for literal braces.",
    )

    chat: ChatSettings = Field(default=ChatSettings(), description="Chat form; by default the prompt stands as it is.")

    @model_validator(mode="after")
    def _check_prompt(self) -> "PromptSettings":
        if not _names_in(self.template, ["question"]):
            raise ValueError(f"template must hold {{question}}, or all prompts are equal; got {self.template!r}")
        return self
