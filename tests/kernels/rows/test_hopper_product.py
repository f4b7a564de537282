"""Hopper's tile product against float64, and its bits in tiles of every shape; Gluon has no interpreter, so a GPU alone runs these."""

import pytest
import torch

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.gpu.tiles import fits_hopper
from samepath.kernels.rows.triton_dense_rows import linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="no Hopper GPU"
    ),
]


@pytest.mark.parametrize("shape", [(1, 8, 5), (300, 1536, 704), (129, 80, 1003), (65, 7168, 264)])
@pytest.mark.parametrize("out_type", [torch.bfloat16, torch.float32])
def test_product_equals_float64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], out_type: torch.dtype
) -> None:
    num_rows, width, outputs = shape
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_ND = torch.randn(num_rows, width, generator=generator, device="cuda").bfloat16()
    weight_OD = torch.randn(outputs, width, generator=generator, device="cuda").bfloat16()
    assert fits_hopper(x_ND, weight_OD)
    poison_fresh_memory(monkeypatch)
    got = linear(x_ND, weight_OD, out_type)
    truth = x_ND.double() @ weight_OD.double().T
    # The tensor cores cut off what is below their sums' last bit, so the error grows with the inner width.
    limit = 4e-3 if out_type == torch.bfloat16 else 2e-5
    assert float((got.double() - truth).norm() / truth.norm()) < limit


def test_product_has_equal_bits_in_tiles_of_every_shape_and_at_any_row_count() -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    x_ND = torch.randn(4096, 1536, generator=generator, device="cuda").bfloat16()
    weight_OD = torch.randn(704, 1536, generator=generator, device="cuda").bfloat16() / 32
    # Older Triton has no Gluon.
    import samepath.kernels.rows.hopper_product as kernels

    whole = kernels.product(x_ND, weight_OD, torch.float32)
    for tiles in kernels.TILES:
        assert torch.equal(kernels.product(x_ND, weight_OD, torch.float32, tiles), whole)
    for start, stop in [(0, 1), (7, 23), (100, 164), (1000, 1256), (1, 3000)]:
        assert torch.equal(linear(x_ND[start:stop], weight_OD, torch.float32), whole[start:stop])
