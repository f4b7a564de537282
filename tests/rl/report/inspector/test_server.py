"""The inspector's server: its answers, its refusals, and that nothing but this machine is asked."""

import http.client
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from samepath.rl.report.inspector.run_facts import NoRunError, run_facts
from samepath.rl.report.inspector.server import FILES, InspectorServer
from samepath.rl.run_folder import claimed
from tests.rl.report.inspector.made_run import some_rollouts, tracked, write, write_run
from tests.rl.tracked_conversation import tracked_conversation

ATTACK = '</script><script>alert(1)</script>\u2028\x00\x1b[2J"\\'


@contextmanager
def serving(run_dir: Path) -> Iterator[InspectorServer]:
    """A server whose index knows what is there now."""
    with InspectorServer(run_dir) as server:
        server.index.refresh()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def asked(server: InspectorServer, path: str, method: str = "GET", host: str = "") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        connection.endheaders()
        reply = connection.getresponse()
        return reply.status, dict(reply.headers), reply.read()
    finally:
        connection.close()


def answer(server: InspectorServer, path: str, **said: Any) -> dict[str, Any]:
    status, _, content = asked(server, f"/api/{path}?{urlencode(said)}")
    assert status == 200, content
    value: dict[str, Any] = json.loads(content)
    return value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InspectorServer]:
    rollouts = [
        *some_rollouts(),
        tracked(9, 0, 0, response_text=ATTACK, prompt_text=ATTACK, dataset=ATTACK),
        tracked_conversation(step=9, group_id="s9-talk"),
    ]
    with serving(write_run(tmp_path_factory.mktemp("run"), rollouts)) as server:
        yield server


def test_run_says_how_it_stands(server: InspectorServer) -> None:
    run = answer(server, "run")
    assert (run["total"], run["state"], run["running"], run["waiting"]) == (38, "finished", False, 0)
    assert run["mask"] == {"enabled": True, "delta": 0.05, "scope": "rollout"}
    assert run["tasks"] == sorted(["", "sums", "Words", ATTACK])
    assert run["steps"]["step"] == [1, 2, 3, 9]
    assert run["steps"]["count"] == [12, 12, 12, 2]
    assert run["steps"]["reward"][3] == 0.5
    assert sum(share * 12 for share in run["steps"]["failed"][:3]) == pytest.approx(
        sum(one.failed for one in some_rollouts())
    )


def test_rollouts_come_in_windows_of_one_order(server: InspectorServer) -> None:
    whole = answer(server, "rollouts", order="step", count=1000)
    assert (whole["found"], whole["total"], len(whole["rollouts"])) == (38, 38, 38)
    parts = [answer(server, "rollouts", order="step", first=first, count=10)["rollouts"] for first in range(0, 50, 10)]
    assert [one for part in parts for one in part] == whole["rollouts"]
    assert [one["step"] for one in whole["rollouts"]] == sorted(one["step"] for one in whole["rollouts"])
    some = answer(server, "rollouts", masked="yes")
    assert some["found"] == sum(one.masked for one in some_rollouts()) > 0
    assert all(one["masked"] for one in some["rollouts"])


def test_rollouts_say_on_which_line_one_stands(server: InspectorServer) -> None:
    listed = answer(server, "rollouts", count=1000)["rollouts"]
    names = [(one["step"], one["sample"], one["group"]) for one in listed]
    assert answer(server, "rollouts", count=0, at="2/3/s2-g1")["at"] == names.index((2, 3, "s2-g1"))
    assert answer(server, "rollouts", count=0, at="2/99/s2-g1")["at"] == -1
    assert answer(server, "rollouts", count=0, step="1..1", at="2/3/s2-g1")["at"] == -1


def test_rollout_group_and_history_have_the_text_of_the_files(server: InspectorServer) -> None:
    one = answer(server, "rollout", step=9, group="s9-g0", sample=0)
    assert one["response_text"] == one["prompt"]["text"] == one["prompt"]["dataset"] == ATTACK
    members = answer(server, "group", step=2, group="s2-g1")["rollouts"]
    wanted = [one for one in some_rollouts() if one.group_id == "s2-g1"]
    assert [one["response_text"] for one in members] == [one.response_text for one in wanted]
    assert [one["advantage"] for one in members] == [one.advantage for one in wanted]
    best = answer(server, "history", prompt=members[0]["prompt"]["number"])
    rewards = [
        max(
            one.reward
            for one in some_rollouts()
            if one.step == step and one.prompt_text == "prompt 1" and not one.failed
        )
        for step in (1, 2, 3)
    ]
    assert [(one["step"], one["reward"]) for one in best["best"]] == list(zip((1, 2, 3), rewards, strict=True))
    assert best["left_out"] == 0


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/api/rollouts?reward=much", 400, "reward must be low..high"),
        ("/api/rollouts?first=-1", 400, "first must be at least 0"),
        ("/api/rollouts?count=100000", 400, "count at most 1000"),
        ("/api/rollouts?order=step&order=kl", 400, "every name may stand once"),
        ("/api/rollouts?&&", 400, "bad query field"),
        ("/api/rollout?step=1&group=a", 400, "sample is missing"),
        ("/api/rollout?step=1&group=s1-g0&sample=99", 404, "no sample 99"),
        ("/api/group?step=7&group=s1-g0", 404, "no group 's1-g0' in step 7"),
        ("/api/history?prompt=x", 400, "whole number"),
        ("/api/secrets", 404, "nothing at /api/secrets"),
        ("/api/", 404, "nothing at"),
        ("/recipe.yaml", 404, "no such page"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(
    server: InspectorServer, path: str, status: int, problem: str
) -> None:
    got, _, content = asked(server, path)
    assert got == status
    assert problem in json.loads(content)["error"]


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/inspector.js/../server.py", "/./server.py", "/rollouts.html", "/\\..\\x",
     "/api/../server.py", "/api/rollout?step=1&group=" + quote("../../recipe.yaml") + "&sample=0", "/index", "http://127.0.0.1/server.py"],
)  # fmt: skip
def test_paths_lead_to_no_other_file(server: InspectorServer, path: str) -> None:
    status, _, content = asked(server, path)
    assert status == 404
    assert "error" in json.loads(content)


def test_every_answer_forbids_what_the_page_does_not_need(server: InspectorServer) -> None:
    for path in (*FILES, "/api/run", "/none"):
        _, headers, _ = asked(server, path)
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
            in headers["Content-Security-Policy"]
        )
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
        assert "Access-Control-Allow-Origin" not in headers


def test_a_page_of_another_name_is_not_answered(server: InspectorServer) -> None:
    """A name elsewhere may lead to this address (DNS rebinding)."""
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        f"127.0.0.1:{server.server_port + 1}",
        "localhost",
    ):
        for path in ("/", "/api/run"):
            status, _, content = asked(server, path, host=host)
            assert status == 403
            assert b"rollout" not in content
    assert asked(server, "/api/run", host=f"localhost:{server.server_port}")[0] == 200


def test_answer_goes_out_in_one_piece(server: InspectorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two, the second waits for the delayed acknowledgement of the first, 40 ms."""
    monkeypatch.setattr(socketserver._SocketWriter, "write", lambda *_: pytest.fail("sent piece by piece"))  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", server.server_port), 10) as asking:
        asking.sendall(f"GET /api/run HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
        first = asking.recv(1 << 20)
    assert first.endswith(b"}")


def test_methods_that_change_something_are_refused(server: InspectorServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert asked(server, "/api/run", method)[0] == 501
    status, headers, content = asked(server, "/", "HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_files_of_the_page_ask_for_nothing_from_outside_and_make_no_markup() -> None:
    for path, _ in FILES.values():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text), path.name
        assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) <= set(FILES)


def test_server_listens_on_loopback_alone_and_asks_no_name_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(socket, name, lambda *_: pytest.fail("asked for a name"))
    with serving(write_run(tmp_path, [])) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert asked(server, "/")[0] == 200


def test_running_run_shows_its_new_steps(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", [], phase="training")
    with serving(run_dir) as server, claimed(run_dir):
        empty = answer(server, "run")
        assert (empty["total"], empty["running"], empty["state"]) == (0, True, "running (training)")
        assert answer(server, "rollouts")["rollouts"] == []
        write(run_dir, some_rollouts(steps=1))
        server.index.refresh()
        after = answer(server, "run")
        assert after["total"] == 12
        assert after["version"] > empty["version"]


def test_step_that_is_rewritten_under_a_look_is_a_conflict(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", some_rollouts(steps=1))
    with serving(run_dir) as server:
        snapshot = server.index.snapshot
        write(run_dir, [tracked(1, 5, 5)])
        server.index.snapshot = snapshot
        server.api._index = type("Held", (), {"snapshot": snapshot})()  # type: ignore[assignment]
        status, _, content = asked(server, "/api/rollout?step=1&group=s1-g2&sample=3")
        assert status == 409
        assert "has changed" in json.loads(content)["error"]


def test_run_facts_of_a_killed_run_and_of_one_elsewhere(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", [], phase="training")
    assert run_facts(run_dir)["state"] == "ended early (training)"
    with claimed(run_dir):
        pass
    holder = json.loads((run_dir / "run.lock").read_text())
    # This process took it once, and by its number it still runs; another start would have taken the lock anew.
    (run_dir / "run.lock").write_text(json.dumps({**holder, "since": "2000-01-01T00:00:00+00:00"}))
    assert run_facts(run_dir)["running"] is False
    (run_dir / "run.lock").write_text(json.dumps({**holder, "host": "elsewhere"}))
    assert run_facts(run_dir)["state"].startswith("perhaps running (training): held by process")
    (run_dir / "run.lock").write_text("{")
    (run_dir / "recipe.yaml").write_text("rl: [")
    assert run_facts(run_dir)["mask"] == {}


def test_folder_that_is_no_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", some_rollouts(steps=1))
    with pytest.raises(NoRunError, match="there is no such folder"):
        InspectorServer(tmp_path / "none")
    with pytest.raises(NoRunError, match="it has no recipe.yaml"):
        InspectorServer(tmp_path)
    with pytest.raises(NoRunError, match=re.escape(f"Did you mean {run_dir}?")):
        InspectorServer(run_dir / "rollouts")


def test_command_serves_until_it_is_ended_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from samepath.rl.cli import main; main()", "inspect"]
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no run folder" in refused.stderr
    run_dir = write_run(tmp_path / "run", some_rollouts(steps=1))
    with subprocess.Popen(
        [*command, str(run_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1])  # type: ignore[index]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/run")
        assert json.loads(connection.getresponse().read())["name"] == "run"
        connection.close()
        taken = subprocess.run(
            [*command, str(run_dir), "--port", str(port)], capture_output=True, text=True, timeout=60, check=False
        )
        assert taken.returncode == 2
        assert "in use" in taken.stderr
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
