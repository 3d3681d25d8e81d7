"""Writes docs/licences.md: what uturn and each of its extras ask for, and under which licences.

.venv/bin/python docs/scripts/licences.py
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "licences.md"

HEAD = """\
# Licences

uturn is under the MIT licence and copies nobody's package into itself. What it asks
pip for is listed here, by what the packages say of themselves, and under it what these need in turn
on one Linux machine. Written by `docs/scripts/licences.py`, which `make audit` runs. Weights and
data sets have licences of their own, which `uturn data get NAME` shows first.

The core may only need packages that leave it MIT: none under GPL, LGPL or AGPL alone, and none that
does not say. A test holds that.
"""

_ELSEWHERE = {
    "adversarial-robustness-toolbox": "MIT",
    "atheris": "Apache-2.0",
    "omegaconf": "BSD",
    "open-metric-learning": "Apache-2.0",
    "pip-audit": "Apache-2.0",
}
"""What may be missing where this is run (they want other versions, or only Linux), by their wheels
of versions 1.20.1, 3.0.0, 2.4.0, 4.0.0 and 2.10.1."""

_SHORT = (
    ("Apache", "Apache-2.0"),
    ("BSD 3", "BSD-3-Clause"),
    ("3-Clause BSD", "BSD-3-Clause"),
    ("BSD", "BSD"),
    ("MIT", "MIT"),
    ("Mozilla Public License 2", "MPL-2.0"),
    ("Python Software Foundation", "PSF-2.0"),
    ("ISC", "ISC"),
)
"""What classifiers and free texts call licences, and their names in SPDX, the first that fits."""


def name_of(requirement: str) -> str:
    """The package that a requirement names, as pip compares names."""
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


def extras() -> dict[str, list[str]]:
    """What pyproject.toml asks for, for the core (``""``) and for each extra, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {extra: {name_of(text) for text in texts} for extra, texts in asked.items()}
    return {extra: sorted(names - {"uturn"}) for extra, names in found.items()}


def below(names: list[str]) -> list[str]:
    """Everything that ``names`` need on this machine, themselves left out; what is missing too."""
    rest, seen = [*names], set(names)
    while rest:
        try:
            asked = metadata.requires(rest.pop()) or []
        except metadata.PackageNotFoundError:
            continue
        for text in asked:
            marker = Requirement(text).marker
            if (marker is None or marker.evaluate({"extra": ""})) and name_of(text) not in seen:
                seen.add(name_of(text))
                rest.append(name_of(text))
    return sorted(seen - set(names))


def asked_of_core() -> list[str]:
    """All that the core needs, directly or not."""
    core = extras()[""]
    return sorted({*core, *below(core)})


def licence(name: str) -> str:
    """What an installed package says of its licence; ``not installed``, or ``not said``."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return _ELSEWHERE.get(name, "not installed")
    if told["License-Expression"]:
        return str(told["License-Expression"])
    texts = [c.split(" :: ")[-1] for c in told.get_all("Classifier") or () if "License ::" in c]
    texts += [(told["License"] or "").partition("\n")[0]]
    for text in texts:
        if "GPL" in text or "General Public" in text:
            return text
        for part, short in _SHORT:
            if part in text:
                return short
    return next(filter(None, texts), "not said")


def fits_core(text: str) -> bool:
    """Whether the core may need a package of this licence, as `licence` says it."""
    if text in ("not said", "not installed"):
        return False
    return all(
        any("GPL" not in choice and "General Public" not in choice for choice in part.split(" OR "))
        for part in text.replace("(", "").replace(")", "").split(" AND ")
    )


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for extra, names in sorted(extras().items()):
        parts += [f"## {f'Extra `{extra}`' if extra else 'Core'}", ""]
        parts += ["| asked for | licence |", "|---|---|"]
        parts += [f"| {name} | {_cell(licence(name))} |" for name in names]
        inner = [f"{name} ({_cell(licence(name))})" for name in below(names)]
        installed = [text for text in inner if "not installed" not in text]
        parts += ["", f"They need: {', '.join(installed) or 'nothing more'}.", ""]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "/")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
