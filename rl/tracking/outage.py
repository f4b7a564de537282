"""A tracking store that is out of reach whenever it is said to be, for runs that are broken on purpose."""

from collections.abc import Callable
from typing import Any

from samepath.rl.tracking.events import Event, EventStore, StoreUnavailableError


def never() -> bool:
    """The store is there."""
    return False


class Outage:
    """An `EventStore` before which `away` is asked."""

    def __init__(self, store: EventStore, away: Callable[[], bool]) -> None:
        self._store, self._away = store, away

    def send(self, event: Event) -> None:
        """See `EventStore.send`."""
        if self._away():
            raise StoreUnavailableError("it is away on purpose (faults of the recipe)")
        self._store.send(event)

    def state(self) -> dict[str, Any]:
        """See `EventStore.state`."""
        return self._store.state()
