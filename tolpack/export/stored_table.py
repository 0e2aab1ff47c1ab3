"""A table's values as the pack stores them: the tensors of the model that it was built from.

Nothing is decoded. Fields that are stored alike are columns of one tensor, as they were in models
whose fields are cut from the rows of one; a pack does not know which they were. Blocks are read in
the order of the file: raw ones many at a time, as they lie one after the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.codecs.registry import CODECS
from tolpack.container.crc import CHECKSUM_BYTES, TABLE_PLACES, compare, place_checksum
from tolpack.container.header import Field, Header, Table
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError
from tolpack.export.float_table import Rounding
from tolpack.export.tensor_files import Metadata, Tensor
from tolpack.pack import Pack
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.sources.gguf.blocks import ggml_blocks

# Bytes, and rows, at a time.
_BLOCK_BYTES = 8 << 20
_BLOCK_ROWS = 1 << 16
# Codecs of values as models store them, and the dtypes of their tensors.
_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn",
    "f8e4m3-e8m0": "float8_e4m3fn", "f8e4m3-step": "float8_e4m3fn", "q8_0": "q8_0",
    "q4_0": "q4_0",
}  # fmt: skip
_GGML = ("q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The kept fields ``first`` … ``last`` of a table, which one tensor holds.

    ``part``: how the values of all of them are stored.
    """

    name: str
    first: int
    last: int
    part: Part

    @property
    def scale_name(self) -> str:
        """Name of the tensor of the scales, which `tolpack.build` looks for."""
        base = self.name.removesuffix("weight").removesuffix(".")
        return f"{base}.weight_scale"

    def tensors(self, rows: int) -> list[Tensor]:
        """Return the tensors of the values and of their scales.

        Raises
        ------
        ConfigError
            Values in groups that GGML has not.
        """
        part, codec = self.part, CODECS[self.part.codec]
        if part.codec in _GGML:
            _check_ggml(part)
            return [Tensor(self.name, part.codec, (rows, part.values), part.row_bytes)]
        found = [Tensor(self.name, _DTYPES[part.codec], (rows, part.values), part.code_bytes)]
        if part.step is not None:
            found.append(Tensor(self.scale_name, "float32", (), 4))
        if codec.scale_dtype is not None:
            shape = (rows, part.scale_bytes // codec.scale_bytes)
            found.append(Tensor(self.scale_name, codec.scale_dtype, shape, part.scale_bytes))
        return found

    def rows(self, layout: RecordLayout, records: Bytes) -> dict[str, Bytes]:
        """Return the rows of `tensors` in `records`, uint8 (…, record_bytes or more)."""
        run = next(r for r in layout.runs if r.first <= self.first < r.first + r.count)
        pairs = zip(run.spans(self.first), run.spans(self.last))
        scales, codes = (_columns(records, *pair) for pair in pairs)
        if self.part.codec in _GGML:
            return {self.name: ggml_blocks(scales, codes, self.part)[1]}
        return {self.name: codes, **({self.scale_name: scales} if scales.size else {})}


class StoredTable:
    """A table of a pack as tensors of what it stores.

    Parameters
    ----------
    header : Header
        The pack's.
    table : Table
        One of its tables.

    Raises
    ------
    ConfigError
        A field is not stored as models store values.
    """

    dropped: tuple[int, ...] = ()

    def __init__(self, header: Header, table: Table) -> None:
        self.table, self.multiplier = table, table.multiplier
        self.rounding = Rounding("stored")  # there is none
        self._parts = _stored_parts(header, table)
        self.stored = _stored_tensors(table, self._parts)
        self.tensors = tuple(t for one in self.stored for t in one.tensors(table.rows))
        self.numbers: dict[str, NDArray[Any]] = {
            one.scale_name: np.array([one.part.step], "<f4")
            for one in self.stored
            if one.part.step is not None
        }
        self.shape = self.tensors[0].shape if len(self.stored) == 1 else None
        self._layouts = {n: record_layout(header.encodings[n].fields) for n in table.encodings}

    def blocks(self, pack: Pack) -> Iterator[tuple[Ints, dict[str, Bytes]]]:
        """See `tolpack.export.convert.TableValues`."""
        container, order = pack.container, pack.stored_order()
        container.source.expect_order(sequential=True)
        row_bytes = sum(tensor.row_bytes for tensor in self.tensors)
        for number, view in enumerate(container.chunks):
            rows = max(1, min(_BLOCK_BYTES // row_bytes, _BLOCK_ROWS) // view.rows_per_block)
            rows *= view.rows_per_block
            for start in range(0, view.chunk.rows, rows):
                stop = min(start + rows, view.chunk.rows)
                ids = order.tokens(view.first_slot + start, view.first_slot + stop)
                yield _ascending(ids, self._read(pack, number, start, ids))

    def metadata(self) -> Metadata:
        """See `tolpack.export.convert.TableValues`."""
        return {
            "vocab_size": self.table.rows,
            "num_layers": len(self.table.fields),
            "multiplier": self.multiplier,
            "fields": [
                {"name": field.name, "layer": field.layer, "width": field.width,
                 "codec": part.codec, "group_size": part.group_size}
                for field, part in zip(self.table.fields, self._parts)
            ],
        }  # fmt: skip

    def _read(self, pack: Pack, number: int, start: int, ids: Ints) -> dict[str, Bytes]:
        """Return the rows from row `start` of a chunk on, which are those of `ids`, by tensor."""
        view = pack.container.chunks[number]
        if not view.encoding.is_compressed:
            records = read_raw_records(pack.container, number, start, start + len(ids))
            found = self._rows(view.chunk.encoding, records)
            return {name: rows[: len(ids)] for name, rows in found.items()}
        found = {
            tensor.name: np.empty((len(ids), tensor.row_bytes), np.uint8)
            for tensor in self.tensors
            if tensor.shape
        }

        def put(encoding: int, records: Bytes, places: Ints) -> None:
            together = (np.diff(places) == 1).all()
            where = slice(int(places[0]), int(places[-1]) + 1) if together else places
            for name, rows in self._rows(encoding, records).items():
                found[name][where] = rows

        pack.gather(ids, put)
        return found

    def _rows(self, encoding: int, records: Bytes) -> dict[str, Bytes]:
        layout = self._layouts[encoding]
        found: dict[str, Bytes] = {}
        for one in self.stored:
            found |= one.rows(layout, records)
        return found


def read_raw_records(container: Container, number: int, start: int, stop: int) -> Bytes:
    """Read the blocks of rows ``start … stop-1`` of raw chunk `number` at once.

    Parameters
    ----------
    container : Container
        The open pack.
    number : int
        Number of the chunk.
    start, stop : int
        Rows; `start` is the first one of a block.

    Returns
    -------
    ndarray
        uint8 (blocks, rows_per_block, record_bytes); zeros may follow the rows.

    Raises
    ------
    ChecksumError, FileAccessError
        A block is damaged, or cannot be read.
    """
    view = container.chunks[number]
    first, last = start // view.rows_per_block, -(-stop // view.rows_per_block)
    offset, length = container.block_extent(number, first)
    data = memoryview(container.source.read(offset, (last - first) * length))
    blocks = np.frombuffer(data, np.uint8).reshape(-1, length)
    sums = np.ascontiguousarray(blocks[:, -CHECKSUM_BYTES:]).view("<u4").ravel().tolist()
    slots = itertools.count(view.first_slot + first * view.rows_per_block, view.rows_per_block)
    pack_id, first_place = container.preamble.pack_id, container.number * TABLE_PLACES
    for at, slot, stored in zip(range(0, len(data), length), slots, sums):
        payload = data[at : at + length - CHECKSUM_BYTES]
        found = place_checksum(payload, pack_id, first_place + slot)
        if found != stored:
            where = f"block {first + at // length} (slots from {slot}, byte {offset + at})"
            compare("block-checksum", f"{container.chunk_name(number)}, {where}", found, stored)
    records = blocks[:, : view.rows_per_block * view.record_bytes]
    return records.reshape(len(blocks), view.rows_per_block, view.record_bytes)


def _ascending(ids: Ints, rows: dict[str, Bytes]) -> tuple[Ints, dict[str, Bytes]]:
    """Return ids and their rows in the order of ids, contiguous."""
    if (np.diff(ids) > 0).all():
        return ids, {name: np.ascontiguousarray(found) for name, found in rows.items()}
    order = np.argsort(ids)
    return ids[order], {name: found[order] for name, found in rows.items()}


def _check_ggml(part: Part) -> None:
    """Raise `ConfigError` unless GGML has a type for the part."""
    scales, codes = (np.empty((0, n), np.uint8) for n in (part.scale_bytes, part.code_bytes))
    ggml_blocks(scales, codes, part)


def _columns(records: Bytes, first: slice, last: slice) -> Bytes:
    """Return the bytes from those of `first` to those of `last`: (n, bytes)."""
    found = records[..., first.start : last.stop]
    return found.reshape(math.prod(found.shape[:-1]), found.shape[-1])


def _stored_tensors(table: Table, parts: list[Part]) -> list[StoredTensor]:
    """Return one tensor for all fields if they are stored alike, else one for each."""
    first, count = parts[0], len(parts)
    whole_groups = first.values % (first.group_size or 1) == 0
    if count == 1 or (whole_groups and all(part == first for part in parts)):
        part = replace(first, values=count * first.values)
        return [StoredTensor(table.name, 0, count - 1, part)]
    return [
        StoredTensor(f"{table.name}.{field.name}", n, n, part)
        for n, (field, part) in enumerate(zip(table.fields, parts))
    ]


def _stored_parts(header: Header, table: Table) -> list[Part]:
    """Return how each field is stored, or raise `ConfigError`."""
    for field in table.fields:
        _refuse_if(field.dropped, table, field, "was dropped")
        _refuse_if(field.basis is not None, table, field, "has a basis")
        _refuse_if(field.mean is not None, table, field, "has a mean")
    found: list[Part] = []
    for n, field in enumerate(table.fields):
        stored = {header.encodings[number].fields[n] for number in table.encodings}
        parts = stored.pop()
        own = " and ".join(sorted({part.codec for part in parts} - set(_DTYPES)))
        _refuse_if(own, table, field, f"is stored as {own}, as no model's file is")
        _refuse_if(stored or len(parts) > 1, table, field, "is not stored in one way")
        found += parts
    return found


def _refuse_if(refused: object, table: Table, field: Field, why: str) -> None:
    if refused:
        raise ConfigError(
            f"field {field.name!r} of table {table.name!r} {why}: --dtype stored is for what "
            "--bits lossless stores; use --dtype float32"
        )
