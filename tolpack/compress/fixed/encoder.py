"""``--bits 16|8|4``: values rounded by group, all with the same number of bits.

With ``--rank auto`` ranks are allocated by loss (`tolpack.compress.fixed.loss_model`). Hot chunks
are raw records, cold ones zstd frames if that pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, cached_property, partial

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.frames import compress
from tolpack.codecs.record import record_layout
from tolpack.compress.assembly import Assembly
from tolpack.compress.fixed.allocation import Allocation, Point, allocate_to_loss, allocate_to_size
from tolpack.compress.fixed.loss_model import LossModel, describe
from tolpack.compress.fixed.rank_validation import choose
from tolpack.compress.layout import (
    ChunkPlan,
    build_header_room,
    field_encoding,
    plan_chunks,
    raw_chunk_bytes,
    raw_encoding,
    zstd_encoding,
)
from tolpack.compress.low_rank import projection
from tolpack.compress.table_passes import (
    FieldProjection,
    Moments,
    encode_records,
    encoded_sample,
    measure_moments,
    worker_threads,
)
from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.encodings import Encoding, FieldEncoding, field_bytes
from tolpack.container.header import Chunk, Field
from tolpack.container.index import index_bytes
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.container.writer import PackWriter

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


class FixedBitsAssembly(Assembly):
    """See the module; `Assembly` for the interface."""

    def plan_chunks(self) -> list[ChunkPlan]:
        """See `Assembly`."""
        return plan_chunks(self.weighing.order)

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
        """See `Assembly`."""
        super().keep_back(excess_bytes)
        self.__dict__.pop("allocation", None)

    @property
    def bits(self) -> int:
        """16, 8 or 4."""
        return int(self.settings.bits)

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
        bits, reporter = self.bits, self.reporter
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

    def write_fields(self, writer: PackWriter) -> list[Field]:
        """See `Assembly`."""
        width, dtype = self.source.hidden_size, self.source.dtype
        fields: list[Field] = []
        self._projections: list[FieldProjection] = []
        with self._bases() as moments_of:
            for layer in range(self.source.num_layers):
                field = Field(f"layer.{layer}", layer, width, dtype, dropped=layer not in self.kept)
                project = FieldProjection(layer)
                if not field.dropped and self.settings.ranks.word != "none":
                    moments = cache(partial(moments_of, layer))
                    field, project = self._write_basis(writer, field, moments)
                fields.append(field)
                self._projections += [] if field.dropped else [project]
        return fields

    def _write_basis(
        self, writer: PackWriter, field: Field, found: Callable[[], Moments]
    ) -> tuple[Field, FieldProjection]:
        basis_id, basis = writer.add_array("basis", lambda: found().basis(self._rank(field.layer)))
        mean_id, mean = writer.add_array("mean", lambda: found().mean.astype(np.float32))
        field = replace(field, rank=len(basis), basis=basis_id, mean=mean_id)
        matrix = self.scratch.spill(projection(basis))
        centre = mean.astype(np.float32)
        return field, FieldProjection(field.layer, len(basis), centre, matrix.load)

    def _bases(self) -> AbstractContextManager[Callable[[int], Moments]]:
        """Give layers' moments: one at a time where ranks are fixed, all first to choose them."""
        if self.fixed_ranks is None or self.settings.ranks.word == "none":
            return nullcontext(lambda layer: self.moments[layer])
        return self._measuring(len(self.kept))

    def write_chunks(self, writer: PackWriter) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """See `Assembly`."""
        projections = self._projections
        fields = tuple(self._field_encoding(field) for field in projections)
        encodings, numbers, saved = self._chunk_encodings(fields, projections)
        sizes = self._chunk_sizes(fields, saved)
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
                ids = self.chunk_tokens(plan)
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

    def _rank(self, layer: int) -> int:
        rank = None if self.fixed_ranks is None else self.fixed_ranks[layer]
        return rank or self.allocation[layer].rank

    def _field_encoding(self, field: FieldProjection) -> FieldEncoding:
        if field.rank is None:
            codec16 = "bf16" if self.source.dtype == "bfloat16" else "f16"
            return field_encoding(self.source.hidden_size, self.bits, codec16)
        leading = self.allocation[field.layer].leading if self.fixed_ranks is None else 0
        return field_encoding(field.rank, self.bits, "f16", leading)

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
        tokens = np.concatenate([self.chunk_tokens(plan) for plan in self.chunks if not plan.hot])
        row_bytes = 4 * len(self.kept) * self.source.hidden_size
        count = max(1, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // row_bytes))
        sample = tokens[:: max(1, len(tokens) // count)][:count]
        return np.stack([self.source.layer(layer)(sample) for layer in self.kept], axis=1)

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
        bits = self.bits
        return tuple(field_encoding(p.rank, bits, "f16", p.leading) for p in allocation)

    def _file_bytes(self, allocation: Allocation, saved: float) -> int:
        """Upper bound of the file's bytes, with every section in whole pages.

        `saved` is the share of the cold chunks that zstd saves.
        """
        sizes = self._chunk_sizes(self._auto_fields(allocation), saved)
        hidden = self.source.hidden_size
        sizes += [size for p in allocation for size in (2 * hidden * p.rank, 4 * hidden)]
        sizes += [section.length_bytes for section in self.planned_token_map]
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


def _projection(moments: Moments, rank: int) -> NDArray[np.float32]:
    return projection(moments.basis(rank))
