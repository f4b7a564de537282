"""Starting, checking and closing a runner: what cannot be loaded is named, nobody waits for ever, no process is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import CancelledError

import psutil
import pytest

from samepath.rewards.request import RewardRequest
from samepath.rewards.sandbox.process import RewardStartError

HANG = "while True: time.sleep(60)"


def request(text: str, **more: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=text, **more)


def test_close_in_the_middle_of_a_request_answers_and_cancels(make_runner):
    pool = make_runner()
    running, waiting = pool.submit(request(HANG)), pool.submit(request("pass"))
    while not running.running():
        time.sleep(0)
    pool.close()
    assert running.result().status == "died"
    assert "the runner was closed" in running.result().detail
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError, match="is closed"):
        pool.submit(request("pass"))
    pool.close()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("def other(request): return 1", r"'mine:reward' \(part 'mine'\) cannot be loaded: .*has no 'reward'"),
        ("def reward(): return 1", "but its signature is"),
        (
            "import not_installed_anywhere",
            r"ModuleNotFoundError: No module named 'not_installed_anywhere' .*mine.py:1\)",
        ),
        ("raise RuntimeError('no key')", r"RuntimeError: no key .*mine.py:1\)"),
        ("import os; print('my last words', flush=True); os._exit(7)", "exit code 7; it printed: my last words"),
        ("def reward(:", "SyntaxError"),
    ],
)
def test_check_and_start_function_that_cannot_be_loaded_say_why(folder, make_runner, module, message):
    (folder / "mine.py").write_text(module)
    pool = make_runner(parts={"fine": "own_rewards:echo", "mine": "mine:reward"}, num_workers=2)
    with pytest.raises(RewardStartError, match=message):
        pool.check()
    with pytest.raises(RewardStartError, match=message):
        pool.start()


def test_start_import_that_hangs_is_given_up(folder, make_runner):
    (folder / "mine.py").write_text("import time; time.sleep(600)")
    pool = make_runner(parts={"mine": "mine:reward"}, start_timeout_s=0.5)
    with pytest.raises(RewardStartError, match="'mine:reward' .*no result of the import within 0.5 s"):
        pool.start()


def test_check_good_function_leaves_no_process(make_runner):
    pool, before = make_runner(), psutil.Process().children()
    pool.check()
    assert psutil.Process().children() == before, "other tests of this process may have theirs"
    pool.close()


def test_start_missing_extra_says_what_to_install(folder, make_runner):
    (folder / "math_verify.py").write_text("raise ModuleNotFoundError('hidden', name='math_verify')")
    pool = make_runner(parts={"answer": "samepath.rewards.math:answer"})
    with pytest.raises(RewardStartError, match=r"pip install samepath\[math\]"):
        pool.start()


def test_score_function_that_can_no_longer_be_loaded_raises_instead_of_waiting(folder, make_runner):
    with make_runner() as pool:
        (folder / "own_rewards.py").write_text("raise RuntimeError('gone')")
        futures = [pool.submit(request("os._exit(1)")), pool.submit(request("pass"))]
        assert futures[0].result().status == "died"
        with pytest.raises(RewardStartError, match="gone"):
            futures[1].result()
        with pytest.raises(RewardStartError, match="gone"):
            pool.submit(request("pass"))


DETACH = """
started, starting = os.pipe()
for _ in range(96):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execvp("sleep", ["sleep", "{mark}"])
    os.waitpid(pid, 0)
os.close(starting)
os.read(started, 1)
"""
"""Waits until the pipe ends, which each process closes when it becomes `sleep`: 96 processes that are nobody's children, in sessions of their own."""


@pytest.mark.parametrize("ending", [HANG, "os._exit(1)", "pass"])
def test_end_detached_processes_in_sessions_of_their_own_die_too(make_runner, count_marked, ending):
    mark = f"{600_000_000 + os.getpid()}"
    with make_runner(timeout_s=2.0 if ending == HANG else 30.0) as pool:
        (score,) = pool.score([request(DETACH.format(mark=mark) + ending)])
        if ending == "pass":
            assert count_marked(mark) == 96
        else:
            # By the time that the next request is answered, nothing of the first is left.
            assert pool.score([request("pass")])[0].total == 1.0
            assert count_marked(mark) == 0
    assert score.status == {HANG: "timeout", "pass": "ok"}.get(ending, "died")
    assert count_marked(mark) == 0


def test_children_die_when_the_parent_is_killed(folder, assert_gone):
    script = f"""
        import psutil
        from samepath.rewards.request import RewardRequest
        from samepath.rewards.runner import RewardRunner
        from samepath.rewards.settings import RewardSettings
        settings = {{"parts": {{"own": "own_rewards:act"}}, "search_path": {str(folder)!r}, "num_workers": 2}}
        runner = RewardRunner(RewardSettings.model_validate(settings))
        detach = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
        runner.score([RewardRequest(prompt_text="", response_text=detach)])
        runner.submit(RewardRequest(prompt_text="", response_text="while True: pass"))
        print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        os.kill(parent.pid, signal.SIGKILL)
    # Two children with what isolates them, and the one that left its session.
    assert len(children) >= 3
    for pid in children:
        assert_gone(pid)
