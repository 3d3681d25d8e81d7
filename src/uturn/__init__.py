"""uturn: how far can an image retrieval system be turned round by its query?

>>> import uturn
>>> victim = uturn.load_victim("glyph_net")
>>> query = uturn.load_data("glyphs").query
>>> images = victim.grid([query.read(0), query.read(1)])
>>> uturn.attacks.odfa(eps=8)(victim, images).images.shape
torch.Size([2, 3, 32, 32])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from uturn._version import __version__

if TYPE_CHECKING:
    from uturn import attacks
    from uturn.data.catalog import load_data
    from uturn.types import Perturbation, Scene
    from uturn.victims.load import load_victim
    from uturn.victims.preprocessing import Preprocessing
    from uturn.victims.victim import Victim

# Loaded on first use, so that `uturn --help` does not wait for torch.
_HOMES = {
    "attacks": "uturn.attacks",
    "load_data": "uturn.data.catalog",
    "load_victim": "uturn.victims.load",
    "Perturbation": "uturn.types",
    "Preprocessing": "uturn.victims.preprocessing",
    "Scene": "uturn.types",
    "Victim": "uturn.victims.victim",
}

__all__ = [
    "Perturbation",
    "Preprocessing",
    "Scene",
    "Victim",
    "__version__",
    "attacks",
    "load_data",
    "load_victim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'uturn' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    return module if module.__name__ == f"uturn.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
