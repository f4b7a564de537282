"""What the runner believes of a child's reply: known statuses, plain text, finite numbers. Anything else breaks the protocol."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samepath.rewards.score import Status

MAX_REPLY_BYTES = 1 << 20
"""Longest reply that is believed; a child that announces more no longer speaks the protocol."""
MAX_ENTRIES = 500
"""Most numbers that one part may return."""
MAX_NAME_CHARS = 200
"""Longest name of one of them, part included."""
MAX_DETAIL_CHARS = 4000
STATUSES: Mapping[str, Status] = {"ok": "ok", "error": "error", "memory": "memory", "invalid": "invalid"}
"""What a child may say of itself; `timeout` and `died` are for the parent to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One part's reply.

    Example:
        Reply(status="ok", values={"style/tone": 0.5})
    """

    status: Status
    """How the function went."""
    detail: str = ""
    """For people, at most MAX_DETAIL_CHARS characters."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name; empty unless `status` is `ok`."""


def read_object(payload: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a payload. Raises ValueError if there is none, or it is nested too deep to be read."""
    try:
        message = json.loads(payload)
    except RecursionError as error:
        raise ValueError("a reply must not be nested that deep") from error
    if not isinstance(message, dict):
        raise ValueError(f"a reply must be a JSON object; got {payload[:200]!r}")
    return message


def read_reply(payload: bytes) -> Reply:
    """Check a part's reply. Raises ValueError."""
    message = read_object(payload)
    status, detail, values = message.get("status"), message.get("detail", ""), message.get("values", {})
    if not isinstance(status, str) or status not in STATUSES or not isinstance(detail, str):
        raise ValueError(f"a reply must have a status of {', '.join(STATUSES)}; got {payload[:200]!r}")
    if not isinstance(values, dict) or bool(values) != (status == "ok") or len(values) > MAX_ENTRIES:
        raise ValueError(f"a reply must name 1 to {MAX_ENTRIES} numbers if it is ok; got {payload[:200]!r}")
    for name, value in values.items():
        if type(value) is not float or not math.isfinite(value) or len(name) > MAX_NAME_CHARS:
            raise ValueError(f"a reply's values must be finite floats with short names; got {payload[:200]!r}")
    return Reply(status=STATUSES[status], detail=detail[:MAX_DETAIL_CHARS], values=values)
