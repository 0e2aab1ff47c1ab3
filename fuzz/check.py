"""What must hold for any bytes at all, given to tolpack as a file."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tolpack
from tolpack.errors import TolpackError
from tolpack.pack import open_first_table

MODES = ("pread", "mmap", "memory")
sys.path.insert(0, str(Path(__file__).parents[1] / "formats" / "v1"))

from decode import Pack as Decoder  # noqa: E402 (found by the line above)

# Values of all rows looked up together, and ids: enough to meet every chunk of a small pack.
_MAX_VALUES = 1 << 18
_MAX_IDS = 24
# Tables of a pack that are looked at.
_MAX_TABLES = 8


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
            Anything that is not a `TolpackError`.
        """
        os.ftruncate(self._fd, len(data))
        os.pwrite(self._fd, data, 0)
        try:
            with open_first_table(self._path) as pack:
                tables = pack.tables[:_MAX_TABLES]
                self._open = type(pack)  # edits alone are not a pack to `tolpack.open`
        except TolpackError:
            return "refused"
        verdicts = {self._check_table(data, table) for table in tables}
        if len(verdicts) > 1:
            raise Broken("verify finds something only in the packs of some tables")
        return verdicts.pop()

    def _check_table(self, data: bytes, name: str) -> str:
        with self._open(self._path, io=MODES[len(data) % 3], table=name) as pack:
            ids, number = _some_ids(pack), pack.container.number
            rows, row_ids, error = None, None, None
            try:
                rows = _rows(pack, ids)
                row_ids = _row_ids(pack)
            except TolpackError as caught:
                error = caught
            with contextlib.suppress(TolpackError):
                pack.extents(ids)
            if pack.verify():
                return "damaged"
            if rows is None or error is not None:
                raise Broken(f"verify finds nothing, but a lookup fails: {error}")
        self._without_checksums(ids, rows, name)
        _compare(Decoder(data, number), ids, rows, row_ids)
        return "good"

    def _without_checksums(self, ids: list[int], rows: np.ndarray, name: str) -> None:
        with self._open(self._path, checksums=False, table=name) as pack:
            if _rows(pack, ids).tobytes() != rows.tobytes():
                raise Broken("rows differ without checksums")


def _some_ids(pack: tolpack.Pack) -> list[int]:
    """Token ids spread over the table; a wide row leaves fewer."""
    values = sum(pack.widths)
    count = max(1, min(_MAX_IDS, _MAX_VALUES // values, pack.vocab_size))
    return [n * (pack.vocab_size - 1) // max(1, count - 1) for n in range(count)]


def _rows(pack: tolpack.Pack, ids: list[int]) -> np.ndarray:
    """Rows as (ids, values): fields one after the other, as their widths may differ."""
    if len(set(pack.widths)) == 1:
        return pack.rows(ids).reshape(len(ids), -1)
    fields = [pack.rows(ids, layers=[n])[:, 0] for n in range(pack.num_layers)]
    return np.concatenate(fields, axis=1)


def _row_ids(pack: tolpack.Pack) -> np.ndarray | None:
    """Rows of a text in a table of n-grams, after those of its first ids; else ``None``."""
    ngrams = pack.ngrams
    if ngrams is None:
        return None
    ids = _text(None if ngrams.compressed_ids is None else len(ngrams.compressed_ids))
    rows = pack.row_ids(ids)
    if rows.min() < 0 or rows.max() >= pack.vocab_size:
        raise Broken("an n-gram has a row that the table has not")
    if not np.array_equal(pack.row_ids(ids[5:], ids[:5]), rows[5:]):
        raise Broken("a text in two pieces has other rows")
    return rows


def _text(vocab_size: int | None) -> list[int]:
    return [n * n % min(vocab_size or 97, 97) for n in range(12)]


def _compare(decoder: Any, ids: list[int], rows: np.ndarray, row_ids: np.ndarray | None) -> None:
    """Raise `Broken` unless ``decode.py`` reads the same rows."""
    if row_ids is not None:
        number = decoder.table["ngrams"].get("id_map")
        vocab = None if number is None else decoder.sections[number]["shape"][0]
        if decoder.row_ids(_text(vocab)) != row_ids.tolist():
            raise Broken("rows of a text differ from decode.py's")
    with np.errstate(all="ignore"):
        for token, row in zip(ids, rows):
            expected = decoder.row(token).ravel()
            if any(field.get("basis") is not None for field in decoder.kept):
                scale = np.abs(np.where(np.isfinite(expected), expected, 0)).max()
                finite = np.isfinite(row) & np.isfinite(expected)
                difference = np.abs(row - expected, where=finite, out=np.zeros_like(row))
                if scale < 1e30 and (difference > 1e-5 * scale).any():
                    raise Broken(f"token {token}: rows differ from decode.py's")
            elif not np.array_equal(row, expected, equal_nan=True):
                raise Broken(f"token {token}: rows differ from decode.py's")
