"""Packages that not everybody needs, imported when somebody asks for them."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from uturn.errors import SpecError


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package; where it is missing or broken, say what to install.

    Raises:
        SpecError: it cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a package tells its developers
            return importlib.import_module(package)
    except ImportError as error:
        raise SpecError(f"this needs {package} ({error}); pip install 'uturn[{extra}]'") from error
    except RuntimeError as error:  # torchvision's wheel against another build of torch
        raise SpecError(
            f"{package} does not work here ({error}); install builds of torch and torchvision "
            "that belong together (https://pytorch.org/get-started)"
        ) from error
