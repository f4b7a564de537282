"""Asking for Triton where it cannot run is an error that says what to do; on any machine, with or without Triton."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from samepath.kernels.backend import CAPABILITIES, Backend
from samepath.kernels.gpu import loading
from samepath.kernels.gpu.loading import backend_problem, fused_kernels
from samepath.kernels.selection.selection import select


def pretend(monkeypatch: pytest.MonkeyPatch, *, installed: bool, gpu: bool, interpreted: bool) -> None:
    spec = ModuleSpec("triton", None) if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(loading, "interpreting", lambda: interpreted)
    monkeypatch.setattr(loading, "_LOADED", {})
    monkeypatch.setattr(loading, "_import", object)


def test_backend_problem_not_installed_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=False, gpu=True, interpreted=False)
    assert "pip install triton" in str(backend_problem("triton"))


def test_backend_problem_without_a_gpu_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=True, gpu=False, interpreted=False)
    assert "model.backend to torch" in str(backend_problem("triton"))


@pytest.mark.parametrize(("gpu", "interpreted"), [(True, False), (False, True)])
def test_backend_problem_where_it_runs_is_none(monkeypatch: pytest.MonkeyPatch, gpu: bool, interpreted: bool) -> None:
    pretend(monkeypatch, installed=True, gpu=gpu, interpreted=interpreted)
    assert backend_problem("triton") is None


def test_select_on_triton_where_it_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=False, gpu=False, interpreted=False)
    with pytest.raises(RuntimeError, match="backend triton cannot run selection: the package triton is not installed"):
        select(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([4]), 2, "triton")


def test_fused_kernels_tensor_on_the_wrong_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=True, gpu=True, interpreted=False)
    with pytest.raises(ValueError, match="all tensors of selection on cuda; got one on cpu"):
        select(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([4]), 2, "triton")


@pytest.mark.parametrize("backend", [name for name, able in CAPABILITIES.items() if not able.fused])
def test_fused_kernels_of_a_backend_without_any_is_none_whatever_is_missing(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    pretend(monkeypatch, installed=False, gpu=False, interpreted=False)
    assert backend_problem(backend) is None
    assert fused_kernels(backend, "selection", torch.zeros(1)) is None
