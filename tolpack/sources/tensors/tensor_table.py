"""Tables that are tensors of a checkpoint: fields are columns of their rows, read as stored.

A tensor is never loaded whole. Rows are read when they are asked for, and every byte is read once
by `check`, which finds NaN and infinity on the way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.codecs.registry import CODECS
from tolpack.errors import CheckpointError
from tolpack.ngrams import NGramHash
from tolpack.runtime.array_types import Bytes
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.identity import FileStates, rows_digest
from tolpack.sources.protocol import (
    FLOAT_CODECS,
    FieldRows,
    SourceField,
    StoredRows,
    TransformersFolder,
    check_finite,
)
from tolpack.sources.tensors.finite_bytes import bad_rows
from tolpack.sources.tensors.joined_table import JoinedTable
from tolpack.sources.tensors.last_rows import LastRows
from tolpack.sources.tensors.tensor_rows import JoinedRows


@dataclass(frozen=True, slots=True)
class Columns:
    """The bytes from ``first`` on, ``size`` many, of every row of ``rows``."""

    rows: JoinedRows
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorField:
    """A field, and the columns of its codes and scales, as ``field.part`` says.

    ``scales`` is ``None`` where the codec has none in the rows. Scales in bfloat16 or float16 are
    widened to float32, which the codec has.
    """

    field: SourceField
    codes: Columns
    scales: Columns | None = None

    @property
    def columns(self) -> tuple[Columns, ...]:
        """Both, or the codes."""
        return (self.codes,) if self.scales is None else (self.codes, self.scales)

    @property
    def stored_row_bytes(self) -> tuple[int, int]:
        """Bytes of the codes and of the scales in a row of the files."""
        part, scales = self.field.part, self.scales
        if scales is None:
            return part.code_bytes, 0
        count = part.scale_bytes // CODECS[part.codec].scale_bytes
        return part.code_bytes, count * DTYPE_BYTES.get(scales.rows.dtype, 1)


class TensorTable(JoinedTable):
    """A table whose rows are stored in a checkpoint.

    Parameters
    ----------
    name : str
        Name of the table in a pack.
    family : str
        The family of models, for messages.
    files : FileStates
        The files, as they were when opened.
    fields : sequence of TensorField
        One at least, all with the same number of rows.
    ngrams : NGramHash, optional
        How token ids become row numbers.
    model : TransformersFolder, optional
        The folder from which transformers can run the model.
    fields_compensate : bool
        See `TableSource.fields_compensate`.

    Raises
    ------
    CheckpointError
        A pack cannot hold the table, or the rows of fields are not equally many, or a field is
        wider than the rows of its tensor.
    """

    def __init__(
        self,
        name: str,
        family: str,
        files: FileStates,
        fields: Sequence[TensorField],
        ngrams: NGramHash | None = None,
        model: TransformersFolder | None = None,
        *,
        fields_compensate: bool = False,
    ) -> None:
        columns = [columns for one in fields for columns in one.columns]
        stored = dict.fromkeys(one.rows for one in columns)
        super().__init__(name, family, [one.field for one in fields], tuple(stored), files)
        self.ngrams = ngrams
        self.transformers_model, self.fields_compensate = model, fields_compensate
        self.tensor_fields = tuple(fields)
        self._last = {rows: LastRows(rows) for rows in self.stored}
        self._digests: dict[JoinedRows, bytes] = {}
        self._check_fields()

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        stored, part = self.stored_rows(field), self.fields[field].part
        layer = self.fields[field].layer

        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            values = decode_values(*stored(ids), part)
            check_finite(values, ids, layer)
            return values

        return rows

    def stored_rows(self, field: int) -> StoredRows:
        """See `TableSource.stored_rows`."""
        codes, scales = self.tensor_fields[field].codes, self.tensor_fields[field].scales

        def rows(ids: NDArray[np.int64]) -> tuple[Bytes, Bytes]:
            if scales is None:
                return np.empty((len(ids), 0), np.uint8), self._take(codes, ids)
            own = _float32_scales(self._take(scales, ids), scales.rows.dtype)
            return own, self._take(codes, ids)

        return rows

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`; raises `CheckpointError` also if a file is not the one whose
        SHA-256 stands beside it, or two tensors hold the same rows.
        """
        self._hashes.check(done)
        for rows in self.stored:
            if rows not in self._digests:
                _check_distinct(rows)

                def block(start: int, stop: int, rows: JoinedRows = rows) -> Bytes:
                    return _finite_block(rows, start, stop)

                self._digests[rows] = rows_digest(rows.rows, rows.row_bytes, block, done)

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: name, fields, n-gram hash, and every bit of the rows."""
        self.check(lambda size: None)
        named = hashlib.sha256(self.digest())
        for one in self.tensor_fields:
            for columns in one.columns:
                named.update(f"{columns.first} {columns.size}".encode())
                named.update(self._digests[columns.rows])
        return named.digest()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        lines = [f"family: {self.family}"]
        for rows in self.stored:
            names = tensor_names([part.name for part in rows.parts])
            shape = [rows.rows, rows.row_bytes // DTYPE_BYTES.get(rows.dtype, 1)]
            count = f" × {len(rows.parts)} tensors" if len(rows.parts) > 1 else ""
            lines.append(f"{names:<40} {shape!s:<14} {rows.dtype}{count}")
        return lines + self._hashes.describe()

    def _take(self, columns: Columns, ids: NDArray[np.int64]) -> Bytes:
        return self._last[columns.rows].columns(ids, columns.first, columns.size)

    def _check_fields(self) -> None:
        for one in self.tensor_fields:
            for columns, size in zip(one.columns, one.stored_row_bytes):
                rows = columns.rows
                fits = columns.first + size <= rows.row_bytes and columns.size == size
                if rows.rows != self.rows or not fits:
                    raise CheckpointError(
                        f"tensor {tensor_names([part.name for part in rows.parts])!r} has "
                        f"{rows.rows} rows of {rows.row_bytes} bytes, expected {self.rows} rows "
                        f"with {size} bytes of {one.field.name} from byte {columns.first} on"
                    )


def _float32_scales(scales: Bytes, dtype: str) -> Bytes:
    """Return scales of a narrower dtype as float32, exactly, and others as they are."""
    if dtype not in ("bfloat16", "float16"):
        return scales
    part = Part(FLOAT_CODECS[dtype], scales.shape[1] // DTYPE_BYTES[dtype])
    return decode_values(scales[:, :0], scales, part).astype("<f4").view(np.uint8)


def _check_distinct(rows: JoinedRows) -> None:
    """Raise `CheckpointError` if two tensors hold the same rows."""
    equal = rows.equal_parts()
    if equal is not None:
        first, second = equal
        raise CheckpointError(
            f"tensor {second.name!r} in {second.path.name} has the rows of {first.name!r} in "
            f"{first.path.name}: one was put in place of the other; copy {second.path.name} again"
        )


def _finite_block(rows: JoinedRows, start: int, stop: int) -> Bytes:
    """Return rows ``start … stop-1``, or raise `CheckpointError` if one is not finite."""
    block = rows.block(start, stop)
    bad = bad_rows(rows.dtype, block)
    if len(bad):
        part, row = rows.place(start + int(bad[0]))
        raise CheckpointError(
            f"tensor {part.name!r} in {part.path.name} holds NaN or Inf at row {row}: the file is "
            "damaged; copy it again"
        )
    return block


def tensor_names(names: Sequence[str]) -> str:
    """Write the names of a series of tensors shortly: ``shard_{0…127}.weight``."""
    first, last = (re.split(r"(\d+)", name) for name in (names[0], names[-1]))
    if len(names) == 1:
        return names[0]
    unlike = [n for n, (one, other) in enumerate(zip(first, last)) if one != other]
    if len(first) != len(last) or len(unlike) != 1 or not unlike[0] % 2:
        return f"{names[0]} … {names[-1]} ({len(names)} tensors)"
    number = unlike[0]
    if int(last[number]) - int(first[number]) != len(names) - 1:  # some numbers are left out
        return f"{names[0]} … {names[-1]} ({len(names)} tensors)"
    before, after = "".join(first[:number]), "".join(first[number + 1 :])
    return f"{before}{{{first[number]}…{last[number]}}}{after}"
