"""What starting one session shows: what the model will read first."""

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.row import TaskRow
from samepath.rollout.environments.first_context import first_context

SHOWN_CHARS = 2000


def first_conversation(row: TaskRow, tokenizer: Tokenizer) -> str:
    """Start a session of the row, encode its first messages and close it; what they became. Raises ValueError with what is wrong."""
    assert row.episode is not None
    episode = row.episode
    pieces = first_context(tokenizer, episode.environment, episode.row, episode.settings)
    text = "".join(tokenizer.token_texts(pieces.ids))
    return (
        f"{episode.environment.environment}: {row.row_id} begins with {len(pieces.ids)} tokens, {text!r:.{SHOWN_CHARS}}"
    )
