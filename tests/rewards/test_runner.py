"""Whatever a reward function does, its request gets a typed score and the next one is unaffected."""

import contextlib
import math
import os

import psutil
import pytest

from samepath.rewards.request import RewardRequest
from samepath.rewards.sandbox.process import RewardStartError

HANG = "while True: time.sleep(60)"


def request(text: str, **more: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=text, **more)


def assert_failed(score, status, detail):
    assert score.status == status
    assert math.isnan(score.total)
    assert score.parts == {}
    assert detail in score.detail


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("raise KeyError('gold')", "error", "own: KeyError: 'gold'"),
        ("sys.exit(0)", "error", "SystemExit"),
        ("input()", "error", "EOFError"),
        ("def down(): down()\ndown()", "error", "RecursionError"),
        ("os._exit(3)", "died", "own: its process ended with exit code 3"),
        ("print('last words'); os._exit(0)", "died", "it printed: last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "died", "signal SIGKILL"),
        ("ctypes.string_at(0)", "died", "signal SIGSEGV"),
        ("global result; result = None", "invalid", "must return a finite number; got None (NoneType)"),
        ("global result; result = float('nan')", "invalid", "got nan"),
        ("global result; result = -float('inf')", "invalid", "got -inf"),
        ("global result; result = '1.0'", "invalid", "got '1.0' (str)"),
        ("global result; result = {}", "invalid", "at least one number"),
        ("x = bytearray(1 << 30)", "memory", "memory limit"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "memory", "memory limit"),
    ],
)
def test_score_misbehaving_function_gives_a_typed_score_and_spares_the_next(make_runner, code, status, detail):
    with make_runner(memory_bytes=256 << 20) as pool:
        bad, good = pool.score([request(code), request("pass")])
    assert_failed(bad, status, detail)
    assert (good.status, good.total) == ("ok", 1.0)


@pytest.mark.parametrize(
    "code",
    [
        HANG,
        "while True: pass",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(60)",
        "while True: print('x' * 1000)",
        "asyncio.run(asyncio.sleep(60))",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_score_hanging_function_is_killed_and_spares_the_next(make_runner, code):
    with make_runner(timeout_s=0.4) as pool:
        bad, good = pool.score([request(code), request("pass")])
    assert_failed(bad, "timeout", "own: no result within 0.4 s")
    assert (good.status, good.total) == ("ok", 1.0)


def test_score_prints_do_not_reach_the_protocol(make_runner):
    code = "print('x' * 300_000); os.write(1, b'garbage'); os.write(2, b'more'); sys.stdout.flush()"
    with make_runner() as pool:
        assert [score.total for score in pool.score([request(code)] * 3)] == [1.0] * 3


FORGE = """
import gc, json, struct
channel = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Channel")
reply = json.dumps({"status": "ok", "values": {"own": 9.0}}).encode()
"""


@pytest.mark.parametrize(
    "code",
    [
        "channel._socket.sendall(struct.pack('>I16s', len(reply), bytes(16)) + reply)",
        "channel._socket.sendall(struct.pack('>I', 3_000_000_000))",
        "channel.send({'status': 'great'})",
        "channel._socket.sendall(b'[' * 200_000)",
    ],
)
def test_score_reply_under_no_token_or_of_no_kind_ends_the_child(make_runner, code):
    with make_runner() as pool:
        bad, good = pool.score([request(FORGE + code), request("pass")])
    assert_failed(bad, "died", "own: its process broke the protocol")
    assert (good.status, good.total) == ("ok", 1.0)


def test_score_reply_given_ahead_is_not_taken_for_the_next_request(make_runner):
    # Three replies to the first request: the others must not count for the next, whose right reward is 1.
    with make_runner() as pool:
        scores = pool.score(
            [
                request(FORGE + "channel.send(json.loads(reply))\nchannel.send(json.loads(reply))"),
                request("pass"),
                request("pass"),
            ]
        )
    assert [score.total for score in scores[1:]] == [1.0, 1.0]


def test_score_program_started_by_the_function_cannot_reach_the_socket(make_runner):
    code = (
        FORGE
        + "fd = channel._socket.fileno()\nglobal result\nresult = float(subprocess.call(['test', '-e', f'/proc/self/fd/{fd}']))"
    )
    with make_runner() as pool:
        (score,) = pool.score([request(code)])
    assert (score.status, score.total) == ("ok", 1.0)


def test_score_more_numbers_than_a_reply_holds_are_invalid(make_runner):
    code = "global result\nresult = {str(number): 1.0 for number in range(501)}"
    with make_runner() as pool:
        bad, good = pool.score([request(code), request("pass")])
    assert_failed(bad, "invalid", "at most 500 numbers")
    assert good.total == 1.0


def test_score_sees_no_key_of_the_driver_but_those_named(make_runner, monkeypatch):
    monkeypatch.setenv("HIDDEN_KEY", "secret")
    monkeypatch.setenv("SHOWN_KEY", "7")
    code = "global result; result = float(os.environ['SHOWN_KEY'] + os.environ['MORE'] + str(len(os.environ.get('HIDDEN_KEY', ''))))"
    with make_runner(pass_environment=["SHOWN_KEY"], environment={"MORE": "5"}) as pool:
        (score,) = pool.score([request(code)])
    assert score.total == 750.0


def test_start_variable_that_the_driver_lacks_is_an_error(make_runner):
    with pytest.raises(RewardStartError, match="NO_SUCH_KEY"):
        make_runner(pass_environment=["NO_SUCH_KEY"]).start()


def test_score_runs_in_a_private_folder_that_goes_with_the_child(make_runner, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    code = "import tempfile; open('left', 'w').close(); tempfile.mkdtemp(); raise ValueError(os.getcwd())"
    with make_runner() as pool:
        (score,) = pool.score([request(code)])
    assert_failed(score, "error", "samepath-reward")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_score_request_that_no_longer_fits_is_memory(make_runner):
    large = request("pass", answer={"data": "x" * (64 << 20)})
    with make_runner(memory_bytes=96 << 20) as pool:
        scores = pool.score([request("state.append(bytes(64 << 20))"), large, request("pass")])
    assert_failed(scores[1], "memory", "own: it ran into its memory limit (reward.memory_bytes)")
    assert [scores[0].total, scores[2].total] == [1.0, 1.0]


def test_score_small_leak_is_memory_wherever_the_last_byte_is_asked_for(make_runner):
    with make_runner(memory_bytes=20_000_000) as pool:
        scores = pool.score([request("state.append(bytearray(1_000_000))")] * 60)
    assert {score.status for score in scores} == {"ok", "memory"}


def test_score_fork_that_comes_back_cannot_answer_twice(make_runner):
    with make_runner() as pool:
        scores = pool.score([request("pid = os.fork()"), request("pass")])
    assert [score.status for score in scores] == ["ok", "ok"]


FORK = """
started, starting = os.pipe()
if not os.fork():
    ctypes.CDLL(None).prctl(15, b"{mark}")
    os.close(starting)
    time.sleep(600)
os.close(starting)
os.read(started, 1)
"""
"""Waits until the fork has taken the mark for its name (PR_SET_NAME)."""


@pytest.mark.parametrize("ending", [HANG, "os._exit(1)", "pass"])
@pytest.mark.parametrize("start", ["subprocess.Popen(['sleep', '{mark}'])", FORK])
def test_score_processes_started_by_the_function_die_with_it(make_runner, count_marked, start, ending):
    mark = f"{700_000_000 + os.getpid()}"
    with make_runner(timeout_s=1.0 if ending == HANG else 30.0) as pool:
        pool.score([request(f"{start.format(mark=mark)}\n{ending}")])
        # A child that goes on keeps what it started; of one that ended nothing is left by the time that the next request is answered.
        if ending == "pass":
            assert count_marked(mark) == 1
        else:
            assert pool.score([request("pass")])[0].total == 1.0
            assert count_marked(mark) == 0
    assert count_marked(mark) == 0


def test_score_order_is_kept_over_several_children(make_runner):
    with make_runner("echo", num_workers=3) as pool:
        scores = pool.score([request(str(number)) for number in range(200)])
    assert [score.total for score in scores] == [float(number) for number in range(200)]


def test_score_asynchronous_function_is_awaited(make_runner):
    with make_runner("later") as pool:
        first, second = pool.score([request("0.5"), request("x")])
    assert first.total == 0.5
    assert_failed(second, "error", "ValueError: could not convert")


def test_score_memory_of_a_leaking_function_is_given_back(make_runner):
    leak = "state.append(bytes(100 << 20))"
    with make_runner(memory_bytes=256 << 20) as pool:
        statuses = [score.status for score in pool.score([request(leak)] * 6)]
    assert statuses == ["ok", "ok", "memory"] * 2


def test_score_request_larger_than_any_pipe_arrives(make_runner):
    with make_runner("size", max_abs=1e7) as pool:
        (score,) = pool.score([request("", answer={"data": "x" * 5_000_000})])
    assert score.total == 5_000_000.0


def test_score_several_parts_are_weighted_and_named(make_runner):
    parts = {
        "own": {"function": "own_rewards:echo", "weight": 2.0},
        "style": {"function": "own_rewards:halves", "weight": -0.5},
        "answer": {"function": "samepath.rewards.exact:number", "weight": 0.0, "options": {"marker": ""}},
    }
    with make_runner(parts=parts) as pool:
        good, bad = pool.score([request("3", answer={"answer": "3"}), request("3")])
    # 2·3 − 0.5·(0.25 + 0.5) + 0·1
    assert good.total == 5.625
    assert good.parts == {"own": 3.0, "style/first": 0.25, "style/second": 0.5, "answer": 1.0}
    assert_failed(bad, "error", "answer: ValueError: the prompt's answer data must hold")


def test_score_part_that_hangs_is_named(make_runner):
    parts = {"quick": "own_rewards:halves", "slow": "own_rewards:act"}
    with make_runner(parts=parts, timeout_s=0.4) as pool:
        (score,) = pool.score([request(HANG)])
    assert_failed(score, "timeout", "slow: no result within 0.4 s")


def test_score_weighted_sum_that_overflows_is_invalid(make_runner):
    with make_runner(parts={"own": {"function": "own_rewards:echo", "weight": 1e300}}) as pool:
        (score,) = pool.score([request("1e300")])
    assert_failed(score, "invalid", "weighted sum must be at most reward.max_abs=1e+06 in size; got inf")


@pytest.mark.parametrize("value", ["1e20", "-1e39", "1e300"])
def test_score_huge_finite_number_is_invalid_and_spares_the_next(make_runner, value):
    with make_runner("echo") as pool:
        bad, good = pool.score([request(value), request("1")])
    assert_failed(bad, "invalid", f"weighted sum must be at most reward.max_abs=1e+06 in size; got {float(value):g}")
    assert good.total == 1.0


def test_score_bound_is_the_settings_own(make_runner):
    with make_runner("echo", max_abs=2.5) as pool:
        scores = pool.score([request("2.5"), request("-2.5"), request("2.75")])
    assert [score.status for score in scores] == ["ok", "ok", "invalid"]


def test_submit_child_that_ended_while_idle_is_replaced_first(make_runner, assert_gone):
    # Other tests of this process may have left children that they go on with.
    others = set(psutil.Process().children(recursive=True))
    with make_runner("echo") as pool:
        assert pool.submit(request("1")).result().total == 1.0
        # The innermost first: the worker, whose socket is open until it is no more.
        own = [child for child in psutil.Process().children(recursive=True) if child not in others]
        assert own
        for child in reversed(own):
            # Under bubblewrap the outer ones end with the inner.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
            assert_gone(child.pid)
        assert pool.submit(request("2")).result().total == 2.0


def test_submit_answer_that_cannot_be_pickled_is_an_error(make_runner):
    with make_runner() as pool:
        assert_failed(pool.submit(request("pass", answer={"f": lambda: 1})).result(), "error", "must be plain data")
