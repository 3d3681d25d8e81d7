"""Pages from templates. What is filled in is text, whatever it holds, unless it was drawn here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from uturn import storage
from uturn.report.text import percent


def render(template: str, **content: Any) -> str:
    """The page ``template`` with ``content``. Strings are escaped; a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("uturn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:.4f}"
    return environment.get_template(template).render(content)


def data(content: Any) -> Markup:
    """JSON for a script element, in which nothing can end that element."""
    text = json.dumps(content)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def write(path: Path, content: str) -> Path:
    """Write a file that appears whole or not at all; return its path.

    Names of files need not be text: what of them is none is written as ``\\udc80``.
    """
    storage.write(path, content.encode(errors="backslashreplace"))
    return path
