"""One process at a time drives a run: a lock that ends with its holder, however that ends."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from uturn.errors import RunFolderError

NAME = ".lock"
"""The file in a run folder that says who is at work there; it goes when they are done."""

_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_UNKNOWN = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}
"""What a file system says that knows no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep all others out who ask for the same, as long as this lasts.

    The system lets go of the lock when its holder ends, be it by a ``kill -9``. Where nobody may
    write, nobody is kept out; nor can they be on Windows, on file systems without locks and on
    storage under a URL, where whoever starts a run sees to it.

    Raises:
        RunFolderError: somebody else is there; the message says who.
    """
    if not isinstance(folder, Path):
        yield
        return
    file = _held(folder)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                (folder / NAME).unlink()  # while it is held: nobody else can have it yet
            file.close()


def _held(folder: Path) -> IO[str] | None:
    """The locked file, or None where there can be none."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / NAME).open("a+")
        except OSError as error:
            if error.errno in _UNWRITABLE:
                return None
            raise RunFolderError(
                f"cannot write {folder / NAME}: {error.strerror}; choose another --out, or make "
                "room there"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                file.close()
                return None
            file.seek(0)
            who = file.read() or "another process"
            file.close()
            raise RunFolderError(
                f"{who} is at work in {folder}; wait until it is done or stop it, or choose "
                "another --out"
            ) from None
        # Who held it before may have removed it between our opening and our locking it.
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / NAME).stat()):
                break
        file.close()
    with suppress(OSError):  # a full disk: the lock holds, only the name is lost
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
    return file
