"""tolpack: the feed-forward memory of trained MemoryLLM models in small, memory-mappable files.

Importing it loads numpy and zstandard, never torch or click: `build`, which needs torch, is
imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tolpack.errors import (
    CheckpointError,
    ChecksumError,
    ConfigError,
    ExecutorError,
    FileAccessError,
    FormatError,
    OutOfMemoryError,
    TokenIdError,
    TolpackError,
    UnsupportedVersionError,
)
from tolpack.export.convert import convert
from tolpack.export.merge import merge
from tolpack.export.parts import join, split
from tolpack.pack import Pack
from tolpack.storage.locations import Location
from tolpack.version import __version__

__all__ = [
    "CheckpointError",
    "ChecksumError",
    "ConfigError",
    "ExecutorError",
    "FileAccessError",
    "FormatError",
    "OutOfMemoryError",
    "Pack",
    "TokenIdError",
    "TolpackError",
    "UnsupportedVersionError",
    "__version__",
    "build",
    "convert",
    "join",
    "merge",
    "open",
    "split",
]


def open(
    path: Location,
    io: str = "auto",
    *,
    cache: str | int | None = None,
    threads: int | None = None,
    checksums: bool = True,
    table: str | None = None,
    disk_cache: str | int | None = None,
    edits: Sequence[Location] = (),
) -> Pack:
    """Open a pack for reading rows.

    Parameters
    ----------
    path : str or Path
        The file: a path, or a URL such as ``s3://bucket/model.tolpack``.
    io, cache, threads, checksums, table, disk_cache, edits
        As of `Pack`, which also says what is raised.

    Returns
    -------
    Pack
        Close it with `Pack.close` or a ``with`` block.
    """
    return Pack(
        path,
        io,
        cache=cache,
        threads=threads,
        checksums=checksums,
        table=table,
        disk_cache=disk_cache,
        edits=edits,
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _unavailable_build(cause: ModuleNotFoundError) -> Any:
    """Return what stands for `build` where only packs can be read."""

    def build(*arguments: object, **settings: object) -> NoReturn:
        raise ConfigError(f"building needs {cause.name}: pip install 'tolpack[build]'") from cause

    return build


if TYPE_CHECKING:
    from tolpack.compress.build import build
else:

    def __getattr__(name: str) -> Any:
        if name != "build":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from tolpack.compress.build import build
        except ModuleNotFoundError as error:
            return _unavailable_build(error)
        return build
