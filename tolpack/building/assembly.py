"""The parts of a pack, made in the order in which they are written: fields, chunks, token map.

Everything expensive (moments, allocation) is computed when it is first needed, so that a resumed
build repeats only what it lacks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

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
from tolpack.building.limits import Limits
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
from tolpack.codecs.lowrank import projection
from tolpack.codecs.record import record_layout
from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.encodings import Encoding, FieldEncoding
from tolpack.container.header import Chunk, Field
from tolpack.container.index import index_bytes
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, VERSION, align
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError
from tolpack.progress import Reporter
from tolpack.scratch import Scratch
from tolpack.sources.table import ArrayTable, MemoryTable, TableSource
from tolpack.version import __version__

# What zstd saves is measured on this many tokens, or on fewer where a row is large.
_SAMPLE_TOKENS = 4096
_SAMPLE_BYTES = 64 << 20
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
        limits: Limits,
        scratch: Scratch,
        reporter: Reporter,
    ) -> None:
        self.source: TableSource = source
        self.settings = settings
        self.weighing = weighing
        self.limits = limits
        self.scratch = scratch
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
        found = {}
        with self._measuring(len(self.kept)) as measure:
            for layer in self.kept:
                found[layer] = measure(layer)
        return found

    @contextmanager
    def _measuring(self, layers: int) -> Iterator[Callable[[int], Moments]]:
        """Yield a function that measures one layer, with workers and progress for `layers`."""
        total, weights = layers * self.source.vocab_size, self.weighing.weights
        with (
            self.reporter.phase("Gram matrices", total, "rows") as done,
            worker_threads(self.limits.threads) as pool,
        ):
            yield lambda layer: measure_moments(
                self.source, layer, weights, pool, self.scratch, done
            )

    @cached_property
    def allocation(self) -> dict[int, Point]:
        """``--rank auto``: what every kept layer is stored as, by one slope."""
        bits, reporter = self.settings.bits, self.reporter
        model = LossModel(self.source, self.moments, self.weighing, bits, reporter)
        chosen = self._allocate(model)
        for _ in range(_MEASUREMENTS):
            model.measure(chosen)
            chosen = self._allocate(model)
        reporter.say(describe(chosen, model.factors))
        chosen = choose(model, chosen, self._fits_like(chosen), reporter)
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
        width, dtype = self.source.hidden_size, self.source.dtype
        fields, projections = [], []
        with self._bases() as moments_of:
            for layer in range(self.source.num_layers):
                field = Field(f"layer.{layer}", layer, width, dtype, dropped=layer not in self.kept)
                project = FieldProjection(layer)
                if not field.dropped and self.settings.ranks.word != "none":
                    moments = cache(partial(moments_of, layer))
                    field, project = self._write_basis(writer, field, moments)
                fields.append(field)
                projections += [] if field.dropped else [project]
        return fields, projections

    def _write_basis(
        self, writer: PackWriter, field: Field, found: Callable[[], Moments]
    ) -> tuple[Field, FieldProjection]:
        basis_id, basis = writer.add_array("basis", lambda: found().basis(self._rank(field.layer)))
        mean_id, mean = writer.add_array("mean", lambda: found().mean.astype(np.float32))
        field = replace(field, rank=len(basis), basis=basis_id, mean=mean_id)
        matrix = self.scratch.keep(projection(basis))
        centre = mean.astype(np.float32)
        return field, FieldProjection(field.layer, len(basis), centre, matrix.load)

    def _bases(self) -> AbstractContextManager[Callable[[int], Moments]]:
        """Give layers' moments: one at a time where ranks are fixed, all first to choose them."""
        if self.fixed_ranks is None or self.settings.ranks.word == "none":
            return nullcontext(lambda layer: self.moments[layer])
        return self._measuring(len(self.kept))

    def write_chunks(
        self, writer: PackWriter, projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """Write the records of all tokens, chunk by chunk; returns the encodings and chunks."""
        fields = tuple(self._field_encoding(field) for field in projections)
        encodings, numbers, saved = self._chunk_encodings(fields, projections)
        sizes = [*self._chunk_sizes(fields, saved), self._token_map_bytes]
        writer.expect(sum(align(math.ceil(size), SECTION_ALIGNMENT) for size in sizes))
        layout = record_layout(fields)
        chunks = []
        total = self.source.vocab_size * len(projections)
        superblock = self.limits.superblock_tokens(layout.record_bytes)
        with (
            self.reporter.phase("encoding", total, "rows") as done,
            worker_threads(self.limits.threads) as pool,
        ):
            for plan, number in zip(self.chunks, numbers):
                ids = self._chunk_tokens(plan)
                blocks, index = writer.add_chunk(
                    encodings[number],
                    plan.first_slot,
                    partial(
                        encode_records, self.source, projections, layout, ids,
                        superblock=superblock, pool=pool, done=done,
                    ),
                    compress,
                )  # fmt: skip
                chunks.append(Chunk(plan.rows, number, blocks, index))
        return encodings, chunks

    def write_token_map(self, writer: PackWriter) -> int | None:
        """Write the map from token id to slot, unless it is the identity."""
        if self.weighing.order.identity:
            return None
        slots = self.weighing.order.slots
        return writer.add_array("token_map", lambda: slots.astype(np.uint32))[0]

    def _rank(self, layer: int) -> int:
        rank = None if self.fixed_ranks is None else self.fixed_ranks[layer]
        return rank or self.allocation[layer].rank

    def _field_encoding(self, field: FieldProjection) -> FieldEncoding:
        if field.rank is None:
            codec16 = "bf16" if self.source.dtype == "bfloat16" else "f16"
            return field_encoding(self.source.hidden_size, self.settings.bits, codec16)
        leading = self.allocation[field.layer].leading if self.fixed_ranks is None else 0
        return field_encoding(field.rank, self.settings.bits, "f16", leading)

    def _chunk_encodings(
        self, fields: tuple[FieldEncoding, ...], projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[int], float]:
        """Raw for hot chunks; zstd for cold ones if a sample of them shows that it pays.

        Returns the encodings, the number of each chunk's, and the share that zstd saves.
        """
        raw, framed = raw_encoding(fields), zstd_encoding(fields)
        if all(plan.hot for plan in self.chunks):
            return (raw,), [0] * len(self.chunks), 0.0
        saved = self._zstd_saving(fields, projections)
        pays = saved >= _MIN_ZSTD_SAVING
        verdict = "zstd frames" if pays else "raw records"
        self.reporter.say(f"cold chunks: zstd saves {saved:.1%} of a sample, stored as {verdict}")
        if not pays:
            return (raw,), [0] * len(self.chunks), 0.0
        if not any(plan.hot for plan in self.chunks):
            return (framed,), [0] * len(self.chunks), saved
        return (raw, framed), [0 if plan.hot else 1 for plan in self.chunks], saved

    def _zstd_saving(
        self, fields: tuple[FieldEncoding, ...], projections: Sequence[FieldProjection]
    ) -> float:
        """Share of the bytes of cold chunks that zstd saves, measured on spread tokens."""
        if all(plan.hot for plan in self.chunks):
            return 0.0
        records = encoded_sample(self._cold_sample, projections, fields)
        rows = zstd_encoding(fields).rows_per_block
        frames = [compress(records[n : n + rows].tobytes()) for n in range(0, len(records), rows)]
        stored = sum(len(frame) + CHECKSUM_BYTES for frame in frames)
        return 1 - stored / records.size

    @cached_property
    def _cold_sample(self) -> NDArray[np.float32]:
        """Rows of spread tokens of the cold chunks, float32 (n, kept layers, hidden)."""
        tokens = np.concatenate([self._chunk_tokens(plan) for plan in self.chunks if not plan.hot])
        row_bytes = 4 * len(self.kept) * self.source.hidden_size
        count = max(1, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // row_bytes))
        sample = tokens[:: max(1, len(tokens) // count)][:count]
        return np.stack([self.source.layer(layer)(sample) for layer in self.kept], axis=1)

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
            moments = self.moments[layer]
            matrix = partial(_projection, moments, point.rank)
            mean = moments.mean.astype(np.float32)
            projections.append(FieldProjection(layer, point.rank, mean, matrix))
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
        sizes = self._chunk_sizes(self._auto_fields(allocation), saved)
        hidden = self.source.hidden_size
        sizes += [size for p in allocation for size in (2 * hidden * p.rank, 4 * hidden)]
        sizes += [self._token_map_bytes]
        pages = sum(align(math.ceil(size), SECTION_ALIGNMENT) for size in sizes)
        return pages + PREAMBLE_BYTES + self.header_room

    def _chunk_sizes(self, fields: tuple[FieldEncoding, ...], saved: float) -> list[float]:
        """Bytes of all chunks' sections; `saved` is the share that zstd saves of cold ones."""
        encoding = raw_encoding(fields)
        record = sum(field_bytes(field) for field in fields)
        sizes: list[float] = []
        for plan in self.chunks:
            if plan.hot or not saved:
                sizes.append(raw_chunk_bytes(encoding, plan.rows))
                continue
            frames = -(-plan.rows // zstd_encoding(fields).rows_per_block)
            sizes += [plan.rows * record * (1 - saved), index_bytes(frames)]
        return sizes

    @property
    def _token_map_bytes(self) -> int:
        return 0 if self.weighing.order.identity else 4 * self.source.vocab_size


def _projection(moments: Moments, rank: int) -> NDArray[np.float32]:
    return projection(moments.basis(rank))
