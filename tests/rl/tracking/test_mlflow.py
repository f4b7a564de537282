"""Runs in a real SQLite store of MLflow, and in a store that is out of reach."""

import fcntl
import importlib.util
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Read while mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow")

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Run  # noqa: E402

from samepath.rl.cli import app  # noqa: E402
from samepath.rl.diagnostics.meanings import metric_tables  # noqa: E402
from samepath.rl.machine import set_missing_variables  # noqa: E402
from samepath.rl.recipe.file import dump_recipe  # noqa: E402
from samepath.rl.recipe.tracking import TrackingSettings  # noqa: E402
from samepath.rl.run_folder import claimed  # noqa: E402
from samepath.rl.run_state import RunState  # noqa: E402
from samepath.rl.tracking import mlflow_store  # noqa: E402
from samepath.rl.tracking.alert import Alert  # noqa: E402
from samepath.rl.tracking.events import StoreUnavailableError  # noqa: E402
from samepath.rl.tracking.mlflow_sink import MlflowSink, flatten_recipe  # noqa: E402
from samepath.rl.tracking.mlflow_store import MlflowStore  # noqa: E402
from samepath.rl.tracking.mlflow_traces import FIRST_COLUMNS  # noqa: E402
from samepath.rl.tracking.mlflow_ui import links, start_ui, ui_command  # noqa: E402
from samepath.rl.tracking.names import NameBook  # noqa: E402
from samepath.rl.tracking.sink import RunStart  # noqa: E402
from samepath.rl.tracking.tracked_rollout import TrackedRollout  # noqa: E402
from samepath.rl.tracking.tracker import MLFLOW_VARIABLES, build_tracker, resend_to_mlflow  # noqa: E402
from tests.rl.tracked_conversation import tracked_conversation  # noqa: E402

RECIPE = {
    "rl": {"group_size": 2, "lr": 1e-5},
    "rewards": [{"kind": "answer", "weight": 1.0}],
    "stop": ["\n"],
    "note": "",
}
ENVIRONMENT = {"python": "3.11", "git": {"known": True, "commit": "abc123", "dirty": True}}


def tracked(step: int, group: int, sample: int, reward: float, **changes: Any) -> TrackedRollout:
    values: dict[str, Any] = {
        "step": step, "group_id": f"s{step}-g{group}", "sample_index": sample, "prompt_text": "12+34=", "gold": "46",
        "response_text": "46" if reward == 1.0 else "40", "reward": reward, "reward_parts": {"answer": reward},
        "dataset": "sums", "advantage": reward - 0.5, "kl": 0.01 * sample, "off_policy": 0.0, "route_flips": 0.25,
        "weight_lag": 1, "num_tokens": 3, "finish_reason": "stop", "generate_s": 2.0,
    }  # fmt: skip
    return TrackedRollout(**{**values, **changes})


def rollouts(step: int) -> list[TrackedRollout]:
    broken = tracked(step, 1, 1, math.nan, reward_parts={}, reward_status="timeout", reward_detail="no result in 5.0 s",
                    advantage=math.nan, masked=True)  # fmt: skip
    return [
        tracked(step, 0, 0, 1.0),
        tracked(step, 0, 1, 0.0),
        tracked(step, 1, 0, 0.0),
        broken,
        tracked(step, 2, 0, 0.5),
    ]


def start(tracker: Any, run_id: str = "", recipe: Any = RECIPE) -> str:
    run = RunStart(run_name="quick", recipe=recipe, recipe_yaml="rl: {}\n", environment=ENVIRONMENT, run_id=run_id)
    given: str = tracker.start(run)
    return given


def away(run_dir: Path, **changes: Any) -> MlflowSink:
    settings = TrackingSettings(uri="http://127.0.0.1:9", experiment="sums", **changes)
    return MlflowSink(settings, run_dir, settings.uri)


@pytest.fixture(scope="module", autouse=True)
def _variables() -> None:
    set_missing_variables(MLFLOW_VARIABLES)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def client(runs_dir: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs_dir}/mlflow.db")


@pytest.fixture(scope="module")
def run(runs_dir: Path, client: MlflowClient) -> Run:
    """One finished run of two steps, four of five rollouts of each traced, and of a third with a conversation."""
    tracker = build_tracker(TrackingSettings(experiment="sums", traced_rollouts_per_step=4), runs_dir / "quick")
    run_id = start(tracker)
    for step in (1, 2):
        tracker.log_metrics(step, {"reward/mean": step / 4, "kl/reference": math.nan, "eval/acc@1": 0.5})
        tracker.log_rollouts(step, rollouts(step))
    tracker.log_rollouts(3, [tracked_conversation(step=3, group_id="s3-g0")])
    (runs_dir / "report.html").write_text("<p>report</p>")
    tracker.log_artifact(runs_dir / "report.html")
    tracker.log_artifact(runs_dir / "missing.html")
    tracker.log_checkpoint(2, runs_dir / "quick" / "checkpoint-2")
    tracker.log_best(1, runs_dir / "quick" / "checkpoint-1", 0.625)
    begins = Alert(step=1, rule="gap", event="begins", seen="a gap of 1 nat", cause="stale weights")
    note = Alert(step=1, rule="first_failure", event="note", seen="first " + "x" * 9000, about="reward/status.error")
    tracker.log_alerts([begins, note], {"gap": 1})
    tracker.log_alerts([replace(begins, rule="ratio", step=2)], {"gap": 1, "ratio": 2})
    tracker.finish("FINISHED")
    assert tracker.links()["charts"].endswith(f"/runs/{run_id}/model-metrics")
    return client.get_run(run_id)


def found(client: MlflowClient, run: Run, condition: str) -> list[str]:
    traces = client.search_traces(
        locations=[run.info.experiment_id], filter_string=condition, run_id=run.info.run_id, max_results=100
    )
    return sorted(f"{trace.info.tags['group']}/{trace.info.tags['sample']}" for trace in traces)


def test_mlflow_run_has_params_tags_and_status(run: Run) -> None:
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "quick"
    assert run.data.params == {
        "rl.group_size": "2", "rl.lr": "1e-05", "rewards.0.kind": "answer", "rewards.0.weight": "1.0", "stop": '["\\n"]',
        "note": "",
    }  # fmt: skip
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.tags["checkpoint.step"] == "2"
    assert (run.data.tags["best.step"], run.data.tags["best.accuracy"]) == ("1", "0.625")
    assert run.data.tags["best.path"].endswith("checkpoint-1")


def test_mlflow_tags_say_which_alerts_hold_and_what_each_said(run: Run) -> None:
    tags = run.data.tags
    assert tags["alerts"] == "gap since step 1, ratio since step 2"
    assert tags["alert.gap"] == "step 1: warning: gap: a gap of 1 nat. Stale weights"
    assert tags["alert.first_failure.reward/status.error"].startswith("step 1: warning: first xxx")
    assert len(tags["alert.first_failure.reward/status.error"]) == 1000


def test_mlflow_metrics_keep_step_and_nan_under_clean_names(run: Run, client: MlflowClient) -> None:
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert math.isnan(run.data.metrics["kl/reference"])
    assert run.data.metrics["eval/acc_1"] == 0.5


def test_mlflow_artifacts_lie_beside_the_store(run: Run, client: MlflowClient, runs_dir: Path) -> None:
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {"recipe.yaml", "environment.json", "metrics.md", "report.html", "original-names.json"}
    note = run.data.tags["mlflow.note.content"]
    assert "- `policy/gap_at_lag_0`: 0 with the built-in engine" in note
    assert len(note) <= 5000
    folder = runs_dir / "mlartifacts" / run.info.run_id / "artifacts"
    assert (folder / "recipe.yaml").read_text() == "rl: {}\n"
    assert (folder / "metrics.md").read_text() == metric_tables()
    assert json.loads((folder / "environment.json").read_text()) == ENVIRONMENT


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("tags.step = '2'", ["s2-g0/0", "s2-g0/1", "s2-g1/0", "s2-g1/1"]),
        ("feedback.reward > 0.5", ["s1-g0/0", "s2-g0/0"]),
        ("feedback.`score/answer` > 0.5 AND tags.step = '1'", ["s1-g0/0"]),
        ("feedback.status = 'timeout'", ["s1-g1/1", "s2-g1/1"]),
        ("feedback.`update/masked` = 'true' AND tags.step = '1'", ["s1-g1/1"]),
        ("tags.masked = 'true' AND tags.step = '1'", ["s1-g1/1"]),
        ("feedback.kl > 0.005 AND feedback.`update/advantage` < 0", ["s1-g0/1", "s2-g0/1"]),
        ("trace.status = 'ERROR' AND tags.step = '2'", ["s2-g1/1"]),
        ("metadata.`mlflow.trace.session` = 'quick-s1-g0'", ["s1-g0/0", "s1-g0/1"]),
    ],
)
def test_mlflow_traces_are_found(client: MlflowClient, run: Run, condition: str, expected: list[str]) -> None:
    assert found(client, run, condition) == expected


def test_mlflow_trace_has_spans_gold_and_no_nan(run: Run, client: MlflowClient) -> None:
    trace = client.search_traces(
        locations=[run.info.experiment_id],
        filter_string="tags.step = '1' AND tags.group = 's1-g1' AND tags.sample = '1'",
    )[0]
    root, generate, score = trace.data.spans
    assert [span.span_type for span in trace.data.spans] == ["AGENT", "CHAT_MODEL", "EVALUATOR"]
    assert root.parent_id is None
    assert {generate.parent_id, score.parent_id} == {root.span_id}
    assert root.end_time_ns - root.start_time_ns == 2_000_000_000
    assert root.inputs == {"prompt": "12+34="}
    assert score.outputs["status"] == "timeout"
    values = {assessment.name: assessment.value for assessment in trace.info.assessments}
    assert values["gold"] == "46"
    assert values["update/weight_lag"] == 1
    assert not {"reward", "update/advantage", "score/answer"} & values.keys()
    assert trace.info.execution_duration == 2000


def test_mlflow_trace_of_a_conversation_has_a_span_a_call(run: Run, client: MlflowClient) -> None:
    (trace,) = client.search_traces(locations=[run.info.experiment_id], filter_string="tags.step = '3'")
    names = [span.name for span in trace.data.spans]
    assert names == ["rollout", "generate 0", "get", "get", "generate 1", "generate 2", "score"]
    assert trace.data.spans[2].inputs == {"key": "C"}
    assert trace.data.spans[2].outputs == {"result": "25", "error": ""}
    assert trace.info.token_usage is None, "its column would take the place of another"


def test_mlflow_list_of_rollouts_begins_with_kl_reward_and_route_flips(run: Run, client: MlflowClient) -> None:
    """The page shows ten columns: of a trace with a session, without a count of tokens, three of feedback, by the alphabet."""
    (trace,) = client.search_traces(
        locations=[run.info.experiment_id],
        run_id=run.info.run_id,
        filter_string="tags.step = '1' AND tags.sample = '1' AND tags.group = 's1-g0'",
    )
    names = sorted(one.name for one in trace.info.assessments if one.name != "gold")
    assert names[:3] == list(FIRST_COLUMNS) == ["kl", "reward", "route_flips"]
    assert trace.info.token_usage is None
    assert "mlflow.trace.session" in trace.info.trace_metadata


def test_mlflow_jsonl_beside_has_every_rollout(run: Run, runs_dir: Path) -> None:
    assert len((runs_dir / "quick" / "rollouts" / "step-00002.jsonl").read_text().splitlines()) == 5
    assert json.loads((runs_dir / "quick" / "tracking.json").read_text())["run_id"] == run.info.run_id


def test_mlflow_resume_keeps_run_and_params_and_notes_the_change(runs_dir: Path, client: MlflowClient) -> None:
    settings = TrackingSettings(experiment="sums")
    first = build_tracker(settings, runs_dir / "resumed")
    run_id = start(first)
    first.finish("KILLED")
    assert client.get_run(run_id).info.status == "KILLED"
    second = build_tracker(settings, runs_dir / "resumed")
    changed = {**RECIPE, "rl": {"group_size": 2, "lr": 2e-5, "new": True}}
    assert start(second, run_id, changed) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    second.log_metrics(3, {"reward/mean": 0.75})
    second.finish("FAILED")
    again = client.get_run(run_id)
    assert again.info.status == "FAILED"
    assert again.data.params["rl.lr"] == "1e-05"
    assert again.data.params["rl.new"] == "true"
    assert again.data.tags["attempt"] == "2"
    assert again.data.tags["recipe_changed.attempt_2"] == "rl.lr: 1e-05 → 2e-05"
    assert {item.path for item in client.list_artifacts(run_id)} >= {"recipe.yaml", "recipe-attempt-2.yaml"}


def test_mlflow_resume_of_unknown_run_makes_a_new_one(runs_dir: Path, client: MlflowClient) -> None:
    tracker = build_tracker(TrackingSettings(experiment="sums"), runs_dir / "unknown")
    run_id = start(tracker, "0" * 32)
    tracker.finish("FINISHED")
    assert run_id != "0" * 32
    assert client.get_run(run_id).info.status == "FINISHED"


def test_mlflow_unreachable_run_goes_on_and_is_resent_whole(
    tmp_path: Path, runs_dir: Path, run: Run, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = away(tmp_path, traced_rollouts_per_step=4)
    key = start(tracker)
    tracker.log_metrics(1, {"reward/mean": 0.25})
    tracker.log_rollouts(1, rollouts(1))
    tracker.finish("FINISHED")
    assert key.startswith("local-")
    assert tracker.links() == {}
    assert tracker.counts.waiting == 4
    assert sum("does not answer" in entry.message for entry in caplog.records) == 1
    queue_file = tmp_path / "tracking-queue.jsonl"
    kinds = [json.loads(line).get("kind") for line in queue_file.read_text().splitlines()]
    assert kinds == [None, "start", "metrics", "rollouts", "finish"]
    copy = tmp_path / "again.jsonl"
    copy.write_bytes(queue_file.read_bytes())
    time_ms = json.loads(queue_file.read_text().splitlines()[2])["time_ms"]

    uri = f"sqlite:///{runs_dir}/mlflow.db"
    for path in (queue_file, copy):
        counts = resend_to_mlflow(path, uri)
        assert (counts.sent, counts.refused, counts.waiting) == (4, 0, 0)
        assert not path.exists()
        (resent,) = client.search_runs([run.info.experiment_id], f"tags.`samepath.run_key` = '{key}'")
        assert resent.info.status == "FINISHED"
        assert resent.data.tags["attempt"] == "1"
        (metric,) = client.get_metric_history(resent.info.run_id, "reward/mean")
        assert (metric.step, metric.value, metric.timestamp) == (1, 0.25, time_ms)
        assert len(found(client, resent, "tags.step = '1'")) == 4
        trace = client.search_traces(locations=[run.info.experiment_id], run_id=resent.info.run_id)[0]
        names = [assessment.name for assessment in trace.info.assessments]
        assert len(names) == len(set(names))


def test_mlflow_resume_sends_what_the_earlier_attempt_left(
    tmp_path: Path, runs_dir: Path, client: MlflowClient
) -> None:
    first = away(tmp_path)
    key = start(first)
    first.log_metrics(1, {"reward/mean": 0.5})
    first.finish("KILLED")
    settings = TrackingSettings(experiment="sums")
    second = MlflowSink(settings, tmp_path, f"sqlite:///{runs_dir}/mlflow.db")
    run_id = start(second, key)
    second.log_metrics(2, {"reward/mean": 0.75})
    second.finish("FINISHED")
    assert [metric.step for metric in client.get_metric_history(run_id, "reward/mean")] == [1, 2]
    assert client.get_run(run_id).data.tags["attempt"] == "2"
    assert second.counts.waiting == 0


def test_resend_store_still_away_keeps_all_events(tmp_path: Path) -> None:
    tracker = away(tmp_path)
    start(tracker)
    tracker.finish("FINISHED")
    counts = resend_to_mlflow(tmp_path / "tracking-queue.jsonl", "http://127.0.0.1:9")
    assert (counts.sent, counts.waiting) == (0, 2)
    assert (tmp_path / "tracking-queue.jsonl").exists()


def test_replay_command_sends_to_the_store_of_the_recipe(
    tiny_recipe, runs_dir: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("name=late", f"tracking={{kind: mlflow, uri: 'sqlite:///{runs_dir}/mlflow.db'}}")
    sink = away(recipe.run_dir)
    key = start(sink)
    sink.finish("FINISHED")
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    app(["replay", str(recipe.run_dir)], standalone_mode=False)
    assert "sent 2, refused 0, waiting 0" in capsys.readouterr().out
    experiment = client.get_experiment_by_name("sums")
    (resent,) = client.search_runs([experiment.experiment_id], f"tags.`samepath.run_key` = '{key}'")
    assert resent.info.status == "FINISHED"
    assert app(["replay", str(recipe.run_dir)], standalone_mode=False) == 0
    assert "nothing waits to be sent" in capsys.readouterr().out


def test_replay_command_with_the_store_away_fails_and_says_what_to_do(
    tiny_recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("name=away", "tracking={kind: mlflow, uri: 'http://127.0.0.1:9'}")
    sink = away(recipe.run_dir, start_timeout_s=5.0)
    start(sink)
    sink.finish("FINISHED")
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    for _ in range(2):
        assert app(["replay", str(recipe.run_dir)], standalone_mode=False) == 1
        printed = capsys.readouterr()
        assert "sent 0, refused 0, waiting 2" in printed.out
        assert f"call `samepath replay {recipe.run_dir}` again" in printed.err


def killed(tiny_recipe, runs_dir: Path, name: str, phase: str, status: str = "") -> tuple[Path, str]:
    """Folder and MLflow run of a run that ended with the phase, without a word to MLflow, or with that status there."""
    recipe = tiny_recipe(
        f"name={name}", f"tracking={{kind: mlflow, experiment: sums, uri: 'sqlite:///{runs_dir}/mlflow.db'}}"
    )
    recipe.run_dir.mkdir(parents=True)
    tracker = build_tracker(recipe.tracking, recipe.run_dir)
    run_id = start(tracker)
    if status:
        tracker.finish(status)
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    RunState(run_id=run_id, phase=phase).save(recipe.run_dir)
    os.utime(recipe.run_dir / "run.json", (1_700_000_000, 1_700_000_000))
    return recipe.run_dir, run_id


@pytest.mark.parametrize(
    ("phase", "before", "after"),
    [
        ("training", "", "KILLED"),
        ("cold start", "", "KILLED"),
        ("finished", "", "FINISHED"),
        ("training", "FAILED", "FAILED"),
        ("training", "FINISHED", "KILLED"),
    ],
)
def test_replay_command_gives_a_run_whose_process_is_gone_its_end(
    phase: str,
    before: str,
    after: str,
    tiny_recipe,
    runs_dir: Path,
    client: MlflowClient,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir, run_id = killed(tiny_recipe, runs_dir, f"{phase.split()[0]}-{before}-{after}", phase, before)
    assert client.get_run(run_id).info.status == (before or "RUNNING")
    assert app(["replay", str(run_dir)], standalone_mode=False) == 0
    said = f"the run has ended but was {before or 'RUNNING'} in MLflow: it is {after} now"
    assert (said in capsys.readouterr().out) == (before != after)
    info = client.get_run(run_id).info
    assert info.status == after
    if before != after:
        assert info.end_time == 1_700_000_000_000
    assert app(["replay", str(run_dir)], standalone_mode=False) == 0
    assert "nothing waits to be sent" in capsys.readouterr().out


def test_replay_command_beside_a_live_run_leaves_it_running(
    tiny_recipe, runs_dir: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, run_id = killed(tiny_recipe, runs_dir, "live", "training")
    with claimed(run_dir):
        assert app(["replay", str(run_dir)], standalone_mode=False) == 1
    assert "is held by a live run, which sends what waits by itself" in capsys.readouterr().err
    assert client.get_run(run_id).info.status == "RUNNING"


def test_replay_command_of_a_run_killed_while_its_store_was_away_sends_it_with_its_end(
    tiny_recipe, runs_dir: Path, client: MlflowClient
) -> None:
    recipe = tiny_recipe(
        "name=dark", f"tracking={{kind: mlflow, experiment: sums, uri: 'sqlite:///{runs_dir}/mlflow.db'}}"
    )
    sink = away(recipe.run_dir)
    key = start(sink)
    sink.finish("KILLED")
    # A killed run says nothing of its end.
    queue_file = recipe.run_dir / "tracking-queue.jsonl"
    *lines, end = queue_file.read_text().splitlines(keepends=True)
    assert '"finish"' in end
    queue_file.write_text("".join(lines))
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    RunState(run_id=key, phase="training").save(recipe.run_dir)
    assert app(["replay", str(recipe.run_dir)], standalone_mode=False) == 0
    experiment = client.get_experiment_by_name("sums")
    (sent,) = client.search_runs([experiment.experiment_id], f"tags.`samepath.run_key` = '{key}'")
    assert sent.info.status == "KILLED"


def test_replay_command_of_a_run_killed_with_the_store_away_still_says_what_to_do(
    tiny_recipe, runs_dir: Path, capsys: pytest.CaptureFixture[str], client: MlflowClient
) -> None:
    run_dir, _ = killed(tiny_recipe, runs_dir, "then-away", "training")
    recipe = tiny_recipe("name=then-away", "tracking={kind: mlflow, uri: 'http://127.0.0.1:9'}")
    (run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    assert app(["replay", str(run_dir)], standalone_mode=False) == 1
    assert f"Call `samepath replay {run_dir}` again when it does" in capsys.readouterr().err


def test_replay_command_without_mlflow_says_what_to_install(tiny_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("name=late")
    recipe.run_dir.mkdir(parents=True)
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install samepath\[mlflow\]"):
        app(["replay", str(recipe.run_dir)], standalone_mode=False)


def test_tracker_leaves_global_mlflow_state_alone(run: Run) -> None:
    assert mlflow.active_run() is None
    assert "runs" not in mlflow.get_tracking_uri().split("/")


def test_flatten_recipe_long_value_is_cut_and_nested_lists_are_numbered() -> None:
    flat = flatten_recipe({"a": {"b": [{"c": None}, {"c": math.inf}]}, "text": "x" * 7000, "empty": {}}, NameBook())
    assert flat == {"a.b.0.c": "null", "a.b.1.c": "inf", "text": "x" * 6000, "empty": "{}"}


def test_flatten_recipe_keys_that_spell_the_path_of_another_are_kept_apart() -> None:
    flat = flatten_recipe({"a": {"b": 1}, "a.b": 2, "t (1)": 3, "t [1]": 4}, NameBook())
    assert len(flat) == 4
    assert sorted(flat.values()) == ["1", "2", "3", "4"]
    assert {flat["a.b"], flat["t _1_"]} == {"1", "3"}


def test_links_sqlite_leads_to_own_page_and_server_to_itself() -> None:
    own = links("sqlite:////x/mlflow.db", "1", "r", port=5005)
    assert own["charts"] == "http://127.0.0.1:5005/#/experiments/1/runs/r/model-metrics"
    assert links("https://host:8443/", "1", "r")["run"] == "https://host:8443/#/experiments/1/runs/r"


def test_ui_command_serves_the_runs_folder_on_loopback(tmp_path: Path) -> None:
    command = ui_command(tmp_path, 5005)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path}/mlflow.db" in command


def test_start_ui_without_store_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tracking\.kind=mlflow"):
        start_ui(tmp_path, 5005)


def test_store_whose_tables_another_process_makes_for_ever_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store, "LOCK_LIMIT_S", 0.05)
    with (tmp_path / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailableError, match=r"waited 0 s for .*mlflow\.lock, which another process holds"):
            MlflowStore(f"sqlite:///{tmp_path}/mlflow.db")._connect()
