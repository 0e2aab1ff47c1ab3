"""The parts of a pack, made in the order in which they are written: fields, chunks, token map.

Everything expensive (moments, allocation) is computed when it is first needed, so that a resumed
build repeats only what it lacks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from tolpack.building.allocate import Allocation, Point, allocate_to_loss, allocate_to_size
from tolpack.building.layout import (
    ChunkPlan,
    build_header_room,
    field_bytes,
    field_encoding,
    plan_chunks,
    raw_chunk_bytes,
    raw_encoding,
    zstd_encoding,
)
from tolpack.building.loss_model import LossModel, describe
from tolpack.building.passes import (
    FieldProjection,
    Moments,
    encode_records,
    encoded_sample,
    measure_moments,
    worker_threads,
)
from tolpack.building.rank_trial import choose
from tolpack.building.settings import Ranks, dropped_layers, parse_drop, parse_rank, parse_size
from tolpack.building.weighing import Weighing
from tolpack.codecs.frames import LEVEL, compress
from tolpack.codecs.record import record_layout
from tolpack.container.encodings import CHECKSUM_BYTES, Encoding, FieldEncoding
from tolpack.container.header import Chunk, Field
from tolpack.container.index import index_bytes
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, VERSION, align
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError
from tolpack.progress import Reporter
from tolpack.sources.table import ArrayTable, MemoryTable, TableSource
from tolpack.version import __version__

_SAMPLE_TOKENS = 4096
# Truncation is measured at the ranks it leads to; each time moves the ranks less.
_MEASUREMENTS = 2
# Truncation may be predicted to add this share of what rounding the plain table adds: coefficients
# are rounded besides, and together they must not cost more than twice the plain table's rounding.
_TRUNCATION_SHARE = 2 / 3
# zstd must save this share of a cold chunk, or its rows stay raw and need no decompression.
_MIN_ZSTD_SAVING = 0.03
# Kept back when the saving of a sample, not of all cold tokens, decides what fits --size.
_SAVING_MARGIN = 0.002


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What decides the bytes of a pack, beside the table and what is known of its tokens."""

    ranks: Ranks
    bits: int
    drop: tuple[int, ...]
    size: str | int | None

    @classmethod
    def parse(cls, rank: str | int, bits: int, drop: str, size: str | int | None) -> BuildSettings:
        """Parse the settings, or raise `ConfigError`."""
        if type(bits) is not int or bits not in (16, 8, 4):
            raise ConfigError(f"--bits is {bits}, expected 16, 8 or 4")
        ranks = parse_rank(rank)
        if size is not None and ranks.word != "auto":
            raise ConfigError("--size chooses the ranks, so it needs --rank auto")
        return cls(ranks, bits, parse_drop(drop), size)


class Assembly:
    """What the stages share. Everything expensive is computed when it is first needed, so that a
    resumed build repeats only what it lacks.
    """

    def __init__(
        self,
        source: MemoryTable | ArrayTable,
        settings: BuildSettings,
        weighing: Weighing,
        reporter: Reporter,
    ) -> None:
        self.source: TableSource = source
        self.settings = settings
        self.weighing = weighing
        self.reporter = reporter
        dropped = set(dropped_layers(settings.drop, source.num_layers))
        self.kept = [n for n in range(source.num_layers) if n not in dropped]
        self.chunks = plan_chunks(weighing.order)
        full = min(source.hidden_size, source.vocab_size)
        self.fixed_ranks = settings.ranks.for_layers(source.num_layers, full)
        self.size = None
        if settings.size is not None:
            fp16 = 2 * source.vocab_size * source.num_layers * source.hidden_size
            self.size = parse_size(settings.size, fp16)
        self.kept_back = 0

    @property
    def key(self) -> bytes:
        """Identifies inputs and settings: equal keys give equal packs."""
        resolved = (VERSION, __version__, LEVEL, self.settings, self.size)
        digest = hashlib.sha256(repr(resolved).encode())
        digest.update(self.source.fingerprint() + self.weighing.fingerprint)
        return digest.digest()

    @property
    def target(self) -> int | None:
        """Bytes to aim at: ``--size`` less what an earlier attempt was over it."""
        return None if self.size is None else self.size - self.kept_back

    @property
    def header_room(self) -> int:
        """Bytes to keep for the header."""
        return build_header_room(
            self.source.num_layers,
            len(self.kept),
            len(self.chunks),
            has_basis=self.settings.ranks.word != "none",
        )

    def keep_back(self, excess_bytes: int) -> None:
        """Forget the allocation and aim lower: the last one came out too large."""
        self.kept_back += excess_bytes
        self.__dict__.pop("allocation", None)

    @cached_property
    def moments(self) -> dict[int, Moments]:
        """Mean and spectrum of every kept layer: one pass over the table."""
        return measure_moments(self.source, self.kept, self.weighing.weights, self.reporter)

    @cached_property
    def allocation(self) -> dict[int, Point]:
        """``--rank auto``: what every kept layer is stored as, by one slope."""
        model = LossModel(self.source, self.moments, self.weighing, self.settings.bits)
        chosen = self._allocate(model)
        for _ in range(_MEASUREMENTS):
            model.measure(chosen, self.reporter)
            chosen = self._allocate(model)
        self.reporter.say(describe(chosen, model.factors))
        chosen = choose(model, chosen, self._fits_like(chosen), self.reporter)
        return dict(zip(self.kept, chosen))

    def _fits_like(self, allocation: Allocation) -> Callable[[Allocation], bool]:
        """Whether an allocation's file fits `size`; without one, whether it is no larger than
        `allocation`.
        """
        target = self.target
        if target is not None:
            return lambda found: self._estimated_bytes(found) <= target
        limit = sum(point.bytes for point in allocation)
        return lambda found: sum(point.bytes for point in found) <= limit

    def write_fields(self, writer: PackWriter) -> tuple[list[Field], list[FieldProjection]]:
        """Write bases and means; returns the fields and how rows become stored values."""
        fields, projections = [], []
        for layer in range(self.source.num_layers):
            name, width, dtype = f"layer.{layer}", self.source.hidden_size, self.source.dtype
            if layer not in self.kept:
                fields.append(Field(name, layer, width, dtype, dropped=True))
                continue
            if self.settings.ranks.word == "none":
                fields.append(Field(name, layer, width, dtype))
                projections.append(FieldProjection.onto(layer, None, None))
                continue
            basis_id, basis = writer.add_array("basis", partial(self._basis, layer))
            mean_id, mean = writer.add_array("mean", partial(self._mean, layer))
            rank = len(basis)
            fields.append(Field(name, layer, width, dtype, False, rank, basis_id, mean_id))
            projections.append(FieldProjection.onto(layer, basis, mean.astype(np.float32)))
        return fields, projections

    def write_chunks(
        self, writer: PackWriter, projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """Write the records of all tokens, chunk by chunk; returns the encodings and chunks."""
        fields = tuple(self._field_encoding(projection) for projection in projections)
        encodings, numbers = self._chunk_encodings(fields, projections)
        layout = record_layout(fields)
        chunks = []
        total = self.source.vocab_size * len(projections)
        with self.reporter.phase("encoding", total, "rows") as done, worker_threads() as pool:
            for plan, number in zip(self.chunks, numbers):
                ids = self._chunk_tokens(plan)
                blocks, index = writer.add_chunk(
                    encodings[number],
                    plan.first_slot,
                    partial(encode_records, self.source, projections, layout, ids, pool, done),
                    compress,
                )
                chunks.append(Chunk(plan.rows, number, blocks, index))
        return encodings, chunks

    def write_token_map(self, writer: PackWriter) -> int | None:
        """Write the map from token id to slot, unless it is the identity."""
        if self.weighing.order.identity:
            return None
        dtype = np.uint32 if self.source.vocab_size <= 2**32 else np.uint64
        return writer.add_array("token_map", lambda: self.weighing.order.slots.astype(dtype))[0]

    def _basis(self, layer: int) -> NDArray[np.float16]:
        rank = None if self.fixed_ranks is None else self.fixed_ranks[layer]
        return self.moments[layer].spectrum.basis(rank or self.allocation[layer].rank)

    def _mean(self, layer: int) -> NDArray[np.float32]:
        return self.moments[layer].mean.astype(np.float32)

    def _field_encoding(self, projection: FieldProjection) -> FieldEncoding:
        if projection.matrix is None:
            codec16 = "bf16" if self.source.dtype == "bfloat16" else "f16"
            return field_encoding(self.source.hidden_size, self.settings.bits, codec16)
        leading = 0
        if self.fixed_ranks is None:
            leading = self.allocation[projection.layer].leading
        return field_encoding(projection.matrix.shape[1], self.settings.bits, "f16", leading)

    def _chunk_encodings(
        self, fields: tuple[FieldEncoding, ...], projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[int]]:
        """Raw for hot chunks; zstd for cold ones if a sample of them shows that it pays."""
        raw, framed = raw_encoding(fields), zstd_encoding(fields)
        if not any(not plan.hot for plan in self.chunks):
            return (raw,), [0] * len(self.chunks)
        saved = self._zstd_saving(fields, projections)
        pays = saved >= _MIN_ZSTD_SAVING
        verdict = "zstd frames" if pays else "raw records"
        self.reporter.say(f"cold chunks: zstd saves {saved:.1%} of a sample, stored as {verdict}")
        if not pays:
            return (raw,), [0] * len(self.chunks)
        if not any(plan.hot for plan in self.chunks):
            return (framed,), [0] * len(self.chunks)
        return (raw, framed), [0 if plan.hot else 1 for plan in self.chunks]

    def _zstd_saving(
        self, fields: tuple[FieldEncoding, ...], projections: Sequence[FieldProjection]
    ) -> float:
        """Share of the bytes of cold chunks that zstd saves, measured on spread tokens."""
        cold = [self._chunk_tokens(plan) for plan in self.chunks if not plan.hot]
        if not cold:
            return 0.0
        tokens = np.concatenate(cold)
        sample = tokens[:: max(1, len(tokens) // _SAMPLE_TOKENS)][:_SAMPLE_TOKENS]
        records = encoded_sample(self.source, projections, fields, sample)
        rows = zstd_encoding(fields).rows_per_block
        frames = [compress(records[n : n + rows].tobytes()) for n in range(0, len(records), rows)]
        stored = sum(len(frame) + CHECKSUM_BYTES for frame in frames)
        return 1 - stored / records.size

    def _chunk_tokens(self, plan: ChunkPlan) -> NDArray[np.int64]:
        return self.weighing.order.token_ids[plan.first_slot : plan.first_slot + plan.rows]

    def _allocate(self, model: LossModel) -> Allocation:
        """Down to `size`, or until truncation costs about what rounding the plain table does."""
        layers = [model.points(layer) for layer in self.kept]
        size = self.target
        if size is None:
            return allocate_to_loss(layers, _TRUNCATION_SHARE * model.plain_rounding)
        chosen = allocate_to_size(layers, lambda found: self._file_bytes(found, 0.0) <= size)
        saved = self._saving_of(chosen)
        return allocate_to_size(layers, lambda found: self._file_bytes(found, saved) <= size)

    def _saving_of(self, allocation: Allocation) -> float:
        """Share of cold chunks' bytes that zstd is sure to save under `allocation`."""
        fields = self._auto_fields(allocation)
        projections = []
        for layer, point in zip(self.kept, allocation):
            basis = self.moments[layer].spectrum.basis(point.rank)
            projections.append(FieldProjection.onto(layer, basis, self._mean(layer)))
        saved = self._zstd_saving(fields, projections)
        if saved < _MIN_ZSTD_SAVING:
            return 0.0
        cold = sum(plan.rows for plan in self.chunks if not plan.hot)
        return saved if cold <= _SAMPLE_TOKENS else max(0.0, saved - _SAVING_MARGIN)

    def _estimated_bytes(self, allocation: Allocation) -> int:
        return self._file_bytes(allocation, self._saving_of(allocation))

    def _auto_fields(self, allocation: Allocation) -> tuple[FieldEncoding, ...]:
        bits = self.settings.bits
        return tuple(field_encoding(p.rank, bits, "f16", p.leading) for p in allocation)

    def _file_bytes(self, allocation: Allocation, saved: float) -> int:
        """Upper bound of the file's bytes, with every section in whole pages.

        `saved` is the share of the cold chunks that zstd saves.
        """
        encoding = raw_encoding(self._auto_fields(allocation))
        record = sum(field_bytes(field) for field in encoding.fields)
        sizes: list[float] = []
        for plan in self.chunks:
            if plan.hot or not saved:
                sizes.append(raw_chunk_bytes(encoding, plan.rows))
                continue
            frames = -(-plan.rows // zstd_encoding(encoding.fields).rows_per_block)
            sizes += [plan.rows * record * (1 - saved), index_bytes(frames)]
        hidden = self.source.hidden_size
        sizes += [size for p in allocation for size in (2 * hidden * p.rank, 4 * hidden)]
        sizes += [] if self.weighing.order.identity else [4 * self.source.vocab_size]
        pages = sum(align(math.ceil(size), SECTION_ALIGNMENT) for size in sizes)
        return pages + PREAMBLE_BYTES + self.header_room
