"""Every error that tolpack raises on purpose.

One tree with one root, so that a caller can write ``except TolpackError``. Each leaf also
derives from the builtin that a caller who does not know tolpack would expect. A message
names the field, the value, the limit and the remedy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# How threads say that there is no memory for them.
_NO_MEMORY = ("can't allocate lock", "can't start new thread")


class TolpackError(Exception):
    """Root of everything that tolpack raises on purpose."""


class FormatError(TolpackError):
    """A pack does not follow the format (``formats/v1/SPEC.md``).

    Parameters
    ----------
    code : str
        Stable name of the violated rule, such as ``"bad-magic"``.
    place : str
        Where in the file: a field, a section or a byte offset.
    found, expected : object
        What was read and what the format asks for.
    sentence : str, optional
        The message, in place of one that is made of the others.
    """

    def __init__(
        self, code: str, place: str, found: object, expected: object, sentence: str | None = None
    ) -> None:
        self.code = code
        self.place = place
        self.found = found
        self.expected = expected
        made = f"{code}: {place}: found {_short(found)}, expected {_short(expected)}"
        super().__init__(made if sentence is None else sentence)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors of other processes come as what they were."""
        shown = self.code, self.place, _short(self.found), _short(self.expected)
        return type(self), shown, {"args": self.args}


class ChecksumError(FormatError):
    """Stored bytes do not match their checksum: the file is damaged or was overwritten."""


class UnsupportedVersionError(FormatError):
    """The file is newer than this reader, or needs a feature that it does not have."""


class FileAccessError(TolpackError, OSError):
    """A file could not be opened, read or written (missing, permission, disk full, I/O error)."""


class ExecutorError(TolpackError, RuntimeError):
    """Workers of a build were lost, or cannot be reached; what they made is kept."""


class OutOfMemoryError(TolpackError, MemoryError):
    """There is not enough memory for what was asked."""


class TokenIdError(TolpackError, IndexError):
    """Token ids are out of range or not a one-dimensional array of integers."""


class ConfigError(TolpackError, ValueError):
    """A setting is invalid or contradicts another."""


class CheckpointError(TolpackError, ValueError):
    """A checkpoint or table cannot be used as it is."""


def memory_errors(remedy: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a decorator: a function that runs out of memory raises `OutOfMemoryError`."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
            try:
                return function(*arguments, **named)
            except OutOfMemoryError:
                raise
            except (MemoryError, SystemError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and str(error) not in _NO_MEMORY:
                    raise
                # numpy says so by a SystemError where it says nothing more.
                raise OutOfMemoryError(f"not enough memory: {remedy}") from error

        return call

    return decorate


def printable(text: str) -> str:
    r"""Return `text` with everything escaped that a terminal would obey or not show.

    Control characters, line ends, escape sequences, marks that turn the direction of writing, and
    halves of surrogate pairs become ``\x1b``, ``\n``, ``\u202e``, ``\udc80``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _short(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown}… ({len(text)} characters)"
