"""What no parser may do while it reads foreign bytes, and how it is caught.

An audit hook of Python sees files opened or changed, processes, sockets, pickles and code before
they are; an alarm ends what takes too long, in the processor's time; memory may grow by so much and
no more. Native code is seen where it goes through Python's functions, ends in a signal, or eats
memory or time.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import Any, final

import uturn
from fuzz.target import Target


class Breach(BaseException):
    """A parser did what no parser may. It is no `Exception`, so that none of them catches it."""


@final
class _Watch:
    """What is allowed at present; Python keeps a hook for ever, so it looks here first."""

    folder: str | None = None
    """The one place for files; None: nobody is watched."""
    breach: Breach | None = None
    hooked = False


_OWN = tuple(
    os.path.realpath(path)
    for path in {
        *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(uturn.__file__).parent),
        str(Path(__file__).parent),
        *sys.path,
        *("/usr/lib", "/usr/share", "/proc/self", "/sys", "/dev/null", "/dev/urandom"),
    }
    if path and os.path.realpath(path) != "/"
)
"""What the interpreter and the libraries read of themselves: modules, fonts, templates."""

_CHANGES = {
    *("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.truncate", "os.chmod", "os.chown"),
    *("os.utime", "os.setxattr", "os.removexattr", "os.mkfifo", "os.chflags", "shutil.rmtree"),
    *("shutil.copyfile", "shutil.move", "os.listdir", "os.scandir", "tempfile.mkstemp"),
}
"""Events whose arguments are places."""

_NEVER = (
    *("subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "pty."),
    *("os.symlink", "os.link", "os.putenv", "os.kill", "socket.", "urllib.", "http.client."),
    *("ftplib.", "smtplib.", "pickle.find_class", "ctypes.", "code.__new__", "webbrowser."),
    *("syslog.", "signal.", "mmap."),
)
"""Events that never belong to reading."""

_SOCKETS_OF_OURS = ("socket.__new__", "urllib.Request", "http.client.connect", "http.client.send")
"""Said where a target brings its own end of a connection; what reaches a network says more."""


_WRITTEN = ("typing.py", "dataclasses.py", "collections/__init__.py")
"""Modules of the standard library that run code of their own making, from annotations of ours."""


def _within(place: str, folder: str) -> bool:
    return place == folder or place.startswith(f"{folder.rstrip('/')}/")


def _inside(path: Any, folder: str) -> bool:
    """Whether a path leads into ``folder``. No link there leads out: none may be made."""
    text = os.fsdecode(path)
    if text.startswith(f"{folder}/") and ".." not in text:
        return True  # most are, and the long way is long
    return _within(os.path.realpath(text), folder)


def _heard(event: str, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with an event; None if nothing is."""
    folder = _Watch.folder
    assert folder is not None
    if event == "open":
        path, mode, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None  # a descriptor that is open already
        if _inside(path, folder):
            return None
        place = os.path.realpath(os.fsdecode(path))
        wrote = bool(set("wax+") & set(mode or "")) or bool(
            (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if place == "/dev/null":
            return None
        if not wrote and any(_within(place, own) for own in _OWN):
            return None
        return f"{'writes' if wrote else 'reads'} {place}"
    if event in _CHANGES:
        for argument in arguments:
            if isinstance(argument, (str, bytes, os.PathLike)) and not _inside(argument, folder):
                place = os.path.realpath(os.fsdecode(argument))
                looks = event in ("os.listdir", "os.scandir")
                if not (looks and any(_within(place, own) for own in _OWN)):
                    return f"{event} {place}"
        return None
    if event == "exec":
        code = arguments[0]
        name = code.co_filename if isinstance(code, CodeType) else "?"
        file = os.path.realpath(name)
        sound = name.startswith("<frozen") or any(_within(file, own) for own in _OWN)
        if name == "<string>":
            by = sys._getframe(2).f_code.co_filename
            sound = by.endswith(_WRITTEN) and any(_within(by, own) for own in _OWN)
        return None if sound else f"runs code of {name}"
    if event == "code.__new__" and any(_within(str(arguments[1]), own) for own in _OWN):
        return None  # Jinja writes the traceback of a template that failed
    if event.startswith(_NEVER) and event not in _SOCKETS_OF_OURS:
        return f"{event} {str(arguments)[:200]}"
    return None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.folder is None:
        return
    try:
        wrong = _heard(event, arguments)
    except ValueError:  # a path with a null byte, which open refuses next
        return
    if wrong is not None:
        _Watch.breach = _Watch.breach or Breach(wrong)
        raise _Watch.breach


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """While this lasts, nothing leaves ``folder``.

    Raises:
        Breach: something tried, even if it swallowed the refusal.
    """
    if not _Watch.hooked:
        sys.addaudithook(_hook)
        _Watch.hooked = True
    _Watch.breach, _Watch.folder = None, os.path.realpath(folder)
    try:
        yield
    except Exception as error:
        if _Watch.breach is not None:
            raise _Watch.breach from error
        raise
    finally:
        _Watch.folder = None
    if _Watch.breach is not None:
        raise _Watch.breach


def _too_long(number: int, frame: object) -> None:
    raise Breach("takes too long")


@contextmanager
def _bounded(spare: int) -> Iterator[None]:
    """Let the process grow by no more than ``spare`` bytes, and let alarms be heard."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, hard))
    before = signal.signal(signal.SIGPROF, _too_long)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak() -> int:
    """The most bytes of memory that this process has ever used; what it only claims is not."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@final
class Room:
    """A place to run one input after another in, under all guards."""

    def __init__(self, target: Target, scratch: Path) -> None:
        self.target = target
        self.folder = scratch / "inside"
        self.folder.mkdir(parents=True)
        target.parse(next(iter(target.seeds())), self.folder)
        self._empty()

    def __call__(self, data: bytes) -> str:
        """Run one input; return what became of it: ``read`` or the refusal's class.

        Raises:
            Breach: it hangs, eats memory, or leaves its place. Any other exception: the parser
                has failed.
        """
        before = _peak()
        signal.setitimer(signal.ITIMER_PROF, self.target.seconds)
        try:
            with _watched(self.folder):
                self.target.parse(data, self.folder)
            became = "read"
        except self.target.refusals as error:
            became = type(error).__name__
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._empty()
        if _peak() - before > self.target.memory:
            raise Breach(f"takes more than {self.target.memory >> 20} MiB")
        return became

    def _empty(self) -> None:
        """Remove what was written; where nothing was, this costs a listing."""
        for entry in os.scandir(self.folder):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108 — called a million times


def _remove(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108
    os.rmdir(folder)  # noqa: PTH106


@contextmanager
def room(target: Target) -> Iterator[Room]:
    """A `Room` in a folder that is removed at the end.

    What is only claimed of memory may be four times what may be used: a claim that the system
    refuses is harmless, and one that it grants is not known to be until it is used.
    """
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="uturn-fuzz-", dir=base) as scratch:
        made = Room(target, Path(scratch))
        with suppress(OSError):  # what was used before is no measure; not every system lets it go
            Path("/proc/self/clear_refs").write_text("5")
        with _bounded(4 * target.memory):
            yield made
