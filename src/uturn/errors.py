"""The exception tree. Every message says what is wrong, names the thing, and says what to do."""

from __future__ import annotations


class UturnError(Exception):
    """Base of every error that uturn raises on purpose; the CLI prints it without a traceback."""


class SpecError(UturnError, ValueError):
    """A spec such as ``osnet_x0_25:weights=PATH`` cannot be read, or names something unknown."""


class ArgumentError(UturnError, ValueError):
    """An argument has the wrong shape, type or range."""


class DataError(UturnError):
    """A data set is incomplete, or a picture or file name in it cannot be read."""


class CheckpointError(UturnError):
    """A weights file is missing, unsafe, truncated, or does not fit the network."""


class RunFolderError(UturnError):
    """A run folder belongs to another configuration, or is incomplete or damaged."""


class MemoryLimitError(UturnError):
    """Memory does not suffice for a single picture."""


class BudgetError(UturnError):
    """An attack, or a picture on disk, has left the threat it was allowed."""


class BackendError(UturnError):
    """A system beside this program, such as a vector database, does not do what it was asked."""


class OracleError(UturnError):
    """A search system that is asked from outside fails, or answers what is no answer."""


class EngineError(UturnError):
    """An engine cannot be used, or some of its work failed; what was finished stays."""
