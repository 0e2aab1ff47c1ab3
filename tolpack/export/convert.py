"""Packs as plain tables, for tools that do not read packs: the inverse of `tolpack.build`.

Tokens are decoded in the order in which the file stores them, a few megabytes at a time, so that
each frame is decompressed once. Each row is written at the offset of its id. In the order of ids
most frames would be decompressed once for each of their rows. The trade-off is scattered writes, of
a whole row each. Memory does not grow with the table, except for 9 bytes a token to order them if
the pack has a token map.

Every dtype but float32 may round. The rounding errors are measured as rows are written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.bfloat16 import from_bfloat16, rounded_to_bfloat16
from tolpack.container.atomic_write import check_output, replacing, same_file
from tolpack.errors import ConfigError, FileAccessError
from tolpack.export.table_writers import (
    STORED_DTYPES,
    Metadata,
    TableWriter,
    check_dtype,
    table_writer,
)
from tolpack.pack import Pack
from tolpack.reading.summary import bits_per_weight, ratio_fp16
from tolpack.runtime.array_types import Floats
from tolpack.runtime.progress import Reporter

# Decoded bytes, and rows, at a time.
_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """A finished table, and its rounding errors.

    ``changed_values``: number of values that `dtype` cannot hold exactly and that were rounded, by
    at most ``max_relative_error`` of the value (1: it became zero), and ``max_absolute_error``.
    """

    path: Path
    dtype: str
    shape: tuple[int, int, int]
    bytes: int
    dropped_layers: tuple[int, ...]
    changed_values: int
    max_relative_error: float
    max_absolute_error: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str = "float32",
    force: bool = False,
    reporter: Reporter | None = None,
) -> ConvertResult:
    """Write all rows of a pack as a plain table [vocab, layers, hidden], in the order of token ids.

    Parameters
    ----------
    source : str or Path
        The pack.
    destination : str or Path
        The table: ``.npy``, ``.safetensors``, ``.h5`` or ``.hdf5``. It appears when it is complete.
        It has one tensor or dataset ``table``, with zeros for dropped layers, and metadata, except
        in ``.npy``.
    dtype : str
        ``"float32"``: lossless, the values of `Pack.rows`; with a basis all but the last bits of
        them, because products of many rows round otherwise than those of one. ``"float16"``, and in
        ``.safetensors`` ``"bfloat16"``: rounded to nearest; the result has the errors.
    force : bool
        Replace an existing file.
    reporter : Reporter, optional
        Receives progress, and lines about dropped layers and rounding.

    Returns
    -------
    ConvertResult
        The finished table, and its rounding errors.

    Raises
    ------
    ConfigError
        Unknown suffix or dtype; the destination exists; or a value is beyond the dtype's range.
    FormatError, ChecksumError
        The pack is damaged.
    FileAccessError
        Reading or writing failed.
    """
    reporter = reporter or Reporter()
    path = Path(destination)
    check_dtype(path, dtype)
    _check_destination(path, Path(source), force)
    with Pack(source) as pack:
        shape = (pack.vocab_size, pack.num_layers, pack.hidden_size)
        dropped = tuple(n for n in range(pack.num_layers) if n not in pack.kept_layers)
        rounding = Rounding(dtype)
        _report_losses(pack, dropped, dtype, reporter)
        size = math.prod(shape) * np.dtype(STORED_DTYPES[dtype]).itemsize
        with (
            replacing(path, size, replace=force) as file,
            closing(table_writer(path)(file, shape, dtype)) as table,
            reporter.phase("converting", pack.vocab_size, "rows") as done,
        ):
            _write_rows(pack, table, rounding, done)
            table.finish(_metadata(pack, dropped, rounding))
    _report_rounding(rounding, shape, reporter)
    return ConvertResult(
        path, dtype, shape, path.stat().st_size, dropped, rounding.changed, rounding.relative,
        rounding.absolute,
    )  # fmt: skip


class Rounding:
    """Converts rows to a dtype, and measures the rounding errors."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.changed = 0
        self.relative = self.absolute = 0.0

    def rounded(self, ids: NDArray[np.int64], exact: Floats) -> NDArray[Any]:
        """Return `exact`, the rows of `ids`, (n, layers, hidden), in the dtype of the table.

        Raises
        ------
        ConfigError
            A finite value is beyond the dtype's range.
        """
        if self.dtype == "float32":
            return exact.astype("<f4", copy=False)
        stored, wide = self._both(exact)
        differs = (wide != exact) & ~np.isnan(exact)
        if differs.any():
            self._measure(ids, exact, wide, differs)
        return stored

    def _both(self, exact: Floats) -> tuple[NDArray[Any], Floats]:
        """Return `exact` in the dtype, and that converted back to float32."""
        if self.dtype == "float16":
            with np.errstate(over="ignore"):
                half = exact.astype("<f2")
            return half, half.astype(np.float32)
        bits = rounded_to_bfloat16(exact)
        bits[np.isnan(exact)] = 0x7FC0
        return bits.astype("<u2", copy=False), from_bfloat16(bits)

    def _measure(
        self, ids: NDArray[np.int64], exact: Floats, wide: Floats, differs: NDArray[np.bool_]
    ) -> None:
        before, after = exact[differs], wide[differs]
        if np.isinf(after).any():
            row, layer, column = np.argwhere(np.isinf(wide) & differs)[0]
            raise ConfigError(
                f"token {ids[row]}, layer {layer} has the value {exact[row, layer, column]:.6g}, "
                f"beyond the range of {self.dtype}: use float32"
            )
        error = np.abs(after.astype(np.float64) - before)
        self.changed += len(error)
        self.absolute = max(self.absolute, float(error.max()))
        self.relative = max(self.relative, float((error / np.abs(before)).max()))


def _check_destination(path: Path, source: Path, force: bool) -> None:
    """Raise if writing `path` would lose something, or cannot succeed."""
    check_output(path)
    if same_file(path, source):
        raise ConfigError(f"{path} is the pack itself: give another name")
    if not path.parent.is_dir():
        raise FileAccessError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{path} exists: use --force to replace it, or another name")


def _write_rows(
    pack: Pack, table: TableWriter, rounding: Rounding, done: Callable[[int], object]
) -> None:
    order = pack.stored_order()
    row_bytes = 4 * pack.num_layers * pack.hidden_size
    count = min(max(1, _BLOCK_BYTES // row_bytes), _BLOCK_ROWS, pack.vocab_size)
    block = np.empty((count, pack.num_layers, pack.hidden_size), np.float32)
    for start in range(0, pack.vocab_size, count):
        ids = np.sort(order.tokens(start, min(start + count, pack.vocab_size)))
        exact = pack.rows(ids, out=block[: len(ids)])
        table.write_rows(ids, rounding.rounded(ids, exact))
        done(len(ids))


def _metadata(pack: Pack, dropped: tuple[int, ...], rounding: Rounding) -> Metadata:
    major, minor = pack.container.preamble.version
    return {
        "format_version": f"{major}.{minor}",
        "producer": pack.container.header.producer,
        "vocab_size": pack.vocab_size,
        "num_layers": pack.num_layers,
        "hidden_size": pack.hidden_size,
        "dropped_layers": list(dropped),
        "pack_bytes": pack.nbytes,
        "ratio_fp16": ratio_fp16(pack.container),
        "bits_per_weight": bits_per_weight(pack.container),
        "dtype": rounding.dtype,
        "changed_values": rounding.changed,
        "max_relative_error": rounding.relative,
        "max_absolute_error": rounding.absolute,
    }


def _report_losses(pack: Pack, dropped: tuple[int, ...], dtype: str, reporter: Reporter) -> None:
    if dropped:
        names = ", ".join(map(str, dropped))
        reporter.say(f"the pack has no rows of the dropped layers {names}: zeros in the table")
    encodings = pack.container.header.encodings
    codecs = {part.codec for one in encodings for field in one.fields for part in field}
    if dtype == "float32" and codecs == {"f16"} and pack.decoder.plain:
        reporter.say(
            "the pack stores float16: --dtype float16 takes half the bytes, losing nothing"
        )


def _report_rounding(rounding: Rounding, shape: tuple[int, int, int], reporter: Reporter) -> None:
    if rounding.changed:
        share = rounding.changed / math.prod(shape)
        reporter.say(
            f"{rounding.dtype} cannot hold {rounding.changed:,} values exactly ({share:.2%}): "
            f"rounded, by up to {rounding.absolute:.3g}, or {rounding.relative:.3%} of the value; "
            "float32 is exact"
        )
    elif rounding.dtype != "float32":
        reporter.say(f"{rounding.dtype} holds every value of the pack exactly")
