"""Starting: what `uturn --help` and `import uturn` add to Python and to torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Case, Contender, Do, Done, Role, Target
from benchmarks.setting import Setting


def cases(setting: Setting) -> Iterator[Case]:
    """Child processes, from start to end."""
    yield starting(
        "uturn --help",
        (Target("uturn --help", 0.3, "over"),),
        ("bare Python", ("-c", "pass")),
        ("uturn --help", ("-m", "uturn", "--help")),
    )
    yield starting(
        "import uturn",
        (Target("import uturn", 1.1), Target("import uturn, all of it", 1.1)),
        ("import torch", ("-c", "import torch")),
        ("import uturn", ("-c", "import uturn")),
        # Loaded on first use, and it is used.
        (
            "import uturn, all of it",
            ("-c", "import uturn; [getattr(uturn, n) for n in dir(uturn)]"),
        ),
    )


def starting(
    name: str, targets: tuple[Target, ...], *commands: tuple[str, tuple[str, ...]]
) -> Case:
    """The first of ``commands`` is what there is without us."""

    def make(arguments: tuple[str, ...]) -> Callable[[], Do]:
        return lambda: lambda: _run(arguments)

    def role(number: int) -> Role:
        return "ours" if number else "limit"

    return Case(
        work="startup",
        name=name,
        title="A process of its own, from start to end, files in the disk cache",
        contenders=tuple(
            Contender(command, role(number), make(arguments))
            for number, (command, arguments) in enumerate(commands)
        ),
        reference=commands[0][0],
        targets=targets,
        least=5,
    )


def _run(arguments: tuple[str, ...]) -> Done:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return Done()
