"""Compilations are told of as they happen, those that the cache holds are not, and another listener keeps its calls."""

from types import SimpleNamespace
from typing import Any

import pytest

from samepath.kernels.gpu.compilation import compilations_said

triton = pytest.importorskip("triton")


def compiled(seconds: float, *, cache_hit: bool = False) -> None:
    """What Triton does once a kernel is there."""
    triton.knobs.compilation.listener(
        src=None, metadata={}, metadata_group={}, times=SimpleNamespace(total=seconds * 1e6), cache_hit=cache_hit
    )


def test_compilations_are_said_at_the_first_after_a_silence_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []

    def other(*, cache_hit: bool, **_: Any) -> None:
        heard.append(cache_hit)

    monkeypatch.setattr(triton.knobs.compilation, "listener", other)
    said: list[str] = []
    with compilations_said("triton", said.append, silence_s=60):
        compiled(1.0, cache_hit=True)
        assert said == []
        compiled(2.0)
        compiled(3.0)
    assert said[0].startswith("compiling kernels for this GPU")
    assert said[1].startswith("compiled 2 kernels in 5 s; kept in ")
    assert (len(said), heard) == (2, [True, False, False])
    assert triton.knobs.compilation.listener is other
    with compilations_said("triton", said.append, silence_s=0):
        compiled(2.0)
        compiled(4.0)
    assert said[3] == "compiling kernels: 2 so far, 6 s"


def test_nothing_is_said_where_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    said: list[str] = []
    with compilations_said("triton", said.append):
        compiled(1.0, cache_hit=True)
    with compilations_said("torch", said.append):
        assert triton.knobs.compilation.listener is None
    assert said == []
