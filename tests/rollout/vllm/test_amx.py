"""The processor's matrix tiles: asked for where it has them, and before vLLM builds anything."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from samepath.rollout.vllm.amx import allow_matrix_tiles


def processor(monkeypatch: pytest.MonkeyPatch, *, has_tiles: bool) -> list[str]:
    """Calls of torch's request, on a processor with or without tiles."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: calls.append("amx") or True, raising=False)
    return calls


def test_tiles_are_asked_for_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = processor(monkeypatch, has_tiles=True)
    assert allow_matrix_tiles()
    assert calls == ["amx"]


def test_tiles_are_not_asked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = processor(monkeypatch, has_tiles=False)
    assert not allow_matrix_tiles()
    assert calls == []


@pytest.mark.parametrize("name", ["_is_amx_tile_supported", "_init_amx"])
def test_tiles_are_left_alone_by_a_torch_that_cannot_ask(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls = processor(monkeypatch, has_tiles=True)
    monkeypatch.delattr(torch.cpu, name)
    assert not allow_matrix_tiles()
    assert calls == []


def test_register_asks_for_the_tiles_before_vllm_looks_at_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM calls `register` first in every process of an engine, and `start_vllm` before it builds one; both stand in here."""
    calls = processor(monkeypatch, has_tiles=True)

    def stand_in(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    models = SimpleNamespace(
        get_supported_archs=lambda: calls.append("models") or (), register_model=lambda *_: calls.append("model")
    )
    checks = {"_verify_aux_output_compatibility": len, "_verify_sampling_replay_config": len}
    stand_in("vllm", ModelRegistry=models)
    stand_in("vllm.config", VllmConfig=type("VllmConfig", (), checks))
    stand_in("samepath.rollout.vllm.network", SamepathForCausalLM=object)
    monkeypatch.delitem(sys.modules, "samepath.rollout.vllm.plugin", raising=False)
    importlib.import_module("samepath.rollout.vllm.plugin").register()
    monkeypatch.delitem(sys.modules, "samepath.rollout.vllm.plugin")
    assert calls == ["amx", "models", "model"]
