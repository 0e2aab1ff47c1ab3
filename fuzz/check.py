"""What must hold for any bytes at all, given to tolpack as a file."""

from __future__ import annotations

import contextlib
import os
import runpy
from pathlib import Path

import numpy as np

import tolpack
from tolpack.errors import TolpackError

MODES = ("pread", "mmap", "memory")
DECODER = runpy.run_path(str(Path(__file__).parents[1] / "formats" / "v1" / "decode.py"))["Pack"]
# Values of all rows looked up together, and ids: enough to meet every chunk of a small pack.
_MAX_VALUES = 1 << 18
_MAX_IDS = 24


class Broken(AssertionError):
    """A promise that the reader did not keep."""


class Subject:
    """A file that takes any content, and the checks of it.

    Parameters
    ----------
    path : Path
        Where the file is; created, and removed by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def close(self) -> None:
        """Remove the file."""
        os.close(self._fd)
        self._path.unlink()

    def check(self, data: bytes) -> str:
        """Read `data` as a pack; returns ``"refused"``, ``"damaged"`` or ``"good"``.

        Raises
        ------
        Broken
            `verify` finds nothing, but rows cannot be read, or are not those of ``decode.py``.
        Exception
            Anything that is no `TolpackError`.
        """
        os.ftruncate(self._fd, len(data))
        os.pwrite(self._fd, data, 0)
        try:
            pack = tolpack.open(self._path, io=MODES[len(data) % 3])
        except TolpackError:
            return "refused"
        with pack:
            ids = _some_ids(pack)
            rows, error = None, None
            try:
                rows = pack.rows(ids)
            except TolpackError as caught:
                error = caught
            with contextlib.suppress(TolpackError):
                pack.extents(ids)
            if pack.verify():
                return "damaged"
            if rows is None:
                raise Broken(f"verify finds nothing, but a lookup fails: {error}")
        self._without_checksums(ids, rows)
        _compare(data, ids, rows)
        return "good"

    def _without_checksums(self, ids: list[int], rows: np.ndarray) -> None:
        with tolpack.open(self._path, checksums=False) as pack:
            if pack.rows(ids).tobytes() != rows.tobytes():
                raise Broken("rows differ without checksums")


def _some_ids(pack: tolpack.Pack) -> list[int]:
    """Token ids spread over the table; a wide row leaves fewer."""
    values = pack.num_layers * pack.hidden_size
    count = max(1, min(_MAX_IDS, _MAX_VALUES // values, pack.vocab_size))
    return [n * (pack.vocab_size - 1) // max(1, count - 1) for n in range(count)]


def _compare(data: bytes, ids: list[int], rows: np.ndarray) -> None:
    """Raise `Broken` unless ``decode.py`` reads the same rows."""
    with np.errstate(all="ignore"):
        decoder = DECODER(data)
        for token, row in zip(ids, rows):
            expected = decoder.row(token)
            if any(field.get("basis") is not None for field in decoder.kept):
                scale = np.abs(np.where(np.isfinite(expected), expected, 0)).max()
                finite = np.isfinite(row) & np.isfinite(expected)
                difference = np.abs(row - expected, where=finite, out=np.zeros_like(row))
                if scale < 1e30 and (difference > 1e-5 * scale).any():
                    raise Broken(f"token {token}: rows differ from decode.py's")
            elif not np.array_equal(row, expected, equal_nan=True):
                raise Broken(f"token {token}: rows differ from decode.py's")
