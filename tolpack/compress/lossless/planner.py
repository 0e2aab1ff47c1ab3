"""Planning for ``--bits lossless``: which chunks are raw records, and which are frames.

Exponents of trained weights have few values and compress, and mantissas do not (DFloat11, arXiv
2504.11651). So frames cut records into byte planes. They are chosen where they save enough of a
sample. What they save, and what they cost at a lookup, is said before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import ZSTD_FRAMES
from tolpack.codecs.record import record_layout
from tolpack.compress.chunks import ChunkSpan, doubling_chunks, spread_slots
from tolpack.compress.fixed.encoding_choice import frame_encoding, raw_encoding
from tolpack.compress.frame_choice import chunk_encodings, chunk_sizes, frame_saving
from tolpack.compress.header_size import PlannedHeader, file_bytes
from tolpack.compress.lossless.encoder import LosslessEncoder, sample_records
from tolpack.compress.plan import Plan, PlanInputs, PlannedChunk
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.runtime.sizes import counted
from tolpack.sources.protocol import SourceField, TableSource

# What frames save is measured on about this many rows, or bytes if fewer.
_SAMPLE_ROWS, _SAMPLE_BYTES = 1 << 14, 32 << 20
# Frames must save this share: a lookup of a narrow row reads many times its bytes then.
_MIN_SAVING = 0.05
# A frame is decompressed this often to tell how long it takes.
_TIMED = 20


@dataclass(frozen=True, slots=True)
class LosslessPlanner:
    """What plans of one table share: its chunks, and what frames save of a sample of them."""

    inputs: PlanInputs
    spans: tuple[ChunkSpan, ...]
    raw: Encoding
    planes: Encoding
    saved: float

    @classmethod
    def of(cls, inputs: PlanInputs) -> LosslessPlanner:
        """Measure what frames save of the rows that are not frequent."""
        order = inputs.stats.order
        spans = tuple(doubling_chunks(order))
        if order.counts is None:  # no row is known to be read more often than others
            spans = tuple(replace(span, hot=False) for span in spans)
        raw, planes = lossless_encodings(inputs.kept_fields)
        saved = 0.0
        if inputs.settings.compression == "auto":
            saved = _measured_saving(inputs, spans, planes)
        return cls(inputs, spans, raw, planes, saved)

    def plan(self, reserve_bytes: int = 0) -> Plan:
        """Decide everything; the size is what it is, so `reserve_bytes` is 0."""
        inputs, order = self.inputs, self.inputs.stats.order
        encodings, numbers = chunk_encodings(self.spans, self.raw, self.planes, self.saved)
        arrays, sections = inputs.row_arrays(), inputs.row_sections()
        fields = [inputs.field(number) for number in range(len(inputs.source.fields))]
        table = inputs.table(fields, [section.kind for section in sections])
        header = PlannedHeader(table, self.spans, encodings, numbers, sections, inputs.provenance)
        chunks = [PlannedChunk(s.first_slot, s.rows, n) for s, n in zip(self.spans, numbers)]
        sizes = [
            *(float(section.length_bytes) for section in sections),
            *chunk_sizes(self.spans, self.raw, self.planes, self.saved),
        ]
        return Plan(
            inputs.key, inputs.source.fingerprint(), replace(order, counts=None), table,
            tuple(arrays), encodings, tuple(chunks), LosslessEncoder(inputs.kept),
            header.room_bytes, file_bytes(header.room_bytes, sizes), provenance=inputs.provenance,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlanesCost:
    """What frames of byte planes save and cost: the share of the bytes, and the time that a lookup
    of one row takes to decompress its frame, of ``rows`` rows.
    """

    saved: float
    seconds: float
    rows: int

    @property
    def pays(self) -> bool:
        """Whether they save enough."""
        return self.saved >= _MIN_SAVING

    def describe(self, name: str, stored_bytes: int) -> str:
        """Say it in a line, for a table of that name."""
        verdict = "stored as frames" if self.pays else "stored as raw records"
        return (
            f"{name}: byte planes save {self.saved:.1%} of {stored_bytes:,} bytes; a lookup of one "
            f"row then decompresses {counted(self.rows, 'row')} in {1e6 * self.seconds:.0f} µs; "
            f"{verdict}"
        )


def lossless_encodings(fields: Sequence[SourceField]) -> tuple[Encoding, Encoding]:
    """Return the encodings of raw records and of byte planes that hold `fields` as stored."""
    parts = tuple((field.part,) for field in fields)
    return raw_encoding(parts), frame_encoding("zstd-planes", parts)


def measure_planes(
    source: TableSource, kept: tuple[int, ...], planes: Encoding, ids: Callable[[int], Ints]
) -> PlanesCost:
    """Measure byte planes on a sample: `ids` gives about as many row numbers as it is asked for."""
    layout = record_layout(planes.fields)
    count = max(1, min(_SAMPLE_ROWS, _SAMPLE_BYTES // layout.record_bytes))
    records = sample_records(source, kept, layout, ids(count))
    saved = frame_saving(records, planes)
    return PlanesCost(saved, _seconds_per_frame(records, planes), planes.rows_per_block)


def _measured_saving(inputs: PlanInputs, spans: tuple[ChunkSpan, ...], planes: Encoding) -> float:
    """Measure what `planes` save of cold chunks, and say it; 0 where that is too little."""
    cold = [span for span in spans if not span.hot]
    if not cold:
        return 0.0
    order = inputs.stats.order
    cost = measure_planes(
        inputs.source, inputs.kept, planes, lambda n: order.tokens_at(spread_slots(cold, n))
    )
    stored = sum(span.rows for span in cold) * record_layout(planes.fields).record_bytes
    inputs.workspace.reporter.say(cost.describe(inputs.source.name, stored))
    return cost.saved if cost.pays else 0.0


def _seconds_per_frame(records: Bytes, planes: Encoding) -> float:
    """Return the time that one frame of the sample takes to decompress: the best of some."""
    frame, rows = ZSTD_FRAMES.get(planes.frame), min(len(records), planes.rows_per_block)
    record = planes.record()
    if frame is None:
        return 0.0
    data = frame.compress(record, records[:rows].tobytes(), 1)[0]
    best = math.inf
    for _ in range(_TIMED):
        start = time.perf_counter()
        frame.records(memoryview(data), rows, record, "sample")
        best = min(best, time.perf_counter() - start)
    return best
