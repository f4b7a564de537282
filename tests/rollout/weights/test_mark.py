"""Digests: every bit and the order count, on any memory; what a worker holds is compared with what was published."""

import pytest
import torch

from samepath.rollout.weights.mark import ROW, WeightsError, digest, header, require_equal

PLACE = 0x1E3779B97F4A7C15


def by_loop(tensor: torch.Tensor) -> int:
    """The formula, number by number."""
    bits = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    bits += bytes(-len(bits) % (8 * ROW))
    total = 0
    for row in range(len(bits) // (8 * ROW)):
        part = bits[8 * ROW * row : 8 * ROW * (row + 1)]
        total += (1 + 2 * PLACE * row) * sum(int.from_bytes(part[n : n + 8], "little") for n in range(0, 8 * ROW, 8))
    total %= 1 << 64
    return total - (1 << 64) if total >= 1 << 63 else total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (1024,), (70, 33), (2, 1024)])
def test_digest_is_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert digest(tensor) == by_loop(tensor)


def test_digest_of_no_number_is_zero_and_memory_does_not_count() -> None:
    assert digest(torch.zeros(0)) == 0
    whole = torch.randn(3000)
    for view in (whole[1:2050], torch.stack([whole, whole], 1)[:, 0][:2049]):
        assert digest(view) == digest(view.clone())


def test_digest_changes_with_any_bit_and_with_the_order_of_its_pieces() -> None:
    tensor = torch.randn(5, 2 * ROW)
    before = digest(tensor)
    bits = tensor.view(torch.int32)
    for place in (0, 1, 2 * ROW, 5 * 2 * ROW - 1):
        for bit in (0, 22, 30):
            bits.view(-1)[place] ^= 1 << bit
            assert digest(tensor) != before, (place, bit)
            bits.view(-1)[place] ^= 1 << bit
    assert digest(tensor) == before
    assert digest(tensor[torch.tensor([1, 0, 2, 3, 4])]) != before


def test_fingerprint_is_of_the_weights_and_not_of_their_version_or_order() -> None:
    a, b = torch.randn(4, 3), torch.randn(7)
    one = header(3, {"a": a, "b": b})
    assert one.fingerprint == header(9, {"b": b, "a": a}).fingerprint
    assert one.size_bytes == 4 * 19
    for other in ({"a": b, "b": a}, {"a": a.view(3, 4), "b": b}, {"a": a, "b": b.bfloat16()}, {"a": a}):
        assert header(3, other).fingerprint != one.fingerprint


def test_require_equal_names_who_and_what() -> None:
    published = {"a": torch.randn(4), "b": torch.randn(4)}
    expected = header(5, published)
    require_equal(expected, published, "worker 7")
    torn = {"a": published["a"], "b": published["b"].clone()}
    torn["b"][3] += 1
    with pytest.raises(
        WeightsError, match=r"worker 7 must hold the weights of version 5.*1 of 2 tensors.*first of them b\."
    ):
        require_equal(expected, torn, "worker 7")
