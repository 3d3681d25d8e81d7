"""Specs: the small strings that name a victim, a data set or an attack on the command line.

``name``, ``name:ARGUMENT``, ``name:key=value,key=value`` or ``name:ARGUMENT,key=value``. Inside
square brackets nothing separates, so that a spec can be part of another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from uturn.errors import SpecError

_OPTION = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: ``name``, at most one positional ``argument``, and keyword ``options``."""

    name: str
    argument: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a spec.

        >>> Spec.parse("osnet_x0_25:weights=net.pth")
        Spec(name='osnet_x0_25', argument=None, options={'weights': 'net.pth'})
        >>> Spec.parse("market1501:/data/market").argument
        '/data/market'
        """
        name, colon, rest = text.strip().partition(":")
        name = name.rstrip()
        if not name:
            raise SpecError(f"the spec {text!r} has no name; write NAME or NAME:key=value")
        argument: str | None = None
        options: dict[str, str] = {}
        last: str | None = None
        for position, piece in enumerate(separated(rest, ",") if colon else []):
            option = _OPTION.fullmatch(piece)
            if option:
                last = option[1]
                if last in options:
                    raise SpecError(f"{text!r} gives {last!r} twice; give it once")
                options[last] = option[2]
            elif position == 0:
                argument = piece or None
            elif last is None:  # a comma inside a path
                argument = f"{argument},{piece}"
            else:
                options[last] += f",{piece}"
        return cls(name, argument, options)

    def __str__(self) -> str:
        pieces = [] if self.argument is None else [self.argument]
        pieces += [f"{key}={value}" for key, value in self.options.items()]
        return f"{self.name}:{','.join(pieces)}" if pieces else self.name


def split_list(text: str) -> list[str]:
    """Split a comma-separated list of specs; ``key=value`` pieces stay with their spec.

    >>> split_list("fast,odfa:steps=20,start=clean,basic")
    ['fast', 'odfa:steps=20,start=clean', 'basic']
    """
    specs: list[str] = []
    for piece in separated(text, ","):
        if specs and _OPTION.fullmatch(piece) and ":" in specs[-1]:
            specs[-1] += f",{piece}"
        elif piece.strip():
            specs.append(piece.strip())
    return [bare(spec) for spec in specs]


def separated(text: str, separator: str) -> list[str]:
    """Split at a separator of one character that is outside square brackets.

    Brackets that do not match are text, as they may be in a path.

    >>> separated("[net:flip=yes,power=2]+other", "+")
    ['[net:flip=yes,power=2]', 'other']
    """
    depths = _depths(text)
    if depths is None:
        return text.split(separator)
    pieces = [""]
    for character, depth in zip(text, depths, strict=True):
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def bare(text: str) -> str:
    """A spec without the brackets around the whole of it.

    >>> bare("[net:weights=a,b]"), bare("ensemble:[net]+[other]")
    ('net:weights=a,b', 'ensemble:[net]+[other]')
    """
    around = text.startswith("[") and text.endswith("]")
    return text[1:-1] if around and _depths(text[1:-1]) is not None else text


def _depths(text: str) -> list[int] | None:
    """How many brackets every character is inside of; None if they do not match."""
    depths, depth = [], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        depths.append(depth)
    return None if depth or min(depths, default=0) < 0 else depths


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` if it is known; otherwise raise `SpecError` with the valid names."""
    names = sorted(known)
    if name not in names:
        raise SpecError(f"unknown {kind} {name!r}; known: {', '.join(names)}")
    return name


def call(
    kind: str,
    factory: Callable[..., Any],
    spec: Spec,
    *,
    elsewhere: Iterable[str] = (),
    **given: Any,
) -> Any:
    """Call ``factory`` with the spec's argument and options, converted by its annotations.

    An option the factory does not take is an error that lists the ones it takes.
    ``given`` are arguments that a spec may not set; ``elsewhere`` names options of the same
    spec that somebody else has taken off already, so that the list is whole.
    """
    try:
        hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):  # somebody's own function, annotated for type checkers only
        hints = {}
    every = inspect.signature(factory).parameters.values()
    anything = any(each.kind is each.VAR_KEYWORD for each in every)
    parameters = [
        each.name
        for each in every
        if each.name not in given and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    arguments: dict[str, Any] = {}
    if spec.argument is not None:
        if not parameters:
            raise SpecError(f"{kind} {spec.name!r} takes no argument, got {spec.argument!r}")
        arguments[parameters[0]] = spec.argument
    for key, value in spec.options.items():
        if key not in parameters and not anything:
            valid = ", ".join([*parameters, *elsewhere]) or "none"
            raise SpecError(
                f"{kind} {spec.name!r} has no option {key!r}; valid options: {valid} "
                "(write a path that has = in it as ./a=b)"
            )
        if key in arguments:
            raise SpecError(f"{kind} {spec.name!r} gets {key!r} twice in {str(spec)!r}")
        arguments[key] = value
    for key, value in arguments.items():
        arguments[key] = convert(kind, spec, key, value, hints.get(key, str))
    missing = [
        name
        for name in parameters
        if name not in arguments
        and inspect.signature(factory).parameters[name].default is inspect.Parameter.empty
    ]
    if missing:
        example = ",".join(f"{name}=…" for name in missing)
        raise SpecError(
            f"{kind} {spec.name!r} needs {', '.join(missing)}; write {spec.name}:{example}"
        )
    return factory(**arguments, **given)


_EXAMPLES = {2: "256x128", 3: "0.5+0.5+0.5"}


def convert(kind: str, spec: Spec, key: str, text: str, hint: Any) -> Any:
    """Read one option's text as its annotation says: Literal, bool, number, tuple or text.

    A tuple's numbers stand between ``x`` or ``+``: ``size=256x128``, ``mean=0.5+0.5+0.5``.
    """
    kinds = [hint, *get_args(hint)]
    for names in (one for one in kinds if get_origin(one) is Literal):
        if text not in get_args(names):
            valid = ", ".join(map(str, get_args(names)))
            raise SpecError(f"{kind} {spec.name!r}: {key} must be one of {valid}, got {text!r}")
        return text
    for pieces in (one for one in kinds if get_origin(one) is tuple):
        parts, wanted = re.split("[x+]", text), get_args(pieces)
        wanted = wanted[:1] * len(parts) if wanted[-1] is ... else wanted
        if len(parts) != len(wanted):
            raise SpecError(
                f"{kind} {spec.name!r}: {key} takes {len(wanted)} numbers, such as "
                f"{_EXAMPLES.get(len(wanted), '1+1')}, got {text!r}"
            )
        return tuple(
            convert(kind, spec, key, part, one) for part, one in zip(parts, wanted, strict=True)
        )
    if bool in kinds:
        if text not in ("yes", "no"):
            raise SpecError(f"{kind} {spec.name!r}: {key} must be yes or no, got {text!r}")
        return text == "yes"
    for plain in (int, float):
        if plain in kinds:
            try:
                return plain(text)
            except ValueError:
                raise SpecError(
                    f"{kind} {spec.name!r}: {key} must be a number, got {text!r}"
                ) from None
    return text
