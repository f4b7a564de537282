"""A new model's tokenizer, learned from the store's worked conversations: small, repeatable, and what the recipe's settings say."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from samepath.model.shape import ModelShape
from samepath.model.text.conversation import Conversation, Message
from samepath.model.text.encodings.dsml_text import MARKS
from samepath.model.text.encodings.learned_tokenizer import LEAST_IDS
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.model_source import build_model, build_policy
from samepath.rl.learner.new_tokenizer import learned_tokenizer
from samepath.rl.preparation import prepare
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.model import LearnedTokenizer, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.settings import FormSettings
from samepath.rollout.environments.worked_store import worked_conversation
from tests.conftest import tiny_config
from tests.marked_conversations import GET

SIZES = {
    key: value
    for key, value in tiny_config(max_position_embeddings=512).model_dump(mode="json").items()
    if key not in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "rope_parameters")
}
TRACES = "samepath.rollout.environments.worked_store:worked_conversation"
STORE = EnvironmentTask(environment="samepath.rollout.environments.store:StoreEnvironment")


def learned(
    *,
    form: Mapping[str, Any] | None = None,
    traces: str = TRACES,
    options: Mapping[str, Any] | None = None,
    **tokenizer: int,
) -> Tokenizer:
    task = build_task(STORE, Path())
    tokenizer = {"rows": 16, **tokenizer}
    cold_start = ColdStartSettings(traces=traces, options=dict(options or {}))
    return learned_tokenizer(LearnedTokenizer(**tokenizer), task.train, cold_start, FormSettings(**(form or {})))


KNOWN = cache(learned)
"""With the settings as they are."""


def test_learned_tokenizer_of_the_store_is_small_and_its_prompts_are_short() -> None:
    tokenizer = KNOWN()
    renderer = renderer_of(tokenizer, FormSettings())
    row = build_task(STORE, Path()).held_out[0]
    assert LEAST_IDS + 8 <= tokenizer.vocab_size <= LEAST_IDS + 30
    prompt = row.encode(tokenizer)
    assert "invoke functions by writing" in tokenizer.text(prompt)
    assert len(prompt) <= 24
    assert row.episode is not None
    worked = worked_conversation(row.episode.row, random.Random(0))
    answers = [renderer.answer(message).ids for message in worked.messages if message.role == "assistant"]
    assert max(map(len, answers)) <= 24
    # Keys and digits are tokens of their own, so that none is only known inside another.
    alone = {tokenizer.text([id_]) for ids in answers for id_ in ids if len(tokenizer.text([id_])) > 1}
    assert not any(text[0] in "ABCDEFGHIJKLMNOP" or text[-1] in "ABCDEFGHIJKLMNOP0123456789" for text in alone)


def test_learned_tokenizer_hears_its_settings() -> None:
    known = KNOWN().vocab_size
    assert learned(vocab_size=LEAST_IDS + 3).vocab_size == LEAST_IDS + 3 < known

    # What an option or the form changes in the texts, the pieces follow.
    def guess(tokenizer: Tokenizer) -> int:
        return len(tokenizer.encode_continuation("guess"))

    assert (guess(KNOWN()), guess(learned(options={"guess_share": 1.0}))) == (5, 1)
    shown = [learned(form=form, traces=f"{__name__}:short") for form in ({}, {"tools_first": True})]
    assert ["s\n\n## Tools" in one.text(range(one.vocab_size)) for one in shown] == [True, False]
    few, many = (learned(traces=f"{__name__}:counted", rows=rows) for rows in (16, 40))
    assert "early text" in few.fast.get_vocab(with_added_tokens=False).keys() | {
        few.text([id_]) for id_ in range(few.vocab_size)
    }
    assert "early text" not in {many.text([id_]) for id_ in range(many.vocab_size)}


def counted(row: EnvironmentRow, rng: random.Random) -> Conversation:
    """As the store's; the first rows ask in other words."""
    worked = worked_conversation(row, rng)
    early = int(row.row_id.rpartition("-")[2]) < 16
    if not early:
        return worked
    first, *others = worked.messages
    return Conversation(messages=(replace(first, content="early text"), *others), tools=worked.tools)


def short(row: EnvironmentRow, rng: random.Random) -> Conversation:
    """Every row the same, with words of the system."""
    told = [Message(role=role, content=role[0]) for role in ("system", "user", "assistant")]
    return Conversation(messages=tuple(told), tools=(GET,))


def texts(row: EnvironmentRow, rng: random.Random) -> str:
    """No conversation."""
    return row.text


def nothing(row: EnvironmentRow, rng: random.Random) -> Conversation:
    """No row will do."""
    raise ValueError(f"{row.row_id} cannot be worked")


def test_learned_tokenizer_without_conversations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must write a Conversation .* got a str"):
        learned(traces=f"{__name__}:texts")
    with pytest.raises(
        ValueError, match=r"no worked conversation among the first training rows: train-15 cannot be worked"
    ):
        learned(traces=f"{__name__}:nothing")
    with pytest.raises(ValueError, match="form template needs the checkpoint's chat template"):
        learned(form={"form": "template"})


def recipe(form: Mapping[str, Any] | None = None, **model: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "store",
            "runtime": "inline",
            "model": {"kind": "new", "config": SIZES, **model},
            "task": {**STORE.model_dump(), "episode": {"form": form or {}}},
            "reward": {},
            "cold_start": {"steps": 1, "batch_size": 2, "traces": TRACES},
            "sampling": {"max_new_tokens": 64},
        }
    )


def test_build_model_has_as_many_ids_as_its_tokenizer() -> None:
    made = recipe(tokenizer={"kind": "bpe", "vocab_size": 300, "rows": 16})
    model, tokenizer = build_model(made, Path())
    assert tokenizer.fast.to_str() == learned(vocab_size=300).fast.to_str()
    assert model.shape.vocab_size == tokenizer.vocab_size < 300
    assert isinstance(made.model, NewModel)
    # What is estimated before the rows are read has the most that there may be.
    assert made.model.shape.vocab_size == build_policy(made.model, Path(), 0).shape.vocab_size == 300
    prepare(made, Path())


def test_cold_start_trains_on_the_conversations_in_the_form_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PackedBatch] = []

    def recorded(sequences: Sequence[TrainSequence], shape: ModelShape, **known: Any) -> PackedBatch:
        seen.append(pack(sequences, shape, **known))
        return seen[-1]

    monkeypatch.setattr("samepath.rl.learner.cold_start.pack", recorded)
    for retention, segments in (("v32", 4), ("retain_all", 2)):
        made = recipe({"retention": retention}, tokenizer={"kind": "bpe", "rows": 16})
        learner = Learner(made, Path(), Path(), None)
        (metrics,) = learner.cold_start(0, 1)
        # Two conversations with two questions each.
        assert len(seen.pop().rollout_S) == segments
        assert 0 < metrics["cold_start/loss"] < 10


def test_recipe_needs_a_learned_tokenizer_for_conversations_and_an_alphabet_for_anything_else() -> None:
    with pytest.raises(
        ValueError, match=r"is what a new model needs for task.kind: environment.*got alphabet with kind env"
    ):
        recipe(alphabet="01")
    with pytest.raises(ValueError, match="give exactly one of alphabet .* and tokenizer .* got both"):
        recipe(alphabet="01", tokenizer={"kind": "bpe"})
    with pytest.raises(ValueError, match="give exactly one of alphabet .* and tokenizer .* got none"):
        recipe()
    with pytest.raises(ValueError, match="greater than or equal to 262"):
        recipe(tokenizer={"kind": "bpe", "vocab_size": 261})
    with pytest.raises(ValueError, match="vocab_size follows from the tokenizer; leave it out"):
        recipe(tokenizer={"kind": "bpe"}, config={**SIZES, "vocab_size": 300})


PROGRAM = f"""
import sys
from pathlib import Path
from samepath.rl.learner.new_tokenizer import learned_tokenizer
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.model import LearnedTokenizer
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.environment import build_environment
from samepath.rollout.environments.settings import FormSettings
rows = build_environment(EnvironmentTask(environment="{STORE.environment}"), Path()).train
made = learned_tokenizer(LearnedTokenizer(rows=16), rows, ColdStartSettings(traces="{TRACES}"), FormSettings())
made.save(Path(sys.argv[1]))
"""


def test_learned_tokenizer_is_the_same_file_in_every_process(tmp_path: Path) -> None:
    files = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / seed)], check=True, env=environment)
        files.append((tmp_path / seed / "tokenizer.json").read_bytes())
    assert files[0] == files[1]
    assert all(mark.encode() in files[0] for mark in MARKS)
    KNOWN().save(tmp_path)
    assert files[0] == (tmp_path / "tokenizer.json").read_bytes()
