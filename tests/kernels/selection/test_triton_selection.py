"""The Triton selection equals the lexsort definition, bit for bit, on rows made to break radix selectors."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.kernels.selection import triton_selection
from samepath.kernels.selection.selection import key_rows, select, selection_fingerprint


def one_fp16_octave(num_keys: int) -> Tensor:
    """Values of [1, 2) on float16's 1024 steps: every value many times, all in one exponent bin."""
    return (torch.arange(num_keys) * 7919 % 1024).float() / 1024 + 1


def assert_selects(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> None:
    wanted = select(logits_NS, starts_N, ends_N, num_selected, "reference")
    got = select(logits_NS.to(DEVICE), starts_N.to(DEVICE), ends_N.to(DEVICE), num_selected, "triton")
    for value, truth in zip(got, wanted, strict=True):
        assert value.dtype == truth.dtype
        assert torch.equal(value.cpu(), truth)


ROWS = {
    "all zero": torch.zeros(700),
    "all equal": torch.full((700,), -3.5),
    "one octave": one_fp16_octave(700),
    "signed zeros and denormals": torch.tensor([-0.0, 0.0, -0.0, 0.0, 1e-45, -1e-45, 0.0] * 100),
    "all nan": torch.full((700,), torch.nan),
    "nan and infinities": torch.tensor([torch.nan, 1.0, -torch.inf, torch.inf, 2.0] * 140),
    "all minus infinity": torch.full((700,), -torch.inf),
    "lowest finite beside minus infinity": torch.tensor(
        [torch.finfo(torch.float32).min, -torch.inf, torch.nan, 0.0] * 175
    ),
    "ascending": torch.arange(700.0),
    "descending": -torch.arange(700.0),
}


@pytest.mark.parametrize("num_selected", [1, 7, 64])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_select_adversarial_rows_equal_the_definition(row: Tensor, num_selected: int) -> None:
    bounds = torch.tensor([(0, 700), (0, 699), (17, 700), (140, 203), (5, 6), (9, 9), (690, 700)])
    assert_selects(row.repeat(len(bounds), 1), bounds[:, 0], bounds[:, 1], num_selected)


@pytest.mark.parametrize("num_selected", [1, 16, 63])
def test_select_random_rows_equal_the_definition(num_selected: int) -> None:
    generator = torch.Generator().manual_seed(num_selected)
    logits_NS = torch.randn(9, 513, generator=generator).mul(8).round()
    starts_N = torch.randint(0, 513, (9,), generator=generator)
    ends_N = (starts_N + torch.randint(0, 513, (9,), generator=generator)).clamp(max=513)
    assert_selects(logits_NS, starts_N, ends_N, num_selected)


@pytest.mark.parametrize("num_above", [0, 63, 64, 200])
def test_select_more_than_16384_equal_candidates_loses_none(num_above: int) -> None:
    """The sampled bar admits none or all of these rows; the buffer is cut again and again."""
    row = torch.full((20000,), 0.25)
    row[torch.arange(num_above) * 97 + 13] = 0.5
    rows_NS = torch.stack([row, row.flip(0)])
    assert_selects(rows_NS, torch.tensor([0, 1000]), torch.tensor([20000, 19990]), 64)


def test_select_long_row_with_nan_among_numbers_equals_the_definition() -> None:
    """NaN reaches every bar while the row is read; only then does it count as −inf."""
    row = torch.randn(20000, generator=torch.Generator().manual_seed(3))
    row[::7] = torch.nan
    row[::11] = -torch.inf
    mostly = row.clone()
    mostly[torch.arange(20000) % 200 != 0] = torch.nan
    assert_selects(torch.stack([row, mostly]), torch.tensor([0, 5]), torch.tensor([20000, 19990]), 300)


def test_select_bar_from_an_unlucky_sample_starts_over() -> None:
    """Runs of 8 keys are sampled; large values exactly there promise winners that the rest of the row does not have."""
    row = torch.full((20000,), -1.0)
    position = torch.arange(2048)
    row[(position // 8) * (20000 // 256) + position % 8] = torch.arange(2048.0)
    assert_selects(row[None], torch.tensor([0]), torch.tensor([20000]), 900)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the GPU's kernel takes its tiles in another form, tested below")
def test_select_tile_width_changes_no_bit() -> None:
    logits_NS = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0))
    starts_N, ends_N = torch.tensor([0, 3, 100, 2000]), torch.tensor([3000, 2999, 3000, 2100])
    wanted = triton_selection.select(logits_NS, starts_N, ends_N, 50)
    for tile in (64, 512):
        got = triton_selection.select(logits_NS, starts_N, ends_N, 50, tile=tile)
        assert all(torch.equal(one, other) for one, other in zip(got, wanted))


def test_select_float64_is_refused() -> None:
    bounds = torch.tensor([4], device=DEVICE)
    with pytest.raises(ValueError, match="float32 logits"):
        select(torch.zeros(1, 4, dtype=torch.float64, device=DEVICE), bounds * 0, bounds, 2, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["normal", "octave", "clustered", "ascending", "equal"])
def test_select_real_size_equals_the_torch_backend_100_times(kind: str) -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    shape = (256, 131072)
    logits_NS = torch.randn(shape, generator=generator, device="cuda")
    if kind == "octave":
        logits_NS = one_fp16_octave(shape[1]).cuda().expand(shape).contiguous()
    elif kind == "clustered":
        logits_NS = (logits_NS * 3).round() / 1e6 + 1
    elif kind == "ascending":
        logits_NS = torch.arange(float(shape[1]), device="cuda").expand(shape).contiguous()
    elif kind == "equal":
        logits_NS = torch.ones(shape, device="cuda")
    starts_N = torch.zeros(shape[0], dtype=torch.int64, device="cuda")
    ends_N = torch.randint(1, shape[1] + 1, (shape[0],), generator=generator, device="cuda")
    wanted = select(logits_NS, starts_N, ends_N, 2048, "torch")
    for _ in range(100):
        got = select(logits_NS, starts_N, ends_N, 2048, "triton")
        assert all(torch.equal(one, other) for one, other in zip(got, wanted))


@pytest.mark.parametrize("num_selected", [1, 7, 600])
def test_selection_fingerprint_in_one_kernel_is_the_same_integer(num_selected: int) -> None:
    generator = torch.Generator().manual_seed(0)
    positions_NC = torch.randint(0, 1 << 30, (9, num_selected), dtype=torch.int32, generator=generator)
    count_N = torch.randint(0, num_selected + 1, (9,), dtype=torch.int32, generator=generator)
    count_N[0], count_N[1] = 0, num_selected
    positions_NC.masked_fill_(torch.arange(num_selected) >= count_N[:, None], -1)
    wanted_N = selection_fingerprint(positions_NC, count_N)
    assert torch.equal(selection_fingerprint(positions_NC.to(DEVICE), count_N.to(DEVICE), "triton").cpu(), wanted_N)
    assert int(wanted_N[0]) == 0


def test_key_rows_in_one_kernel_are_those_of_each_querys_own_sequence() -> None:
    keys_BS = torch.arange(48).view(3, 16) + 100
    positions_NC = torch.tensor([[0, 15, -1], [3, -1, -1], [-1, -1, -1], [7, 8, 9], [1, 2, -1], [4, 5, 6]]).int()
    wanted_NC = [[100, 115, -1], [103, -1, -1], [-1] * 3, [123, 124, 125], [133, 134, -1], [136, 137, 138]]
    assert key_rows(keys_BS, positions_NC, "torch").tolist() == wanted_NC
    assert key_rows(keys_BS.to(DEVICE), positions_NC.to(DEVICE), "triton").tolist() == wanted_NC


@pytest.mark.gpu
@pytest.mark.parametrize("num_keys", [131072, 131071, 8192, 300])
def test_select_of_few_rows_equals_the_torch_backend_and_replays_in_a_graph(num_keys: int) -> None:
    """Few rows are split among several blocks each; the graph's rows change between replays."""
    generator = torch.Generator(device="cuda").manual_seed(num_keys)
    for num_rows in (1, 60, 130, 300):
        logits_NS = torch.randn(num_rows, num_keys, generator=generator, device="cuda")
        ends_N = torch.randint(1, num_keys + 1, (num_rows,), generator=generator, device="cuda")
        starts_N = ends_N // 5
        select(logits_NS, starts_N, ends_N, 2048, "triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = select(logits_NS, starts_N, ends_N, 2048, "triton")
        for _ in range(3):
            logits_NS.normal_(generator=generator)
            for tensor in got:
                tensor.fill_(-77)
            graph.replay()
            for value, truth in zip(got, select(logits_NS, starts_N, ends_N, 2048, "torch"), strict=True):
                assert torch.equal(value, truth)
