"""Names and texts that every tracking store takes: MLflow refuses a whole batch for one name that it does not like."""

import hashlib
import re
from typing import Any

MAX_NAME_CHARS = 250
"""Longest name of a metric, parameter, tag, run or feedback that MLflow takes."""
DIGEST_CHARS = 8


def clean_name(text: str) -> str:
    """Return the nearest name that MLflow takes: ASCII letters, digits and `_-.:/ `, no empty or dotted path part."""
    parts = (re.sub(r"[^A-Za-z0-9_\-.: ]", "_", part).strip() for part in text.split("/"))
    cleaned = "/".join("_" * len(part) if set(part) == {"."} else part for part in parts if part)
    return cleaned[:MAX_NAME_CHARS].rstrip("/ ") or "unnamed"


def clean_file_name(text: str) -> str:
    """Return the nearest name for a file, in any store and on any disk."""
    return clean_name(text).replace("/", "_").replace(":", "_")


def clean_text(value: Any) -> Any:
    """Return JSON-able data with every text in it made storable: no half of a surrogate pair, no zero character.

    Example:
        clean_text({"a\\0": ["b\\ud800"]}) == {"a\\ufffd": ["b?"]}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {clean_text(key): clean_text(item) for key, item in value.items()}
    return [clean_text(item) for item in value] if isinstance(value, list) else value


class NameBook:
    """Clean names of one kind, which stay the same all along; two texts never share one."""

    def __init__(self) -> None:
        """Begin without any name."""
        self._by_text: dict[str, str] = {}
        self._taken: set[str] = set()

    def clean(self, text: str) -> str:
        """Return the text's name; where another text has it already, a digest of the text is added."""
        if text not in self._by_text:
            name, salted = clean_name(text), text
            while name in self._taken:
                digest = hashlib.sha256(salted.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]
                name, salted = f"{name[: MAX_NAME_CHARS - DIGEST_CHARS - 1]}_{digest}", salted + digest
            self._taken.add(name)
            self._by_text[text] = name
        return self._by_text[text]

    def changed(self) -> dict[str, str]:
        """Return the original text of each name that differs from it."""
        return {name: text for text, name in self._by_text.items() if name != text}
