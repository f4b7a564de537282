"""Names and values that MLflow refuses, sent to a real SQLite store: nothing else is lost with them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# Read while mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow")

from mlflow import MlflowClient  # noqa: E402
from mlflow.artifacts import load_dict  # noqa: E402

from samepath.rl.machine import set_missing_variables  # noqa: E402
from samepath.rl.recipe.tracking import TrackingSettings  # noqa: E402
from samepath.rl.tracking.events import Event, EventRefusedError  # noqa: E402
from samepath.rl.tracking.mlflow_sink import MlflowSink  # noqa: E402
from samepath.rl.tracking.mlflow_store import MlflowStore  # noqa: E402
from samepath.rl.tracking.sink import RunStart  # noqa: E402
from samepath.rl.tracking.tracked_rollout import TrackedRollout  # noqa: E402
from samepath.rl.tracking.tracker import MLFLOW_VARIABLES  # noqa: E402

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
"""Half surrogate pairs and control characters too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_missing_variables(MLFLOW_VARIABLES)
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def track(folder: Path, recipe: dict[str, Any], metrics: dict[str, float], **rollout: Any) -> tuple[str, MlflowSink]:
    """Track one step; returns the run's id and the closed sink."""
    sink = MlflowSink(TrackingSettings(experiment="names"), folder / "run", f"sqlite:///{folder}/mlflow.db")
    run_id = sink.start(RunStart(run_name="n", recipe=recipe, recipe_yaml="a: 1\n", environment={}))
    sink.log_metrics(1, metrics)
    values: dict[str, Any] = {"step": 1, "group_id": "g", "sample_index": 0, "prompt_text": "?", "response_text": "!"}
    sink.log_rollouts(1, [TrackedRollout(**values | {"reward": 1.0} | rollout)])
    sink.finish("FINISHED")
    return run_id, sink


@settings(
    max_examples=4, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(ANY_TEXT, ANY_TEXT, min_size=1, max_size=8),
    st.dictionaries(ANY_TEXT, st.floats(-1e6, 1e6), min_size=1, max_size=8),
    ANY_TEXT,
)
def test_mlflow_takes_any_text_as_name_and_value(
    folder: Path, client: MlflowClient, recipe: dict[str, str], metrics: dict[str, float], text: str
) -> None:
    run_id, sink = track(folder, recipe, metrics, reward_parts=metrics, dataset=text, gold=text, response_text=text)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert sink.counts.refused == sink.counts.waiting == 0
    assert len(run.data.params) == len(recipe)
    assert sorted(run.data.metrics.values()) == pytest.approx(sorted(metrics.values()))
    (trace,) = client.search_traces(locations=[run.info.experiment_id], run_id=run_id)
    values = {one.name: one.value for one in trace.info.assessments}
    assert (values["reward"], values["status"]) == (1.0, "ok")
    values = {name: value for name, value in values.items() if name.split("/")[0] == "score"}
    assert sorted(values.values()) == pytest.approx(sorted(metrics.values()))


def test_mlflow_keeps_the_original_texts_of_changed_names(folder: Path, client: MlflowClient) -> None:
    recipe = {"beta_by_dataset": {"train (1)": 0.5, "train [1]": 0.25, "plain": 0.0}}
    run_id, _ = track(folder, recipe, {"reward/a+b": 1.0, "reward/a*b": 2.0, "reward/mean": 3.0})
    run = client.get_run(run_id)
    names = load_dict(f"{run.info.artifact_uri}/original-names.json")
    assert sorted(names["params"].values()) == ["beta_by_dataset.train (1)", "beta_by_dataset.train [1]"]
    assert {names["params"][name]: run.data.params[name] for name in names["params"]} == {
        "beta_by_dataset.train (1)": "0.5",
        "beta_by_dataset.train [1]": "0.25",
    }
    assert {names["metrics"][name]: run.data.metrics[name] for name in names["metrics"]} == {
        "reward/a+b": 1.0,
        "reward/a*b": 2.0,
    }


def test_mlflow_takes_long_values_of_many_parameters(folder: Path, client: MlflowClient) -> None:
    run_id, sink = track(folder, {f"k{index}": "ü" * 7000 for index in range(30)}, {"a": 1.0})
    assert sink.counts.refused == 0
    params = client.get_run(run_id).data.params
    assert (len(params), {len(value) for value in params.values()}) == (30, {6000})


def test_mlflow_refused_parts_lose_no_others(folder: Path, client: MlflowClient) -> None:
    """Events as an older version may have left them in a queue file, with names that nobody cleaned."""
    store = MlflowStore(f"sqlite:///{folder}/mlflow.db")
    start = {
        "run_name": "raw", "run_key": "local-raw", "attempt_key": "k", "experiment": "names", "resume_run_id": "",
        "params": {"good": "1", "bad (1)": "2"}, "tags": {"fine": "1", "not+fine": "2"}, "recipe_yaml": "", "environment": {},
    }  # fmt: skip
    with pytest.raises(EventRefusedError, match=r"2 refused, first bad \(1\)"):
        store.send(Event(kind="start", time_ms=1, payload=start))
    with pytest.raises(EventRefusedError, match=r"1 refused, first c\+d"):
        store.send(Event(kind="metrics", time_ms=2, payload={"step": 1, "metrics": {"a": 1, "c+d": 2, "e": 3}}))
    store.send(Event(kind="finish", time_ms=3, payload={"status": "FINISHED"}))
    run = client.get_run(store.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"good": "1"}
    assert run.data.tags["fine"] == "1"
    assert run.data.metrics == {"a": 1.0, "e": 3.0}
    assert {item.path for item in client.list_artifacts(store.run_id)} == {
        "recipe.yaml",
        "environment.json",
        "metrics.md",
    }


def test_mlflow_artifact_with_a_refused_name_is_kept_under_a_clean_one(folder: Path, client: MlflowClient) -> None:
    (folder / "curves #1.json").write_text(json.dumps({"a": 1}))
    sink = MlflowSink(TrackingSettings(experiment="names"), folder / "run", f"sqlite:///{folder}/mlflow.db")
    run_id = sink.start(RunStart(run_name="n", recipe={}, recipe_yaml="", environment={}))
    sink.log_artifact(folder / "curves #1.json")
    sink.finish("FINISHED")
    assert "curves _1.json" in {item.path for item in client.list_artifacts(run_id)}


def test_mlflow_deleted_experiment_and_run_give_way_to_new_ones(folder: Path, client: MlflowClient) -> None:
    run_id, _ = track(folder, {}, {"a": 1.0})
    client.delete_run(run_id)
    sink = MlflowSink(TrackingSettings(experiment="names"), folder / "run", f"sqlite:///{folder}/mlflow.db")
    again = sink.start(RunStart(run_name="n", recipe={}, recipe_yaml="", environment={}, run_id=run_id))
    sink.finish("FINISHED")
    assert again != run_id
    client.delete_experiment(client.get_run(again).info.experiment_id)
    run_id, sink = track(folder, {}, {"a": 1.0})
    assert sink.counts.refused == 0
    assert client.get_experiment(client.get_run(run_id).info.experiment_id).name == "names (2)"
