"""Placement: what is refused before any work, the one rounding, and a forward pass with everything on the other device."""

from typing import Any

import pytest
import torch

from samepath.kernels.rows import row_product
from samepath.model.network.kernel_module import KernelModule
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import PlacementError, place, require
from samepath.model.placement import ON_CPU, Placement
from tests.conftest import tiny_model
from tests.cuda_stand_in import GPU, gpu_stand_in
from tests.tiny_runs import packed_input, random_sequences, run


def test_place_refuses_before_it_moves_anything() -> None:
    model = tiny_model()
    with pytest.raises(PlacementError, match=r"model\.dtype=bfloat16 needs model\.backend=triton"):
        place(model, Placement(dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_default_is_the_cpu_in_float32_and_changes_nothing() -> None:
    model = tiny_model()
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    assert place(model, ON_CPU) is model
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights


def test_cuda_without_a_gpu_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PlacementError, match="CUDA_VISIBLE_DEVICES"):
        require(Placement(device="cuda"))


def test_bfloat16_needs_kernels_that_add_in_float32() -> None:
    problem = Placement(device="cuda", dtype="bfloat16").problem
    assert problem is not None
    assert "model.backend=triton" in problem


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"backend": "triton"}, {}])
def test_rows_may_depend_on_their_batch_only_where_there_is_a_choice(other: dict[str, Any]) -> None:
    with pytest.raises(PlacementError, match="chooses between those kernels and the library's"):
        require(Placement(batch_invariant=False, **other))
    assert Placement(batch_invariant=False, device="cuda", backend="triton").problem is None


def test_placed_network_takes_the_library_where_its_rows_may_depend_on_their_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samepath.model.network.placement.require", lambda placement: None)
    for batch_invariant, wanted in ((True, "triton"), (False, "torch")):
        network = CausalLM(tiny_model().config, "triton")
        placed = place(network, Placement(backend="triton", batch_invariant=batch_invariant))
        modules = [module for module in placed.modules() if isinstance(module, KernelModule)]
        assert placed.batch_invariant == batch_invariant
        assert {module.row_backend for module in modules} == {wanted}
        assert {module.backend for module in modules} == {"triton"}


def test_triton_without_gpu_or_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samepath.model.network.placement.backend_problem", lambda backend: None)
    monkeypatch.setattr("samepath.model.network.placement.interpreting", lambda: False)
    with pytest.raises(PlacementError, match="model.device=cuda"):
        require(Placement(backend="triton"))


def test_bfloat16_rounds_weights_and_leaves_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samepath.model.network.placement.backend_problem", lambda backend: None)
    monkeypatch.setattr("samepath.model.network.placement.interpreting", lambda: True)
    model, wanted = tiny_model(), tiny_model()
    place(model, Placement(dtype="bfloat16", backend="triton"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.equal(model.head.float(), wanted.head.bfloat16().float())


def test_forward_pass_keeps_everything_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # One library for the products of both.
    monkeypatch.setattr(row_product, "ONEDNN", False)
    batch = packed_input(tiny_model().config, random_sequences(tiny_model().config, (21, 9)))
    wanted_ND, _ = run(tiny_model(), batch)
    with gpu_stand_in(monkeypatch):
        model = place(tiny_model(), Placement(device="cuda"))
        hidden_ND, trace = run(model, batch)
        assert hidden_ND.device == GPU
        assert {route.device for route in trace.routes} == {GPU}
        trace.to_cpu()
        got_ND = hidden_ND.detach().cpu()
        assert trace.stacked_routes().device.type == "cpu"
    assert torch.equal(got_ND, wanted_ND.detach())


def test_place_on_the_cpu_warns_where_rows_may_depend_on_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samepath.model.network.placement.row_mode_problem", lambda: "MKL multiplies in mode off")
    with pytest.warns(RuntimeWarning, match="MKL multiplies in mode off"):
        place(tiny_model(), ON_CPU)
