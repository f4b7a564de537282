"""Names of metrics that a text of the user's is part of."""

import re


def metric_name(part: str) -> str:
    """The part of a metric's name that a free text becomes: letters, digits, `_`, `-` and `.`, everything else `_`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", part)
