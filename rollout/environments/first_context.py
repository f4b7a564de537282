"""What a conversation of a row begins with, looked at before any run: does its session start, and can its messages be encoded?"""

from samepath.model.text.renderer import Pieces
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.environments.conversation_loop import ConversationLoop, settled
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.plugin import check_session, load_environment
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow
from samepath.rollout.environments.session_calls import ask_session
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings

LIMITS = 3
"""Sessions are started and closed within a bound each; code that blocks the loop is waited for a little longer."""
_SEED = 0
"""The first context is the same for every seed."""


def first_context(
    tokenizer: Tokenizer, environment: EnvironmentSettings, row: EnvironmentRow, episode: EpisodeSettings
) -> Pieces:
    """Ids that the model would read first. Starts a session and closes it. Raises ValueError that says what is wrong."""
    renderer, made = renderer_of(tokenizer, episode.form), load_environment(environment)
    limit_s = episode.budgets.session_timeout_s

    async def opened() -> Pieces:
        session = await ask_session("start", made.start(row, _SEED), limit_s)
        check_session(session, environment.environment)
        try:
            return renderer.open(list(session.messages), tuple(session.tools))
        finally:
            await settled(session.close(), limit_s)

    loop = ConversationLoop()
    try:
        return loop.start(opened()).result(timeout=LIMITS * limit_s)
    except TimeoutError as error:
        raise ValueError(
            f"environment_timeout: code of {environment.environment} blocks the loop that it runs in"
        ) from error
    except EnvironmentFailure as failure:
        raise ValueError(f"environment_{failure.kind}: {failure.detail}") from failure
    finally:
        loop.stop()
