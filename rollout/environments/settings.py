"""Settings of conversations: their form, their budgets, and what a malformed message leads to. Comes without torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from samepath.model.text.encodings.retention import Retention

ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]

FORM_OF_SETTING = {
    "thinking": "deepseek_v32",
    "retention": "deepseek_v32",
    "tools_first": "deepseek_v32",
    "options": "template",
}
"""Settings that one form alone has."""


class FormSettings(BaseModel):
    """How conversations are written in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["auto", "deepseek_v32", "template"] = Field(
        "auto",
        description="`deepseek_v32`: the published encoding; `template`: the checkpoint's own chat template; `auto`: the first where the "
        "tokenizer has its control tokens, else the second",
    )
    parser: Literal["auto", "dsml", "hermes"] | ImportPath = Field(
        "auto",
        description="reads what the model drew: `dsml` and `hermes`, or `package.module:function` of the tokenizer that returns a parser; "
        "`auto`: the form's own (hermes for a template)",
    )
    thinking: bool = Field(True, description="`deepseek_v32`: messages begin with reasoning; false: chat mode")
    retention: Retention = Field(
        "v32",
        description="`deepseek_v32`: which reasoning stays in the context: `v32` up to the next user message, `r1` none, `retain_all`, `v4` all "
        "where there are tools",
    )
    tools_first: bool = Field(False, description="`deepseek_v32`: tools stand before the system's text, not behind it")
    options: dict[str, JsonValue] = Field(
        {},
        description="`template`: its variables, such as {enable_thinking: false}; one that it does not know is refused",
    )

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        for name, form in FORM_OF_SETTING.items():
            # Not model_fields_set: a recipe that a run has written out holds every default.
            if self.form not in ("auto", form) and getattr(self, name) != FormSettings.model_fields[name].default:
                raise ValueError(f"{name} is a setting of form {form}; got it with form {self.form}. Leave it out.")
        if self.form == "deepseek_v32" and self.parser not in ("auto", "dsml"):
            raise ValueError(f"form deepseek_v32 is read by parser dsml; got {self.parser}. Leave parser out.")
        return self


class BudgetSettings(BaseModel):
    """What ends a conversation that does not end by itself; the environment judges it as it then stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_turns: int = Field(16, ge=1, description="messages of the model")
    max_calls: int = Field(64, ge=0, description="tool calls of the whole conversation")
    max_parallel_calls: int = Field(
        8, ge=1, description="tool calls of one message; those beyond are answered with an error"
    )
    max_tokens: int = Field(8192, ge=1, description="tokens that the model draws in the whole conversation")
    max_result_chars: int = Field(
        16384, ge=64, description="longest result of a tool, characters; what is beyond is cut and the model told so"
    )
    tool_timeout_s: float = Field(
        30.0, gt=0, description="longest time of a tool call, seconds; then the model reads an error"
    )
    session_timeout_s: float = Field(
        60.0, gt=0, description="longest time of starting, replying, scoring or closing, seconds; then the sample fails"
    )
    wall_s: float = Field(
        600.0, gt=0, description="longest time that a conversation waits for its environment in all, seconds"
    )


class EpisodeSettings(BaseModel):
    """How a conversation is led."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: FormSettings = Field(FormSettings(), description="encoding")
    budgets: BudgetSettings = Field(BudgetSettings(), description="limits")
    on_malformed: Literal["end", "result", "end_with_penalty"] = Field(
        "end",
        description="a message that cannot be read: `end` the conversation; `result`: where a call was read, the error is its result and the "
        "conversation goes on; `end_with_penalty` takes malformed_penalty off the score",
    )
    episodes_in_flight: int = Field(
        256, ge=1, description="conversations that a worker leads at a time, which bounds its memory"
    )
    malformed_penalty: float = Field(1.0, ge=0, description="taken off the score by end_with_penalty, reward units")


class EnvironmentSettings(BaseModel):
    """Which environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: ImportPath = Field(description="class or function that makes it, `package.module:Class`")
    options: dict[str, Any] = Field({}, description="keyword arguments given to it; plain data")
