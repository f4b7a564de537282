"""What is wrong with an environment is said before the first sample."""

from collections.abc import Sequence
from typing import Any

import pytest

from samepath.rollout.environments.plugin import EnvironmentPathError, check_session, load_environment
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.settings import EnvironmentSettings
from samepath.rollout.import_path import ImportPathError
from tests.scripted_engine import Toy, ToySession


class Without:
    """No rows."""

    async def start(self, row: EnvironmentRow, seed: int) -> None: ...


class Blocking:
    """A start that is not async."""

    def tasks(self, split: str) -> Sequence[EnvironmentRow]:
        return []

    def start(self, row: EnvironmentRow, seed: int) -> None: ...


class Seedless:
    """A start without a seed."""

    def tasks(self, split: str) -> Sequence[EnvironmentRow]:
        return []

    async def start(self, row: EnvironmentRow) -> None: ...


def settings(path: str, **options: Any) -> EnvironmentSettings:
    return EnvironmentSettings(environment=path, options=options)


def test_load_environment_builds_it_with_the_options() -> None:
    made = load_environment(settings("tests.scripted_engine:Toy", rows=["x y", "z"]))
    assert [row.text for row in made.tasks("train")] == ["x y", "z"]


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("no_such_module:Toy", {}, "there is no module 'no_such_module'"),
        ("tests.scripted_engine:Toi", {}, "has no class or function 'Toi'; it has .*Toy"),
        ("tests.scripted_engine:Toy", {"row": ["x"]}, "must be keyword arguments"),
        (f"{__name__}:Without", {}, "tasks is missing"),
        (f"{__name__}:Blocking", {}, "start must be `async def`"),
        (f"{__name__}:Seedless", {}, "start must take 2 arguments"),
    ],
)
def test_load_environment_names_what_is_wrong(path: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ImportPathError, match=said):
        load_environment(settings(path, **options))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("call", lambda self, name: None, "async def call"),
        ("close", None, "async def close"),
        ("reply", ToySession.close, "reply must take 1 arguments"),
    ],
)
def test_check_session_names_what_is_wrong(
    name: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ToySession(Toy().tasks("train")[0], [])
    check_session(session, "toy")
    monkeypatch.setattr(ToySession, name, value)
    with pytest.raises(EnvironmentPathError, match=said):
        check_session(session, "toy")
