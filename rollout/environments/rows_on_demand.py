"""Rows that are made when they are asked for, where there are too many to make them all."""

from collections.abc import Callable, Sequence
from typing import overload

from samepath.rollout.environments.protocol import EnvironmentRow


class RowsOnDemand(Sequence[EnvironmentRow]):
    """`size` rows, of which `make` makes any by its index from 0, always the same."""

    def __init__(self, size: int, make: Callable[[int], EnvironmentRow]) -> None:
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> EnvironmentRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EnvironmentRow]: ...
    def __getitem__(self, index: int | slice) -> EnvironmentRow | list[EnvironmentRow]:
        """Raises IndexError outside 0 … size − 1."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 … {len(self) - 1}; got {index}")
        return self._make(index)
