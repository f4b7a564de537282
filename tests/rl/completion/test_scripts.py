"""Completion in a real bash; zsh and fish where they are installed."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samepath.rl.completion.scripts import SCRIPTS

BASH = shutil.which("bash")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """Variables with which a shell finds `samepath` as this interpreter runs it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "samepath").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from samepath.rl.cli import main; main()" "$@"\n'
    )
    (folder / "samepath").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ ", "HISTFILE": ""}


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_function_answers_for_what_follows_the_last_break_of_a_word(command: dict[str, str]) -> None:
    """Bash itself cuts `runtime=i` at the `=`, and puts the answer in the place of the `i`; a cursor inside a line ends the word."""
    program = """
source <(samepath completion bash)
ask() { COMP_LINE="$1"; COMP_POINT=${2:-${#1}}; _samepath; echo "${COMPREPLY[*]}"; }
ask "samepath valid"
ask "samepath run recipes/quickstart.yaml runtime=i"
ask "samepath run recipes/quickstart.yaml rl.group"
ask "samepath run recipes/quickstart.yaml" 12
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
ask "samepath run recipes/quickstart.yaml runtime=i"
ask "samepath nonsense x"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", program], cwd=ROOT, env=command, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n") == ["validate", "inline", "rl.group_size=", "run", "runtime=inline", "", ""]
    assert done.stderr == ""


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_tab_in_an_interactive_bash_completes_the_line(command: dict[str, str]) -> None:
    """Subcommand, recipe, key and value typed with TAB; the line that results is printed by `echo` in the command's place."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(BASH or "", ["bash", "--norc", "--noprofile", "-i"], command)
    try:
        os.write(terminal, b"source <(samepath completion bash); echo rea''dy\n")
        assert "ready" in read_until(terminal, "ready")
        os.write(terminal, b"samepath vali\trecipes/quick\truntim\tinl\t")
        shown = read_until(terminal, "runtime=inline")
        assert "samepath validate recipes/quickstart.yaml runtime=inline" in shown.replace("\r", "")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str, limit_s: float = 60.0) -> str:
    """What the terminal shows until `wanted` is in it, or the time is over."""
    shown, end = "", time.monotonic() + limit_s
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_script_is_one_that_its_shell_reads(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(SCRIPTS[shell])  # type: ignore[index]
    subprocess.run([shell, "-n", str(path)], check=True, timeout=30)
