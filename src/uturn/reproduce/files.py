"""Small JSON and text files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uturn.errors import RunFolderError


def read_json(file: Path) -> dict[str, Any]:
    """An object from a file.

    Raises:
        RunFolderError: it is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise RunFolderError(f"{file} is damaged ({error}); remove it") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{file} is damaged: expected an object; remove it")
    return content


def write_whole(file: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
