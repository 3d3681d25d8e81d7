"""The house: who may import whom, and which names are public."""

from __future__ import annotations

import ast
from pathlib import Path

import uturn

SOURCE = Path(uturn.__file__).parent
FLOORS = [
    {
        "types",
        "errors",
        "rng",
        "specs",
        "parallel",
        "progress",
        "report",
        "_version",
        "memory",
        "optional",
        "portions",
        "storage",
    },
    {"victims", "data"},
    {"attacks", "retrieval"},
    {"train", "sweep", "gallery", "doctor", "guard", "verify"},
    {"reproduce", "explorer"},
    {"cli", "__main__", "__init__"},
]
"""From the ground up. A room imports from its own floor and from those below."""


def rooms() -> dict[Path, set[str]]:
    """Which rooms every file imports, at run time."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path} imports relatively"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            used |= {name.split(".")[1] for name in names if name.startswith("uturn.")}
        found[path] = used
    return found


def floor(room: str) -> int:
    return next(i for i, level in enumerate(FLOORS) if room in level)


def test_every_room_is_on_a_floor_and_imports_only_downwards() -> None:
    for path, used in rooms().items():
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue  # the one face of the package; it loads lazily
        for other in used:
            assert floor(other) <= floor(room), f"{path} in {room} imports {other}"


def test_siblings_flow_one_way() -> None:
    """Data flows to victims, and attacks know nothing of retrieval, nor the reverse.

    A guard knows neither attacks nor runs but their files: a service that has one needs neither.
    """
    for path, used in rooms().items():
        room = path.relative_to(SOURCE).parts[0]
        forbidden = {
            "data": {"victims"},
            "attacks": {"retrieval"},
            "retrieval": {"attacks"},
            "guard": {"attacks", "sweep", "train", "doctor"},
            "report": {"specs", "parallel", "progress", "rng", "types"},
        }.get(room, set())
        assert not used & forbidden, f"{path} imports {used & forbidden}"


def test_the_report_imports_no_torch() -> None:
    for path in (SOURCE / "report").rglob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("without torch", "").replace(
            "No torch", ""
        ), path


def test_every_file_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("*.py"):
        summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert summary, path


def test_public_names() -> None:
    assert sorted(uturn.__all__) == [
        "Perturbation",
        "Preprocessing",
        "Scene",
        "Victim",
        "__version__",
        "attacks",
        "load_data",
        "load_victim",
    ]
    for name in uturn.__all__:
        assert getattr(uturn, name)
    assert sorted(uturn.attacks.__all__) == sorted(
        ["PRESETS", "Attack", "load_attack", *uturn.attacks.PRESETS]
    )


def test_presets_are_short() -> None:
    """A preset is at most nine lines, as the design has it."""
    tree = ast.parse((SOURCE / "attacks" / "presets.py").read_text(encoding="utf-8"))
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in uturn.attacks.PRESETS
    }
    assert set(lengths) == set(uturn.attacks.PRESETS)
    assert max(lengths.values()) <= 9, lengths
