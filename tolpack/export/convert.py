"""Packs as plain tables, for tools that do not read packs: the inverse of `tolpack.build`.

Tokens are read in the order in which the file stores them, a few megabytes at a time, so that each
frame is decompressed once. Each row is written at the offset of its id. In the order of ids most
frames would be decompressed once for each of their rows. The trade-off is scattered writes, of a
whole row each. Memory does not grow with the table, except for 9 bytes a token to order them if the
pack has a token map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tolpack.container.atomic_write import check_output, refuse_existing, replacing, same_file
from tolpack.container.header import Header, Table
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError, FileAccessError, FormatError
from tolpack.export.file_kinds import check_dtype, check_tensors, tensor_file
from tolpack.export.float_table import FloatTable, Rounding
from tolpack.export.stored_table import StoredTable
from tolpack.export.tensor_files import Metadata, Tensor, TensorFile
from tolpack.pack import Pack, open_first_table
from tolpack.reading.edits_files import listed_edits
from tolpack.reading.summary import bits_per_weight, ratio_fp16
from tolpack.reading.table_choice import table_number
from tolpack.runtime.progress import Reporter
from tolpack.storage.inputs import local_output
from tolpack.storage.locations import Location

# Name of the one tensor or dataset, of values in a dtype that was asked for.
_TABLE_NAME = "table"


class TableValues(Protocol):
    """What a file gets of one table of a pack.

    ``tensors``: what it becomes; ``numbers``: those of them that are single numbers, (1,), by name;
    ``shape``: that of the values, ``None`` if they are in several tensors; ``dropped``: fields that
    are zeros; ``multiplier``: by which rows of the pack are multiplied, and these values are not;
    ``rounding``: the errors so far.
    """

    table: Table
    tensors: tuple[Tensor, ...]
    numbers: dict[str, NDArray[Any]]
    shape: tuple[int, ...] | None
    dropped: tuple[int, ...]
    multiplier: float
    rounding: Rounding

    def blocks(self, pack: Pack) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """Yield all rows a few at a time: ascending ids, and by tensor their rows, contiguous."""
        ...

    def metadata(self) -> Metadata:
        """What the file says of the table."""
        ...


@dataclass(frozen=True, slots=True)
class ConvertedTable:
    """One table of the pack in the file.

    ``multiplier``: by which rows of the pack are multiplied, and the values in the file are not;
    ``tensors``: name, dtype and shape of each tensor that it became.
    """

    name: str
    dropped_layers: tuple[int, ...]
    multiplier: float
    tensors: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """A finished table, or several in one file, and the rounding errors.

    ``shape``: of the values; ``None`` if they are in several tensors, see ``tables``.
    ``dropped_layers``: of all tables together. ``changed_values``: number of values that `dtype`
    cannot hold exactly and that were rounded, by at most ``max_relative_error`` of the value (1: it
    became zero), and ``max_absolute_error``.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...] | None
    bytes: int
    dropped_layers: tuple[int, ...]
    changed_values: int
    max_relative_error: float
    max_absolute_error: float
    tables: tuple[ConvertedTable, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str = "float32",
    table: str | None = None,
    edits: Sequence[Location] = (),
    force: bool = False,
    reporter: Reporter | None = None,
) -> ConvertResult:
    """Write all rows of a pack as a plain table, in the order of token ids.

    Parameters
    ----------
    source : str or Path
        The pack.
    destination : str or Path
        The table: ``.npy``, ``.safetensors``, ``.h5``, ``.hdf5``, or ``.gguf`` for ``"stored"``.
        It appears when it is complete. It has metadata, except in ``.npy``.
    dtype : str
        ``"float32"``: lossless, the values of `Pack.rows`; with a basis all but the last bits of
        them, because products of many rows round otherwise than those of one. ``"float16"``, and in
        ``.safetensors`` ``"bfloat16"``: rounded to nearest; the result has the errors. The file has
        one tensor or dataset ``table``, [vocab, layers, hidden], with zeros for dropped layers.
        ``"stored"``: what a pack built with bits ``"lossless"`` stores, bit for bit as in the
        model's file, and not multiplied. The tensor is called as the pack's table, [vocab, layers ·
        hidden]; if layers are stored differently each has a tensor ``TABLE.FIELD``. Scales of fp8
        are a tensor ``TABLE.weight_scale``.
    table : str, optional
        Table of the pack. Default: all; ``.safetensors`` and ``.gguf`` hold several, as tensors
        that are called as the tables.
    edits : sequence of str or Path
        As of `Pack`. ``"stored"`` is for packs without edits: rows of theirs are not tensors of a
        model.
    force : bool
        Replace an existing file.
    reporter : Reporter, optional
        Receives progress, and lines about dropped layers, rounding and the multiplier.

    Returns
    -------
    ConvertResult
        The finished table, and its rounding errors.

    Raises
    ------
    ConfigError
        Unknown suffix, dtype or table; the destination exists, or cannot hold what the pack stores;
        or a value is beyond the dtype's range.
    FormatError, ChecksumError
        The pack is damaged.
    FileAccessError
        Reading or writing failed.
    """
    reporter, edits = reporter or Reporter(), listed_edits(edits)
    path = local_output(destination)
    check_dtype(path, dtype)
    _check_destination(path, source, force)
    with open_first_table(source, edits) as pack:
        container = pack.container
        if container.header.base is not None:
            raise ConfigError(
                f"{source} holds edits of a pack, and no table: convert that pack, with --edits "
                f"{source}"
            )
        edited = [one.name for one in container.header.unedited_tables if _is_edited(pack, one)]
    found = _table_values(container.header, dtype, table)
    _check_stored(dtype, found, edited)
    tensors = [tensor for values in found for tensor in values.tensors]
    check_tensors(path, tensors, [values.table.name for values in found])
    _report_losses(found, container.header, dtype, reporter, edited)
    rows = sum(values.table.rows for values in found)
    with (
        replacing(path, sum(tensor.nbytes for tensor in tensors), replace=force) as file,
        closing(tensor_file(path)(file, tensors, _metadata(container, dtype, found))) as out,
        reporter.phase("converting", rows, "rows") as done,
    ):
        for values in found:
            with Pack(source, table=values.table.name, edits=edits) as pack:
                _check_unchanged(pack, container)
                write_table(pack, values, out, done)
        out.finish(_metadata(container, dtype, found))
    result = _result(path, dtype, found)
    _report_rounding(result, found, reporter)
    return result


def write_table(
    pack: Pack, values: TableValues, file: TensorFile, done: Callable[[int], object]
) -> None:
    """Write what `values` makes of the rows of `pack`."""
    for name, number in values.numbers.items():
        file.write_rows(name, np.zeros(1, np.int64), number)
    for ids, tensors in values.blocks(pack):
        for name, rows in tensors.items():
            file.write_rows(name, ids, rows)
        done(len(ids))


def _table_values(header: Header, dtype: str, name: str | None) -> Sequence[TableValues]:
    """Return what a file gets of the table called `name`, or of all; or raise `ConfigError`."""
    tables = header.unedited_tables
    if name is not None:
        tables = (header.tables[table_number(header.tables, name)],)
    if dtype == "stored":
        return [StoredTable(header, table) for table in tables]
    return [
        FloatTable(table, dtype, _TABLE_NAME if len(tables) == 1 else table.name)
        for table in tables
    ]


def _is_edited(pack: Pack, table: Table) -> bool:
    """Whether a table of an open pack has edits."""
    if table.name == pack.table:
        return pack.edits is not None
    with pack.open_table(table.name) as other:
        return other.edits is not None


def _check_stored(dtype: str, found: Sequence[TableValues], edited: Sequence[str]) -> None:
    """Raise if a table with edits is asked for as the tensors that are stored."""
    wrong = next((one.table.name for one in found if one.table.name in edited), None)
    if dtype == "stored" and wrong is not None:
        raise ConfigError(
            f"{wrong} has edits, whose rows are not tensors of a model: use --dtype float32, or "
            "the pack without edits"
        )


def _check_unchanged(pack: Pack, container: Container) -> None:
    if pack.container.preamble != container.preamble:
        raise FormatError("changed", "file", "another pack", "the one at opening")


def _check_destination(path: Path, source: Location, force: bool) -> None:
    """Raise if writing `path` would lose something, or cannot succeed."""
    check_output(path)
    if same_file(path, source):
        raise ConfigError(f"{path} is the pack itself: give another name")
    if not path.parent.is_dir():
        raise FileAccessError(
            f"cannot write {path}: there is no folder {path.parent}; make it, or name another"
        )
    refuse_existing(path, force=force)


def _metadata(container: Container, dtype: str, found: Sequence[TableValues]) -> Metadata:
    major, minor = container.preamble.version
    whole: dict[str, Any] = {
        "format_version": f"{major}.{minor}",
        "producer": container.header.producer,
        "pack_bytes": container.preamble.file_length,
        "ratio_fp16": ratio_fp16(container),
        "bits_per_weight": bits_per_weight(container),
        "dtype": dtype,
    }
    if len(found) == 1:
        return {**whole, **found[0].metadata()}
    return {**whole, "tables": [{"name": one.table.name, **one.metadata()} for one in found]}


def _result(path: Path, dtype: str, found: Sequence[TableValues]) -> ConvertResult:
    tables = tuple(
        ConvertedTable(
            one.table.name, one.dropped, one.multiplier,
            tuple({"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in one.tensors),
        )
        for one in found
    )  # fmt: skip
    return ConvertResult(
        path, dtype, found[0].shape if len(found) == 1 else None, path.stat().st_size,
        tuple(sorted({n for one in found for n in one.dropped})),
        sum(one.rounding.changed for one in found),
        max(one.rounding.relative for one in found),
        max(one.rounding.absolute for one in found), tables,
    )  # fmt: skip


def _report_losses(
    found: Sequence[TableValues], header: Header, dtype: str, reporter: Reporter,
    edited: Sequence[str],
) -> None:  # fmt: skip
    for one in found:
        if one.dropped:
            names = ", ".join(map(str, one.dropped))
            of_table = f" of {one.table.name}" if len(found) > 1 else ""
            reporter.say(
                f"the pack has no rows of the dropped layers {names}{of_table}: zeros in the table"
            )
        if one.multiplier != 1.0:
            reporter.say(
                f"the values of {one.table.name} are not multiplied: rows of the pack are "
                f"{one.multiplier:g} times them"
            )
    is_float16 = not edited and all(_is_float16(header, one.table) for one in found)
    if dtype == "float32" and is_float16:
        reporter.say(
            "the pack stores float16: --dtype float16 takes half the bytes, losing nothing"
        )


def _is_float16(header: Header, table: Table) -> bool:
    """Whether rows are the stored values as they are, in float16."""
    encodings = [header.encodings[number].fields for number in table.encodings]
    codecs = {part.codec for one in encodings for field in one for part in field}
    changed = any(field.basis is not None or field.mean is not None for field in table.fields)
    return codecs == {"f16"} and table.multiplier == 1.0 and not changed


def _report_rounding(
    result: ConvertResult, found: Sequence[TableValues], reporter: Reporter
) -> None:
    if result.changed_values:
        share = result.changed_values / sum(one.table.values for one in found)
        relative = max(one.rounding.normal_relative for one in found)
        reporter.say(
            f"{result.dtype} cannot hold {result.changed_values:,} values exactly ({share:.2%}): "
            f"rounded, by up to {result.max_absolute_error:.3g}, or {relative:.3%} of the value; "
            "float32 is exact"
        )
        for one in found:
            if one.rounding.underflows:
                reporter.say(f"{one.table.name}: {one.rounding.underflows}")
    elif result.dtype in ("float16", "bfloat16"):
        reporter.say(f"{result.dtype} holds every value of the pack exactly")
