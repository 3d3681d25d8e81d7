"""Writes docs/commands.md: every command with its options, in the words of its own --help.

.venv/bin/python docs/scripts/commands.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from html import escape
from pathlib import Path

import click

from uturn.cli import main

PAGE = Path(__file__).parent.parent / "commands.md"

HEAD = """\
# Commands

What `uturn COMMAND --help` says, written by `docs/scripts/commands.py`; a test holds that it is so.
ε is counted in levels of an 8-bit picture: what is 8/255 elsewhere is 8 here.

An error is one sentence that names the thing and the way out, and the exit status is then not 0.
"""


def page() -> str:
    """The whole page."""
    assert isinstance(main, click.Group)
    return "\n".join([HEAD, *_sections(main, "uturn")])


def _sections(group: click.Group, path: str) -> Iterator[str]:
    for name in sorted(group.commands):
        command, full = group.commands[name], f"{path} {name}"
        if isinstance(command, click.Group):
            yield from _sections(command, full)
        else:
            yield _section(command, full)


def _section(command: click.Command, full: str) -> str:
    context = click.Context(command, info_name=full)
    usage = " ".join(command.collect_usage_pieces(context))
    told = inspect.cleandoc(command.help or "")
    lines = [f"## `{full}`", "", told, "", "```text", f"{full} {usage}", "```", ""]
    rows = [f"| <code>{_cell(name)}</code> | {_cell(text)} |" for name, text in _options(command)]
    if rows:
        lines += ["| option | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    """How every option is spelled, and its help."""
    context = click.Context(command)
    for option in command.params:
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None:
            yield record


def _cell(text: str) -> str:
    """Text in a cell of a table, which a bar would end."""
    return escape(" ".join(text.split()), quote=False).replace("|", "&#124;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
