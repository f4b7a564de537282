"""docs/first-run.md is typed in a fresh folder as a new user would, and says what the page says."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from samepath.rl.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first-run.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps_of(page: str) -> Iterator[tuple[str, str]]:
    """(command, expected output) of console blocks, and (`file NAME`, content) of the others, in the page's order."""
    for language, text in BLOCK.findall(page):
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, expected = part.partition("\n")
                yield command, expected
        else:
            name, _, content = text.partition("\n")
            yield f"file {name.removeprefix('# ')}", content


def agrees(said: str, expected: str) -> bool:
    """Whether `said` is `expected`, where … in a line stands for any text and a line of … alone for any lines, or none."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", "[^\n]*") + r" *\n"
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, said) is not None


def typed(command: str) -> str:
    """What a command says, on both streams."""
    program, *arguments = shlex.split(command)
    if program == "python":
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr
    assert program == "samepath"
    output = io.StringIO()
    before, sys.argv = sys.argv, [program, *arguments]
    try:
        # In this process: a new interpreter would spend most of the time on imports.
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), pytest.raises(SystemExit):
            main()
    finally:
        sys.argv = before
    return output.getvalue()


def test_first_run_page_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = 0
    for command, text in steps_of(PAGE.read_text(encoding="utf-8")):
        if command.startswith("file "):
            (tmp_path / command.removeprefix("file ")).write_text(text, encoding="utf-8")
            continue
        commands += 1
        said = typed(command)
        assert agrees(said, text), f"$ {command}\nsays\n{said}\nand the page\n{text}"
    assert commands >= 8


@pytest.mark.parametrize(
    ("said", "expected", "same"),
    [
        ("a 1 b\n", "a … b\n", True),
        ("a 1 c\n", "a … b\n", False),
        ("x\ny\nend\n", "…\nend\n", True),
        ("end\n", "…\nend\n", True),
        ("end\nmore\n", "…\nend\n", False),
        ("", "", True),
        ("error\n", "", False),
    ],
)
def test_agrees_lets_dots_alone_stand_for_anything(said: str, expected: str, same: bool) -> None:
    assert agrees(said, expected) == same
