"""tolpack: the feed-forward memory of trained MemoryLLM models in small, memory-mappable files.

Importing it loads numpy and zstandard, never torch or click; `build` imports torch when called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tolpack.errors import (
    CheckpointError,
    ChecksumError,
    ConfigError,
    FileAccessError,
    FormatError,
    OutOfMemoryError,
    TokenIdError,
    TolpackError,
    UnsupportedVersionError,
)
from tolpack.pack import Pack
from tolpack.version import __version__

if TYPE_CHECKING:
    from tolpack.compress.build import BuildResult
    from tolpack.export.convert import ConvertResult

__all__ = [
    "CheckpointError",
    "ChecksumError",
    "ConfigError",
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
    "open",
]


def open(
    path: str | Path,
    io: str = "auto",
    *,
    cache: str | int | None = None,
    threads: int | None = None,
    checksums: bool = True,
) -> Pack:
    """Open the pack at `path` for reading rows; see `Pack` for the settings and errors."""
    return Pack(path, io, cache=cache, threads=threads, checksums=checksums)


def build(checkpoint: str | Path, output: str | Path | None = None, **settings: Any) -> BuildResult:
    """Build a pack from a checkpoint or table; settings as of `tolpack.compress.build.build`."""
    try:
        from tolpack.compress.build import build as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"building needs {error.name}: pip install 'tolpack[build]'") from error
    return run(checkpoint, output, **settings)


def convert(source: str | Path, destination: str | Path, **settings: Any) -> ConvertResult:
    """Write a pack's rows as a plain table; settings as of `tolpack.export.convert.convert`."""
    from tolpack.export.convert import convert as run

    return run(source, destination, **settings)
