"""`samepath sample`: answers to a prompt, or a conversation of an environment. Imports torch only when it is called."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    # For the checker alone: NumPy.
    from samepath.rollout.types import Rollout

RESPONSES = 4
"""Answers to a prompt, if no number is given."""
PLAIN = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64}
"""How a prompt is answered, but for what is given."""


def sample(
    source: Annotated[
        Path, typer.Argument(help="recipe (its newest checkpoint, or its own model), run folder or checkpoint folder")
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="text of the prompt, or what the user says in a chat; none with --conversation")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=64, help="responses, 4 if not given; conversations, one")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=10, help="0 takes the best token; by default 1, in a conversation the recipe's"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            help="keep the fewest tokens that reach this probability; by default 1, in a conversation the recipe's",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="longest response or message, tokens; by default 64, in a conversation the recipe's"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="give the prompt the model's chat form; by default as the recipe does"),
    ] = None,
    conversation: Annotated[
        bool, typer.Option("--conversation", help="play a held-out conversation of the recipe's environment")
    ] = False,
    row: Annotated[int | None, typer.Option(min=0, help="which held-out row, from 0; with --conversation")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="show the id of each token; with --conversation")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="the run's checkpoint whose evaluation had the highest accuracy")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with each segment's ids and logprobs")] = False,
) -> None:
    """Answer one prompt a few times, or play one conversation and show it token by token."""
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    changes = {name: value for name, value in given.items() if value is not None}
    if conversation:
        if prompt is not None or chat is not None:
            raise ValueError("--conversation plays a row of the environment: leave the prompt and --chat out")
        if ids and as_json:
            raise ValueError("--json has the ids: leave --ids out")
        _converse(source, row or 0, count or 1, changes, seed, ids=ids, best=best, as_json=as_json)
        return
    if prompt is None:
        raise ValueError('give a prompt, such as samepath sample RECIPE "1+2=", or --conversation')
    if row is not None or ids:
        raise ValueError("--row and --ids go with --conversation")
    # Late: torch.
    from samepath.rl.preview import sample_source

    answers = sample_source(source, prompt, count or RESPONSES, {**PLAIN, **changes}, seed, chat=chat, best=best)
    if as_json:
        _print_json([_plain(rollout) for rollout in answers])
        return
    table = Table("log-probability", "tokens", "finish", "response")
    for rollout in answers:
        logprob = sum(float(segment.sampler_logprobs.sum()) for segment in rollout.segments)
        finish_reason = rollout.segments[-1].finish_reason
        table.add_row(f"{logprob:.3f}", str(rollout.num_trained), finish_reason, Text(rollout.text))
    Console().print(table)


def _converse(
    source: Path,
    row: int,
    count: int,
    changes: Mapping[str, Any],
    seed: int,
    *,
    ids: bool,
    best: bool,
    as_json: bool,
) -> None:
    # Late: torch.
    from samepath.rl.preview_conversation import play_conversations
    from samepath.rl.report.conversation_text import conversation_text

    played = play_conversations(source, row, count, changes, seed, best=best)
    if as_json:
        _print_json([{"row": played.row_id, **_plain(rollout)} for rollout in played.rollouts])
        return
    console = Console()
    for number, rollout in enumerate(played.rollouts):
        console.rule(Text(f"row {played.row_id}, conversation {number}"))
        for line in conversation_text(rollout, played.tokenizer, ids=ids):
            console.print(line, highlight=False, soft_wrap=True)


def _plain(rollout: "Rollout") -> dict[str, Any]:
    """A rollout as JSON: its text and, segment by segment, every token; the log-probability of one that was not sampled is null."""
    return {
        "text": rollout.text,
        "finish_reason": rollout.segments[-1].finish_reason,
        "sampled_tokens": rollout.num_trained,
        "logprob": sum(float(segment.sampler_logprobs.sum()) for segment in rollout.segments),
        "segments": [
            {
                "token_ids": segment.token_ids.tolist(),
                "logprobs": [
                    value if sampled else None
                    for value, sampled in zip(segment.sampler_logprobs.tolist(), segment.trained.tolist(), strict=True)
                ],
            }
            for segment in rollout.segments
        ],
    }


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
