"""`samepath init`: a folder with a recipe, a reward module and problems that run as they stand."""

import itertools
import json
import random
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

HERE = Path(__file__).with_name("starter")
STARTER = ("recipe.yaml", "my_rewards.py")
"""Files of `rl/starter/`, written as they are."""
PROBLEMS = "problems.jsonl"
LETTERS, LENGTH, NUM_PROBLEMS = "abcdef", 4, 1000


def init(
    folder: Annotated[Path, typer.Argument(help="folder to write into; made if it is not there")] = Path(),
) -> None:
    """Write a commented recipe, a reward module and problems that run as they stand; overwrites nothing."""
    contents = {name: (HERE / name).read_text() for name in STARTER}
    contents[PROBLEMS] = problems()
    if there := [name for name in contents if (folder / name).exists()]:
        raise ValueError(f"{folder} already has {', '.join(there)}; nothing was written. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    enter = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    Console().print(
        f"wrote {', '.join(str(folder / name) for name in contents)}\n"
        f"try it:   {enter}samepath run recipe.yaml\n"
        "then make recipe.yaml, my_rewards.py and problems.jsonl your own; samepath validate recipe.yaml says whether they fit",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def problems() -> str:
    """Words and the same words read backwards, a problem a line."""
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]
    chosen = random.Random(0).sample(words, NUM_PROBLEMS)
    return "".join(json.dumps({"question": f"{word}>", "answer": word[::-1]}) + "\n" for word in chosen)
