"""Fresh memory full of NaN, so that an output a kernel forgot to write is seen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def poison_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `empty`, `empty_like` and `new_empty` return NaN where the type has one."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        return poisoned

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
