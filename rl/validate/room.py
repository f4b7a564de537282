"""Which prompts a model and an engine can take."""

import math
from dataclasses import dataclass

from samepath.rl.tasks.survey import TooLarge
from samepath.rollout.engine_settings import AnyEngine, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What bounds a sequence.

    Example: `Room(engine=BuiltinSettings(), max_positions=2048).of(longest=256, together=8)(1900)[0] == "prompt_too_long"`
    """

    engine: AnyEngine
    """It may have a limit of its own, and must hold a sample at its longest."""
    max_positions: int | None
    """The model's; None where its sizes are not known."""

    @property
    def limit(self) -> tuple[float, str]:
        """Longest sequence in tokens, and what bounds it."""
        limits = [] if self.max_positions is None else [(self.max_positions, "max_position_embeddings of the model")]
        longest = describe(self.engine).longest_sequence(self.engine)
        if longest is not None:
            limits.append((longest, "engine.max_model_tokens"))
        limit, name = min(limits, default=(math.inf, "any length"))
        return limit, f"{name}={limit}"

    def of(self, longest: int, together: int) -> TooLarge:
        """The test of a prompt that is answered `together` times at once with at most `longest` tokens."""
        limit, what = self.limit

        def too_large(prompt_tokens: int) -> tuple[str, str]:
            if prompt_tokens + longest > limit:
                return "prompt_too_long", (
                    f"prompt and sampling.max_new_tokens must fit {what}; it needs {prompt_tokens} + {longest}. "
                    "Lower max_new_tokens or leave long rows out."
                )
            reason = describe(self.engine).too_large(self.engine, prompt_tokens, longest, together)
            return ("out_of_cache", reason) if reason else ("", "")

        return too_large
