"""Pages that need no server, from the templates beside this file: one style, no script, nothing from outside."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from samepath.model.durable_file import replace_file

FOLDER = Path(__file__).parent


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all; `values` are what the template asks for, and text among them is data. Raises OSError."""
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    replace_file(
        path,
        _environment().get_template(template).render(**values, style=_Markup(style), style_hash=f"sha256-{digest}"),
    )


class _Markup(str):
    """Text of this package that is not escaped."""

    def __html__(self) -> str:
        return self


@cache
def _environment() -> Environment:
    # Templates do not change while a process runs.
    return Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, auto_reload=False, trim_blocks=True
    )
