"""Triton's index logits against float64. Tolerances: 2e-6 in float32 and bfloat16, 5e-6 in FP8, of the largest Σ|w·relu|."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.indexer import triton_fp8, triton_index_logits, triton_selected_logits
from samepath.kernels.indexer.index_logits import cached_index_logits, index_logits, selected_index_logits

SHAPES = [(1, 1, 1, 1, 16), (2, 3, 16, 3, 16), (3, 5, 33, 4, 16), (1, 17, 48, 5, 32), (1, 9, 40, 20, 48)]
"""(B sequences, T rows, S keys, I heads, K width); often no multiple of a tile."""


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    num_sequences, num_rows, num_keys, heads, width = shape
    generator = torch.Generator().manual_seed(seed)
    q_BTIK = torch.randn(num_sequences, num_rows, heads, width, generator=generator)
    k_BSK = torch.randn(num_sequences, num_keys, width, generator=generator)
    weights_BTI = torch.randn(num_sequences, num_rows, heads, generator=generator)
    return q_BTIK.to(DEVICE), k_BSK.to(DEVICE), weights_BTI.to(DEVICE)


def truth(q_BTIK: Tensor, k_BSK: Tensor, weights_BTI: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, Σ|w·relu|) in float64."""
    exact = (q_BTIK.double(), k_BSK.double())
    return (
        index_logits(*exact, weights_BTI.double(), "reference"),
        index_logits(*exact, weights_BTI.double().abs(), "reference"),
    )


def assert_near(got: Tensor, wanted: Tensor, size: Tensor, tolerance: float) -> None:
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).abs().max()) <= tolerance * float(size.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_index_logits_equal_float64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs(shape)
    q_BTIK, k_BSK = q_BTIK.to(dtype), k_BSK.to(dtype)
    wanted, size = truth(q_BTIK, k_BSK, weights_BTI)
    poison_fresh_memory(monkeypatch)
    assert_near(index_logits(q_BTIK, k_BSK, weights_BTI, "triton"), wanted, size, 2e-6)


def test_index_logits_bounds_leave_out_tiles_that_no_row_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((2, 8, 600, 4, 16))
    wanted, size = truth(q_BTIK, k_BSK, weights_BTI)
    starts_BT = torch.full((2, 8), 270, dtype=torch.int32, device=DEVICE)
    ends_BT = torch.arange(280, 296, dtype=torch.int32, device=DEVICE).view(2, 8)
    poison_fresh_memory(monkeypatch)
    got = triton_index_logits.index_logits(q_BTIK, k_BSK, weights_BTI, (starts_BT, ends_BT))
    position = torch.arange(600, device=DEVICE)
    seen = (position >= starts_BT[..., None]) & (position < ends_BT[..., None])
    assert_near(got[seen], wanted[seen], size[seen], 2e-6)
    assert got[..., :256].isnan().all()
    assert got[..., 512:].isnan().all()


def test_index_logits_rows_and_keys_do_not_depend_on_the_rest_of_the_window() -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((3, 24, 64, 4, 16))
    whole = index_logits(q_BTIK, k_BSK, weights_BTI, "triton")
    for sequence, rows, num_keys in [(0, slice(0, 1), 16), (2, slice(5, 6), 47), (1, slice(3, 20), 32)]:
        part = (slice(sequence, sequence + 1), rows)
        alone = index_logits(q_BTIK[part], k_BSK[sequence : sequence + 1, :num_keys], weights_BTI[part], "triton")
        assert torch.equal(alone[0], whole[sequence, rows, :num_keys])


def paged(k_BSK: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(a store whose rows hold the keys in random order, between rows of NaN, and the table of their places)."""
    num_sequences, num_keys, width = k_BSK.shape
    places = torch.randperm(2 * num_sequences * num_keys, generator=torch.Generator().manual_seed(seed))
    table_BS = places[: num_sequences * num_keys].view(num_sequences, num_keys).to(DEVICE)
    keys_SK = torch.full((len(places), width), torch.nan, dtype=k_BSK.dtype, device=DEVICE)
    keys_SK[table_BS] = k_BSK
    return keys_SK, table_BS


def some_ends(num_sequences: int, num_rows: int, num_keys: int, seed: int = 0) -> Tensor:
    """int64 [B, T]; the first row sees all keys, some see none."""
    ends_BT = torch.randint(-2, num_keys + 1, (num_sequences, num_rows), generator=torch.Generator().manual_seed(seed))
    ends_BT[0, 0] = num_keys
    return ends_BT.clamp(min=0).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1, 70, 8, 32), (1, 18, 35, 2, 16)])
def test_cached_index_logits_have_the_bits_of_a_copy_where_a_row_sees_keys(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Rows of the store that nobody lists are NaN, and so is fresh memory; positions from a row's end on may hold anything."""
    q_BTIK, k_BSK, weights_BTI = make_inputs(shape)
    q_BTIK, k_BSK = q_BTIK.to(dtype), k_BSK.to(dtype)
    keys_SK, table_BS = paged(k_BSK)
    ends_BT = some_ends(*shape[:3])
    copied = index_logits(q_BTIK, k_BSK, weights_BTI, "triton")
    wanted, size = truth(q_BTIK, k_BSK, weights_BTI)
    poison_fresh_memory(monkeypatch)
    got = cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT, "triton")
    seen = torch.arange(shape[2], device=DEVICE) < ends_BT[..., None]
    assert torch.equal(got[seen], copied[seen])
    assert_near(got[seen], wanted[seen], size[seen], 2e-6)


def test_cached_index_logits_leave_tiles_behind_all_ends_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even their places are read: the table's last ones point behind the store."""
    q_BTIK, k_BSK, weights_BTI = make_inputs((2, 1, 900, 4, 16))
    keys_SK, table_BS = paged(k_BSK)
    ends_BT = torch.tensor([[5], [300]], device=DEVICE)
    table_BS[0, 5:], table_BS[1, 300:] = 1 << 40, 1 << 40
    poison_fresh_memory(monkeypatch)
    got = cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT, "triton")
    for sequence, end in enumerate((5, 300)):
        assert got[sequence, 0, :end].isfinite().all()
        assert got[sequence, 0, end + 255 :].isnan().all()


def hadamard(width: int) -> Tensor:
    """Orthonormal Walsh–Hadamard matrix in Sylvester's order."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < width:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix / width**0.5


def simulated_quantisation(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(dequantised codes without their scale, scale) of rotated rows, by torch's own rounding."""
    rotated_NK = (x_NK.double().cpu() @ hadamard(x_NK.shape[1])).float()
    scale_N = torch.exp2((rotated_NK.abs().amax(1) / 448).log2().ceil())
    return (rotated_NK / scale_N[:, None]).to(torch.float8_e4m3fn).double(), scale_N.double()


@pytest.mark.parametrize("width", [16, 64, 128])
def test_quantise_equals_simulated_rotation_and_rounding(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    x_NK = torch.randn(37, width, generator=torch.Generator().manual_seed(width)).to(DEVICE)
    x_NK[3] *= 1000
    x_NK[4] /= 1000
    wanted_NK, wanted_N = simulated_quantisation(x_NK)
    poison_fresh_memory(monkeypatch)
    codes_NK, scales_N = triton_fp8.quantise(x_NK)
    assert codes_NK.dtype == torch.float8_e4m3fn
    assert torch.equal(scales_N.double().cpu(), wanted_N)
    # The rotation's last bit may move a value over a rounding boundary: then the code is the neighbouring one.
    codes_NK = codes_NK.double().cpu()
    different = codes_NK != wanted_NK
    assert float(different.double().mean()) < 0.01
    assert ((codes_NK - wanted_NK).abs() <= wanted_NK.abs() / 8 + 2.0**-9).all()
    error_NK = codes_NK * scales_N.double().cpu()[:, None] - x_NK.double().cpu() @ hadamard(width)
    assert float(error_NK.norm() / x_NK.double().norm()) < 2.0**-4 / 3**0.5


def test_quantise_zero_row_is_zero() -> None:
    codes_NK, scales_N = triton_fp8.quantise(torch.zeros(2, 32, device=DEVICE))
    assert not codes_NK.float().any()
    assert scales_N.isfinite().all()


@pytest.mark.parametrize("width", [24, 256, 1])
def test_quantise_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        triton_fp8.quantise(torch.zeros(2, width, device=DEVICE))


def test_index_logits_fp8_equals_float64_on_the_quantised_values() -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((2, 5, 33, 4, 32))
    got = triton_fp8.index_logits_fp8(q_BTIK, k_BSK, weights_BTI)
    q8, q_scales = triton_fp8.quantise(q_BTIK.flatten(0, 2))
    k8, k_scales = triton_fp8.quantise(k_BSK.flatten(0, 1))
    q_exact = (q8.double() * q_scales.double()[:, None]).view(q_BTIK.shape)
    k_exact = (k8.double() * k_scales.double()[:, None]).view(k_BSK.shape)
    wanted, size = truth(q_exact, k_exact, weights_BTI)
    # Hopper's FP8 tensor cores add with about 14 bits.
    assert_near(got, wanted, size, 5e-6 if DEVICE.type == "cpu" else 2e-4)
    exact = triton_fp8.index_logits_fp8(q_BTIK, k_BSK, weights_BTI, exact=True)
    assert_near(exact, wanted, size, 5e-6)
    unquantised, _ = truth(q_BTIK, k_BSK, weights_BTI)
    assert float((got.double() - unquantised).norm() / unquantised.norm()) < 0.1


@pytest.mark.parametrize("shape", [(1, 3, 5, 2, 4), (1, 7, 40, 5, 16), (1, 4, 30, 20, 24)])
def test_selected_index_logits_equal_autograd_in_float64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    q_BTIK, k_BSK, weights_BTI = make_inputs(shape)
    indices_NC = torch.randint(-1, shape[2], (shape[1], 19), generator=generator, dtype=torch.int32).to(DEVICE)

    def run(dtype: torch.dtype, backend: Backend) -> list[Tensor]:
        inputs = [tensor[0].to(dtype).requires_grad_() for tensor in (q_BTIK, k_BSK, weights_BTI)]
        out_NC = selected_index_logits(*inputs, indices_NC, backend)
        upstream = torch.linspace(-1, 1, out_NC.numel(), dtype=torch.float64, device=DEVICE).view(out_NC.shape)
        return [out_NC.detach(), *torch.autograd.grad(out_NC, inputs, upstream.to(out_NC.dtype))]

    wanted = run(torch.float64, "torch")
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(torch.float32, "triton"), wanted, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * max(1.0, float(truth.abs().max())))


def test_selected_index_logits_pieces_of_rows_change_the_sums_by_rounding_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((1, 40, 12, 3, 16))
    indices_NC = torch.randint(0, 12, (40, 7), generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.int32)

    def gradients() -> tuple[Tensor, ...]:
        inputs = [tensor[0].clone().requires_grad_() for tensor in (q_BTIK, k_BSK, weights_BTI)]
        out_NC = selected_index_logits(*inputs, indices_NC, "triton")
        return torch.autograd.grad(out_NC.square().sum(), inputs)

    whole = gradients()
    monkeypatch.setattr(triton_selected_logits, "PAIR_BYTES", 1)
    for got, wanted in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5000), (3, 37, 1001), (2, 300, 1008), (1, 257, 385)])
def test_index_logits_at_the_published_widths_have_the_bits_of_plain_tiles(shape: tuple[int, int, int]) -> None:
    """The kernel written for Hopper against the general one, float64, one row alone, and with bounds."""
    num_sequences, num_rows, num_keys = shape
    q_BTIK, k_BSK, weights_BTI = make_inputs((*shape, 64, 128), seed=num_keys)
    codes_q, q_scales = triton_fp8.quantise(q_BTIK.flatten(0, 2))
    codes_k, k_scales = triton_fp8.quantise(k_BSK.flatten(0, 1))
    scaled_BTI = weights_BTI * q_scales.view(weights_BTI.shape)
    starts_BT = torch.randint(0, num_keys, (num_sequences, num_rows), dtype=torch.int32, device=DEVICE)
    ends_BT = (starts_BT + num_keys // 4 + 1).clamp(max=num_keys)
    position = torch.arange(num_keys, device=DEVICE)
    seen = (position >= starts_BT[..., None]) & (position < ends_BT[..., None])
    bf16 = (q_BTIK.bfloat16(), k_BSK.bfloat16(), weights_BTI, None)
    fp8 = (codes_q.view(q_BTIK.shape), codes_k.view(k_BSK.shape), scaled_BTI, k_scales.view(num_sequences, num_keys))
    wanted, size = truth(*bf16[:3])
    assert_near(triton_index_logits.index_logits(*bf16[:3]), wanted, size, 2e-6)
    for q, k, weights, key_scales in (bf16, fp8):
        whole = triton_index_logits.index_logits(q, k, weights, None, key_scales)
        assert torch.equal(
            whole, triton_index_logits.index_logits(q, k, weights, None, key_scales, triton_index_logits.Tiles())
        )
        bounded = triton_index_logits.index_logits(q, k, weights, (starts_BT, ends_BT), key_scales)
        assert torch.equal(bounded[seen], whole[seen])
        row = slice(num_rows // 2, num_rows // 2 + 1)
        alone = triton_index_logits.index_logits(q[:, row], k, weights[:, row], None, key_scales)
        assert torch.equal(alone, whole[:, row])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "width"), [(64, 128), (32, 128), (16, 64), (8, 64), (8, 128), (4, 32), (3, 24), (1, 16)]
)
@pytest.mark.parametrize("num_rows", [1, 16, 40])
def test_cached_index_logits_of_few_queries_have_the_bits_of_the_packed_pass(
    num_rows: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    """Rows that decode, over scattered keys, against all rows of a batch over one copy of the keys, as the learner has them; 20 repeats."""
    shape = (5, 64, 1000, heads, width)
    q_BTIK, k_BSK, weights_BTI = make_inputs(shape, seed=heads)
    q_BTIK, k_BSK = q_BTIK.to(dtype), k_BSK.to(dtype)
    keys_SK, table_BS = paged(k_BSK)
    rows = slice(7, 7 + num_rows)
    ends_BT = some_ends(5, num_rows, 1000)
    seen = torch.arange(1000, device=DEVICE) < ends_BT[..., None]
    wanted = index_logits(q_BTIK, k_BSK, weights_BTI, "triton")[:, rows][seen]
    tiles = triton_index_logits.Tiles()
    plain = triton_index_logits.index_logits(q_BTIK, k_BSK, weights_BTI, None, None, tiles)[:, rows][seen]
    assert torch.equal(plain, wanted)
    part = q_BTIK[:, rows], keys_SK, table_BS, weights_BTI[:, rows], ends_BT
    for _ in range(20):
        assert torch.equal(cached_index_logits(*part, "triton")[seen], wanted)


@pytest.mark.gpu
def test_cached_index_logits_can_be_captured_and_follow_their_table_and_ends() -> None:
    q_BTIK, k_BSK, weights_BTI = (value.bfloat16() for value in make_inputs((3, 1, 500, 8, 64)))
    keys_SK, table_BS = paged(k_BSK)
    ends_BT = torch.full((3, 1), 400, device=DEVICE)
    cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT, "triton")
    table_BS.copy_(table_BS.flip(1))
    ends_BT.copy_(ends_BT - 399)
    graph.replay()
    wanted = index_logits(q_BTIK, k_BSK.flip(1), weights_BTI, "triton")
    assert torch.equal(got[..., :1], wanted[..., :1])


@pytest.mark.gpu
def test_index_logits_fp8_at_the_published_widths_are_as_exact_as_stated() -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((1, 70, 700, 64, 128), seed=4)
    q8, q_scales = triton_fp8.quantise(q_BTIK.flatten(0, 2))
    k8, k_scales = triton_fp8.quantise(k_BSK.flatten(0, 1))
    q_exact = (q8.double() * q_scales.double()[:, None]).view(q_BTIK.shape)
    k_exact = (k8.double() * k_scales.double()[:, None]).view(k_BSK.shape)
    wanted, size = truth(q_exact, k_exact, weights_BTI)
    assert_near(triton_fp8.index_logits_fp8(q_BTIK, k_BSK, weights_BTI), wanted, size, 2e-4)
    assert_near(triton_fp8.index_logits_fp8(q_BTIK, k_BSK, weights_BTI, exact=True), wanted, size, 5e-6)
