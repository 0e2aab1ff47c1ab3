"""A plan: everything that was decided about the tables of a pack, as plain data.

A plan is frozen and can be pickled, printed and saved. `tolpack.compress.encode` makes the same
bytes of the same plan and source wherever it runs, for every chunk on its own. A pack of several
tables has one plan for each of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.calibration.token_order import TokenOrder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import CoderSettings, Encoding
from tolpack.codecs.frames import LEVEL
from tolpack.codecs.record import RecordLayout
from tolpack.compress.measured_loss import MeasuredLoss
from tolpack.compress.settings import BuildSettings, dropped_fields
from tolpack.container.header import Chunk, Field, Section, Table
from tolpack.container.ngram_header import NGrams
from tolpack.container.planned_sections import section_alignment
from tolpack.container.preamble import VERSION
from tolpack.container.provenance import Provenance, finite_settings
from tolpack.container.token_chunks import MOST_CHUNKS, map_bytes, pack_numbers
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.runtime.scratch import SpilledArray, in_memory
from tolpack.sources.protocol import SourceField, TableSource
from tolpack.version import __version__
from tolpack.workspace.limits import Limits
from tolpack.workspace.workspace import Workspace

# Rows of a table of which a map of slots would be a part of a pack that counts.
_SMALL_TABLE = 1 << 16


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """``rows`` slots from ``first_slot`` on; ``encoding`` is an index into ``Plan.encodings``.

    ``step``: with ``--bits auto``, the quantization step of the chunk's tokens, before `layer_step`
    scales it for a layer.
    """

    first_slot: int
    rows: int
    encoding: int
    step: float | None = None

    def some_rows(self, first_row: int, rows: int | None = None) -> PlannedChunk:
        """Return `rows` of the chunk's rows from `first_row` on, by default all that follow."""
        left = self.rows - first_row
        return replace(
            self, first_slot=self.first_slot + first_row, rows=left if rows is None else rows
        )


@dataclass(frozen=True, slots=True)
class PlannedArray:
    """An array section: a basis, a mean, the token map, classes or models.

    ``coder`` and ``shape``: with an entropy-coded basis, whose ``values`` are the stored bytes, by
    what it is coded, sections being numbered as ``Plan.arrays``, and its rank and width.
    """

    kind: str
    values: SpilledArray
    coder: CoderSettings | None = None
    shape: tuple[int, int] = (0, 0)


def planned_array(kind: str, dtype: str, shape: tuple[int, ...], item_bytes: int) -> Section:
    """Return an array section that is yet to be written."""
    return Section(kind, 0, item_bytes * math.prod(shape), 0, dtype, shape)


def placed_coder(coder: CoderSettings | None, first_section: int) -> CoderSettings | None:
    """Return a coder's settings, given the number of the section that they count from."""
    if coder is None:
        return None
    models, classes = coder.models + first_section, coder.classes + first_section
    return replace(coder, models=models, classes=classes)


class RecordEncoder(Protocol):
    """Turns rows of some tokens into records; frozen, and can be pickled."""

    def records(
        self,
        source: TableSource,
        token_ids: Ints,
        chunk: PlannedChunk,
        layout: RecordLayout,
        limits: Limits,
        pool: ThreadPoolExecutor,
        done: Callable[[int], object],
    ) -> Iterator[Bytes]:
        """Yield the records of `token_ids` in order, uint8 (n, record_bytes).

        `done` is called with the number of rows × layers done since the last call. All arrays
        but the last hold a whole number of the chunk's blocks.
        """
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was decided about one table of a pack.

    ``key``: sha256 of the inputs and settings of the pack, 32 bytes; ``source``: the fingerprint of
    the table that it was made for; ``order``: the tokens by slot; ``table``: what the header says
    of it, without chunks, with references to ``arrays``, which are its first sections, by their
    number; ``chunks`` are runs of slots and refer to ``encodings``; ``encoder`` turns rows into
    records; ``header_room``: bytes kept for the header; ``predicted_bytes``: of a file of this
    table alone; ``size_limit``: bytes of that file at most, and ``reserve_bytes``: the sum of what
    earlier plans came out over it. ``number``: which table of the pack it is. ``measured``: what it
    costs on a part of the calibration text, where the model was run; no byte of the sections
    depends on it. ``provenance`` is the whole pack's, at its first table.
    """

    key: bytes
    source: bytes
    order: TokenOrder
    table: Table
    arrays: tuple[PlannedArray, ...]
    encodings: tuple[Encoding, ...]
    chunks: tuple[PlannedChunk, ...]
    encoder: RecordEncoder
    header_room: int
    predicted_bytes: int
    size_limit: int | None = None
    reserve_bytes: int = 0
    number: int = 0
    measured: MeasuredLoss | None = None
    provenance: Provenance | None = None

    @property
    def digest(self) -> int:
        """Tells plans of one key apart: of other sizes, or measured by other versions of libraries.

        Everything that a reader needs goes into it, so that the sections of two plans never meet
        in one file.
        """
        digest = hashlib.sha256(repr((self.table, self.encodings, self.chunks)).encode())
        for array in self.arrays:
            digest.update(np.ascontiguousarray(array.values.load()).data)
        return int.from_bytes(digest.digest()[:8], "little")

    @property
    def pack_id(self) -> int:
        """Seeds the checksums of blocks: the first 8 bytes of the key."""
        return int.from_bytes(self.key[:8], "little")

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.table.rows

    def token_ids(self, chunk: PlannedChunk) -> Ints:
        """Return the token ids of a chunk, int64 (rows,)."""
        return self.order.tokens(chunk.first_slot, chunk.first_slot + chunk.rows)

    def for_encoding(self) -> Plan:
        """Return what encoding rows needs: without counts, and of the arrays the coders' alone."""
        coders = [encoding.coder for encoding in self.encodings if encoding.coder is not None]
        used = sorted({n for coder in coders for n in (coder.models, coder.classes)})
        encodings = tuple(
            encoding if encoding.coder is None
            else replace(encoding, coder=replace(
                encoding.coder, models=used.index(encoding.coder.models),
                classes=used.index(encoding.coder.classes),
            ))
            for encoding in self.encodings
        )  # fmt: skip
        return replace(
            self, arrays=tuple(self.arrays[n] for n in used), encodings=encodings,
            order=replace(self.order, counts=None), provenance=None,
        )  # fmt: skip

    def placed_encodings(self, first_section: int) -> list[Encoding]:
        """Return the encodings, given where the table's sections begin."""
        return [
            replace(encoding, coder=placed_coder(encoding.coder, first_section))
            for encoding in self.encodings
        ]

    def record_coder(self, number: int) -> RecordCoder | None:
        """Return the entropy coder of the records of encoding `number`, if it has one."""
        encoding = self.encodings[number]
        if encoding.coder is None:
            return None
        models, classes = (
            self.arrays[n].values.load() for n in (encoding.coder.models, encoding.coder.classes)
        )
        return RecordCoder.of(
            encoding.fields, classes[encoding.coder.class_row], CodeModels.of(models, "models"),
            encoding.coder.lanes, encoding.coder.trellis,
        )  # fmt: skip

    def placed_table(self, first_section: int, first_encoding: int, chunks: list[Chunk]) -> Table:
        """Return what the header says of the table, given where its sections begin and its
        encodings, and its chunks, whose sections are those of the file.
        """

        def moved(number: int | None) -> int | None:
            return None if number is None else number + first_section

        fields = tuple(
            replace(field, basis=moved(field.basis), mean=moved(field.mean))
            for field in self.table.fields
        )
        chunks = [replace(chunk, encoding=chunk.encoding + first_encoding) for chunk in chunks]
        ngrams = self.table.ngrams
        if ngrams is not None:
            ngrams = replace(ngrams, id_map=moved(ngrams.id_map))
        return replace(
            self.table, fields=fields, chunks=tuple(chunks),
            token_map=moved(self.table.token_map), ngrams=ngrams,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the decisions as plain values for JSON: not the order of tokens, the values of
        arrays, or how rows are quantized.
        """
        arrays = [
            {"kind": one.kind, "dtype": str(one.values.dtype), "shape": list(one.values.shape)}
            for one in self.arrays
        ]
        return {
            "key": self.key.hex(),
            "name": self.table.name,
            "predicted_bytes": self.predicted_bytes,
            "size_limit": self.size_limit,
            "reserve_bytes": self.reserve_bytes,
            "header_room": self.header_room,
            "rows": self.rows,
            "reordered": not self.order.identity,
            "fields": [asdict(field) for field in self.table.fields],
            "arrays": arrays,
            "encodings": [asdict(encoding) for encoding in self.encodings],
            "chunks": [asdict(chunk) for chunk in self.chunks],
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "measured": None if self.measured is None else self.measured.to_json(),
        }


@dataclass(frozen=True, slots=True)
class PackPlan:
    """The plans of all tables of a pack, in its order; ``header_room``: bytes kept for the header.

    `tolpack.compress.planned_pack.plan_pack` makes it.
    """

    tables: tuple[Plan, ...]
    header_room: int

    @property
    def key(self) -> bytes:
        """Identifies all inputs and settings."""
        return self.tables[0].key

    @property
    def digest(self) -> int:
        """Tells plans of one key apart, as `Plan.digest`."""
        digest = self.header_room  # what was written begins behind it
        for plan in self.tables:
            digest = (31 * digest + plan.digest) % 2**64
        return digest

    @property
    def provenance(self) -> Provenance:
        """What the pack is made from, how, and what its only table was measured to cost."""
        made_from, measured = self.tables[0].provenance or Provenance(), self.tables[0].measured
        if measured is None or len(self.tables) > 1:
            return made_from
        return replace(made_from, measured=finite_settings(measured.to_json()))

    @property
    def predicted_bytes(self) -> int:
        """Of the whole file, about."""
        return sum(plan.predicted_bytes for plan in self.tables)

    @property
    def measured(self) -> MeasuredLoss | None:
        """What the pack costs, where it was measured: that of its table, if there is one alone."""
        return self.tables[0].measured if len(self.tables) == 1 else None

    @property
    def size_limit(self) -> int | None:
        """Bytes of the file at most."""
        limits = [plan.size_limit for plan in self.tables if plan.size_limit is not None]
        return sum(limits) if limits else None

    @property
    def alignment(self) -> int:
        """Of the file's sections, in bytes."""
        return section_alignment(one for plan in self.tables for one in plan.encodings)


def _map_dtype(rows: int) -> np.dtype[Any]:
    """Return the shorter dtype that holds any slot."""
    return np.dtype(np.uint16 if rows <= 1 << 16 else np.uint32)


def pack_key(keys: Sequence[bytes]) -> bytes:
    """Return the key of a pack whose tables have `keys`: that of its table if there is one."""
    return keys[0] if len(keys) == 1 else hashlib.sha256(b"".join(keys)).digest()


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What a plan follows from, and where it is worked out.

    ``kept``: numbers of the fields that are stored, ascending; ``ranks``: one per field (``None``:
    no basis), or ``None`` as a whole where they are chosen by loss; ``size_limit``: bytes of
    ``--size`` that the table may take; ``width``: values of each field, where they have a basis or
    ``--bits auto``; ``provenance`` is the whole pack's, at its first table.
    """

    source: TableSource
    stats: CalibrationStats
    settings: BuildSettings
    workspace: Workspace
    kept: tuple[int, ...]
    ranks: tuple[int | None, ...] | None
    size_limit: int | None
    width: int
    provenance: Provenance | None = None

    @classmethod
    def of(
        cls,
        source: TableSource,
        stats: CalibrationStats,
        settings: BuildSettings,
        workspace: Workspace,
        size_limit: int | None,
        provenance: Provenance | None = None,
    ) -> PlanInputs:
        """Resolve and check the settings for the table.

        Raises
        ------
        ConfigError
            They do not fit it.
        """
        layers, widths = len(source.fields), {field.width for field in source.fields}
        dropped = dropped_fields(settings.drop.layers, [field.layer for field in source.fields])
        if len(widths) > 1 and (settings.bits == "auto" or settings.ranks.word != "none"):
            raise ConfigError(
                f"fields are {min(widths)} … {max(widths)} values wide: a basis and --bits auto "
                "need one width, so use --rank none and --bits lossless, 16, 8 or 4"
            )
        if len({field.multiplier for field in source.fields}) > 1:
            raise ConfigError("fields have different multipliers, but a pack has one for all")
        ranks = settings.ranks.for_layers(layers, min(*widths, source.rows))
        kept = tuple(n for n in range(layers) if n not in dropped)
        return cls(
            source, stats, settings, workspace, kept, ranks, size_limit, max(widths), provenance
        )

    @property
    def key(self) -> bytes:
        """Identifies inputs and settings: equal keys give equal packs."""
        resolved = (VERSION, __version__, LEVEL, self.settings, self.size_limit)
        digest = hashlib.sha256(repr(resolved).encode())
        if self.settings.trellis:
            digest.update(b"trellis")
        digest.update(self.source.fingerprint() + self.stats.fingerprint)
        return digest.digest()

    def table(self, fields: Sequence[Field], arrays: Sequence[str]) -> Table:
        """Return what the header says of the table, without chunks; `arrays` are the kinds of its
        first sections.
        """
        source, places = self.source, {kind: number for number, kind in enumerate(arrays)}
        ngrams = source.ngrams
        return Table(
            source.name, source.rows, tuple(fields), (), places.get("token_map"),
            source.fields[0].multiplier,
            None if ngrams is None else NGrams.of(ngrams, places.get("id_map")),
        )  # fmt: skip

    def stored_order(self, chunk_rows: Sequence[int] = ()) -> TokenOrder:
        """Return the order of tokens in a pack, without counts.

        `chunk_rows`: with ``--bits auto``, rows of each chunk. Tokens of a small table then are in
        the order of their ids within a chunk, so that a token map has to name chunks alone.
        """
        order = self.stats.order
        if order.identity or not self._maps_chunks(chunk_rows):
            return replace(order, counts=None)
        return order.sorted_within(chunk_rows)

    def _maps_chunks(self, chunk_rows: Sequence[int]) -> bool:
        small = self.stats.order.rows <= _SMALL_TABLE
        return small and 0 < len(chunk_rows) <= MOST_CHUNKS

    def row_arrays(self, chunk_rows: Sequence[int] = ()) -> list[PlannedArray]:
        """Return the arrays by which rows are found: the token map and the compressed ids, where
        there are any. `chunk_rows`: as of `stored_order`.
        """
        order, ngrams, arrays = self.stored_order(chunk_rows), self.source.ngrams, []
        if not order.identity:
            token_map = order.token_map().astype(_map_dtype(order.rows))
            if self._maps_chunks(chunk_rows):
                numbers = np.searchsorted(np.cumsum(chunk_rows), token_map, side="right")
                token_map = pack_numbers(numbers, len(chunk_rows))
            arrays.append(PlannedArray("token_map", in_memory(token_map)))
        if ngrams is not None and ngrams.compressed_ids is not None:
            arrays.append(PlannedArray("id_map", in_memory(ngrams.compressed_ids)))
        return arrays

    def row_sections(self, chunk_rows: Sequence[int] = ()) -> list[Section]:
        """Return the sections of `row_arrays`, yet to be written."""
        order, ngrams, sections = self.stored_order(chunk_rows), self.source.ngrams, []
        if not order.identity:
            dtype, length = _map_dtype(order.rows), order.rows
            if self._maps_chunks(chunk_rows):
                dtype, length = np.dtype(np.uint8), map_bytes(order.rows, len(chunk_rows))
            sections.append(planned_array("token_map", str(dtype), (length,), dtype.itemsize))
        if ngrams is not None and ngrams.compressed_ids is not None:
            shape = ngrams.compressed_ids.shape
            sections.append(planned_array("id_map", "uint32", shape, 4))
        return sections

    @property
    def has_basis(self) -> bool:
        """Whether rows are stored as coefficients."""
        return self.settings.ranks.word != "none"

    def field(self, layer: int) -> Field:
        """Return layer `layer`'s field, without a basis."""
        found = self.source.fields[layer]
        dropped = layer not in self.kept
        return Field(found.name, found.layer, found.width, found.dtype, dropped=dropped)

    @property
    def kept_fields(self) -> tuple[SourceField, ...]:
        """Fields that are stored, in order."""
        return tuple(self.source.fields[layer] for layer in self.kept)

    def target(self, reserve_bytes: int) -> int | None:
        """Bytes to aim at: the limit less what an earlier plan came out over it."""
        return None if self.size_limit is None else self.size_limit - reserve_bytes
