"""A plan: everything that was decided about a pack, as plain data.

A plan is frozen and can be pickled, printed and saved. `tolpack.compress.encode` makes the same
bytes of the same plan and source wherever it runs, for every chunk on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.calibration.token_order import TokenOrder
from tolpack.codecs.encodings import Encoding, Part
from tolpack.codecs.frames import LEVEL
from tolpack.codecs.record import RecordLayout
from tolpack.compress.settings import BuildSettings, dropped_layers, parse_size
from tolpack.container.header import Chunk, Field, Header, Section, Table
from tolpack.container.preamble import VERSION
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.runtime.scratch import SpilledArray
from tolpack.sources.protocol import SourceField, TableSource
from tolpack.version import __version__
from tolpack.workspace.limits import Limits
from tolpack.workspace.workspace import Workspace

TABLE_NAME = "tol"
PRODUCER = f"tolpack {__version__}"


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


@dataclass(frozen=True, slots=True)
class PlannedArray:
    """An array section: a basis, a mean, or the token map; with ``part``, rows of a coded basis."""

    kind: str
    values: SpilledArray
    part: Part | None = None


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
    """Everything that was decided about a pack.

    ``key``: sha256 of the inputs and settings, 32 bytes; ``source``: the fingerprint of the table
    that it was made for; ``order``: the tokens by slot; ``fields`` refer to ``arrays``, which are
    the first sections of the file, by their number; ``chunks`` are runs of slots and refer to
    ``encodings``; ``encoder`` turns rows into records; ``header_room``: bytes kept for the header;
    ``predicted_bytes``: of the whole file; ``size_limit``: bytes of the file at most, and
    ``reserve_bytes``: the sum of what earlier plans came out over it.
    """

    key: bytes
    source: bytes
    order: TokenOrder
    fields: tuple[Field, ...]
    arrays: tuple[PlannedArray, ...]
    encodings: tuple[Encoding, ...]
    chunks: tuple[PlannedChunk, ...]
    encoder: RecordEncoder
    header_room: int
    predicted_bytes: int
    size_limit: int | None = None
    reserve_bytes: int = 0

    @property
    def digest(self) -> int:
        """Tells plans of one key apart: of other sizes, or measured by other versions of libraries.

        Everything that a reader needs goes into it, so that the sections of two plans never meet
        in one file.
        """
        digest = hashlib.sha256(repr((self.fields, self.encodings, self.chunks)).encode())
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
        return self.order.rows

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers that are stored, ascending."""
        return tuple(field.layer for field in self.fields if not field.dropped)

    def token_ids(self, chunk: PlannedChunk) -> Ints:
        """Return the token ids of a chunk, int64 (rows,)."""
        return self.order.tokens(chunk.first_slot, chunk.first_slot + chunk.rows)

    def header(self, chunks: list[Chunk], sections: list[Section]) -> Header:
        """Return the header of the pack, given where its chunks and sections came to lie."""
        kinds = [array.kind for array in self.arrays]
        token_map = kinds.index("token_map") if "token_map" in kinds else None
        table = Table(TABLE_NAME, self.rows, self.fields, tuple(chunks), token_map)
        return Header((table,), self.encodings, tuple(sections), PRODUCER)

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
            "predicted_bytes": self.predicted_bytes,
            "size_limit": self.size_limit,
            "reserve_bytes": self.reserve_bytes,
            "header_room": self.header_room,
            "rows": self.rows,
            "reordered": not self.order.identity,
            "fields": [asdict(field) for field in self.fields],
            "arrays": arrays,
            "encodings": [asdict(encoding) for encoding in self.encodings],
            "chunks": [asdict(chunk) for chunk in self.chunks],
        }


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What a plan follows from, and where it is worked out.

    ``kept``: layers that are stored, ascending; ``ranks``: one per layer (``None``: no basis), or
    ``None`` as a whole where they are chosen by loss; ``size_limit``: bytes of ``--size``;
    ``width``: values of each field.
    """

    source: TableSource
    stats: CalibrationStats
    settings: BuildSettings
    workspace: Workspace
    kept: tuple[int, ...]
    ranks: tuple[int | None, ...] | None
    size_limit: int | None
    width: int

    @classmethod
    def of(
        cls,
        source: TableSource,
        stats: CalibrationStats,
        settings: BuildSettings,
        workspace: Workspace,
    ) -> PlanInputs:
        """Resolve and check the settings for the table.

        Raises
        ------
        ConfigError
            They do not fit it.
        """
        layers, widths = len(source.fields), {field.width for field in source.fields}
        dropped = dropped_layers(settings.drop.layers, layers)
        if len(widths) > 1:
            raise ConfigError(
                f"fields are {min(widths)} … {max(widths)} values wide; packs of unequal widths "
                "cannot be read yet: build a pack of the fields of each width"
            )
        if any(field.multiplier != 1 for field in source.fields):
            raise ConfigError("fields with a multiplier cannot be built yet: multiply the table")
        ranks = settings.ranks.for_layers(layers, min(*widths, source.rows))
        size = None
        if settings.size is not None:
            size = parse_size(settings.size, 2 * source.rows * sum(f.width for f in source.fields))
        kept = tuple(n for n in range(layers) if n not in dropped)
        return cls(source, stats, settings, workspace, kept, ranks, size, widths.pop())

    @property
    def key(self) -> bytes:
        """Identifies inputs and settings: equal keys give equal packs."""
        resolved = (VERSION, __version__, LEVEL, self.settings, self.size_limit)
        digest = hashlib.sha256(repr(resolved).encode())
        digest.update(self.source.fingerprint() + self.stats.fingerprint)
        return digest.digest()

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
