"""The parts of one event on their way to MLflow, which refuses a whole call for one part that it does not like.

Imports mlflow: only `samepath.rl.tracking.mlflow_store` imports this file.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import requests
import sqlalchemy.exc
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from samepath.rl.tracking.events import EventRefusedError

T = TypeVar("T")

PARAMS_PER_CALL = 100
CHARS_PER_CALL = 50_000
"""Text of the parameters of one call: MLflow takes a request of 10⁶ bytes, and a character may become 12 of them."""
AWAY = (OSError, sqlalchemy.exc.SQLAlchemyError, requests.RequestException)
"""What is raised when the store does not answer."""


class Parts:
    """Sends the parts of one event and notes which were refused."""

    def __init__(self) -> None:
        """Begin with nothing refused."""
        self._refusals: list[str] = []

    @property
    def num_refused(self) -> int:
        """Parts that the store refused so far."""
        return len(self._refusals)

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Send one part; one that the store will never take is noted, and loses no other part.

        Raises:
            MlflowException: an error that may pass.
            OSError, sqlalchemy.exc.SQLAlchemyError, requests.RequestException: the store does not answer.
        """
        try:
            call()
        except MlflowException as error:
            # 400 means invalid content. Everything else (no answer, no permission, no such run) may be put right.
            if error.get_http_status_code() != 400:
                raise
            self._refusals.append(f"{what}: {first_line(error)}")
        except AWAY:
            raise
        except (NotImplementedError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            # A server too old for traces, or a slip of MLflow's client on this event: the thread must outlive it.
            self._refusals.append(f"{what}: {first_line(error)}")

    def send_all(self, items: Sequence[T], call: Callable[[Sequence[T]], object]) -> None:
        """Send items together; where the store refuses them so, one by one."""
        before = len(self._refusals)
        self.send("all", lambda: call(items))
        if len(self._refusals) > before and len(items) > 1:
            del self._refusals[before:]
            for item in items:
                self.send(str(getattr(item, "key", type(item).__name__)), functools.partial(call, [item]))

    def raise_refused(self) -> None:
        """Raise EventRefusedError if a part was refused, with the first one's reason."""
        if self._refusals:
            raise EventRefusedError(f"{len(self._refusals)} refused, first {self._refusals[0]}")


def batches(params: Sequence[Param]) -> Iterator[list[Param]]:
    """Cut parameters into calls that MLflow takes: by their number, and by the length of their text."""
    batch: list[Param] = []
    num_chars = 0
    for param in params:
        length = len(param.key) + len(param.value)
        if batch and (len(batch) == PARAMS_PER_CALL or num_chars + length > CHARS_PER_CALL):
            yield batch
            batch, num_chars = [], 0
        batch.append(param)
        num_chars += length
    if batch:
        yield batch


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
