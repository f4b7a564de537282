"""The engines that a recipe can name, and the one place that lists them. Comes without torch."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from samepath.rollout.builtin.description import BuiltinEngineDescription
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_description import EngineDescription
from samepath.rollout.vllm.description import VllmEngineDescription
from samepath.rollout.vllm.settings import VllmSettings


def _short_form(value: object) -> object:
    """`engine: vllm` stands for `{kind: vllm}`, and settings without a kind are the built-in engine's."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "builtin", **value} if isinstance(value, dict) else value


AnyEngine = BuiltinSettings | VllmSettings
"""Settings of any engine."""
EngineSettings = Annotated[Annotated[AnyEngine, Field(discriminator="kind")], BeforeValidator(_short_form)]
"""The same in a recipe; `kind` chooses."""
ENGINES: tuple[EngineDescription[Any], ...] = (BuiltinEngineDescription(), VllmEngineDescription())
"""One for each."""


def describe(settings: AnyEngine) -> EngineDescription[Any]:
    """The engine that these settings are of."""
    return next(engine for engine in ENGINES if engine.kind == settings.kind)
