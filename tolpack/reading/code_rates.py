"""Bits of entropy-coded rows, next to their lower bounds.

Read from the pack itself: whole blocks, spread over all chunks. Per layer the codes' adaptive
entropy, and the Gaussian rate–distortion function at the same distortion
(`tolpack.codecs.code_entropy`), both in bits per stored value. Codes along a trellis are counted by
their levels, given the sets of their states; what distortion they have does not follow from them.

A hostile header may claim thousands of chunks, each of blocks that decompress to megabytes. Then
some chunks stand for their neighbours too, and no more is read than of other packs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolpack.codecs.ans.trellis import levels_and_sets, run_length
from tolpack.codecs.code_entropy import code_bytes, gaussian_bytes
from tolpack.codecs.encodings import Encoding
from tolpack.codecs.record import RecordLayout, Run, record_layout
from tolpack.codecs.registry import CODECS
from tolpack.codecs.step_integers import StepIntegerCodec
from tolpack.container.chunk_view import ChunkView
from tolpack.container.verified_reader import Container
from tolpack.reading.block_decompression import decompress_blocks
from tolpack.runtime.array_types import Bytes, Doubles, Floats

# Rows, and bytes of their records, that are looked at; of a small file no more than so many bytes
# beyond its own.
_MAX_ROWS = 1 << 13
_MAX_BYTES = 1 << 28
_SPARE_BYTES = 1 << 24
# Bytes of records that are decompressed together.
_TOGETHER_BYTES = 1 << 20
# Layers of chunks that are looked at.
_MAX_PIECES = 1 << 16
# Tables of a pack whose rates are looked at.
MAX_TABLES = 64
# Codes of a layer that are looked at together.
_MAX_CODES = 1 << 20


@dataclass(frozen=True, slots=True)
class CodeRate:
    """One layer, in bits per stored value; ``gaussian_bits`` is ``None`` along a trellis."""

    entropy_bits: float
    gaussian_bits: float | None


@dataclass(frozen=True, slots=True)
class RecordSample:
    """Records of chunk number ``chunk``, uint8 (n, record_bytes), and the rows that each one stands
    for. ``runs``: by kept field; ``lanes``: of a trellis, or 0.
    """

    chunk: int
    runs: list[list[Run]]
    lanes: int
    records: Bytes
    stands_for: float


def code_rates(container: Container) -> list[CodeRate] | None:
    """Return the rates of the kept layers, in order; ``None`` if not all values are such codes, or
    the pack has very many tables.

    Raises
    ------
    FormatError, FileAccessError
        A block that was read is damaged.
    """
    encodings = [container.header.encodings[number] for number in container.table.encodings]
    if len(container.header.tables) > MAX_TABLES or not all(map(_has_steps, encodings)):
        return None
    samples = sampled_records(container)
    rows = np.concatenate([np.full(len(one.records), one.stands_for) for one in samples])
    rates = []
    for kept, field in enumerate(container.table.kept_fields):
        entropy, gaussian = _field_bytes(samples, kept, field.stored_values, rows)
        scale = 8 / (container.table.rows * field.stored_values)
        rates.append(CodeRate(entropy * scale, None if gaussian is None else gaussian * scale))
    return rates


def _field_bytes(
    samples: list[RecordSample], kept: int, values: int, rows: Doubles
) -> tuple[float, float | None]:
    """Return the bytes of a field's `values` codes, as of `code_bytes` and `gaussian_bytes`."""
    lanes = np.concatenate([np.full(len(one.records), one.lanes) for one in samples])
    states = np.zeros(len(rows), np.uint8) if lanes.any() else None
    entropy = gaussian = 0.0
    width = max(1, _MAX_CODES // len(rows))
    for start in range(0, values, width):
        stop = min(start + width, values)
        codes = np.concatenate([_codes(one, kept, start, stop) for one in samples])
        if states is None:
            entropy += float(code_bytes(codes, rows).sum())
            gaussian += float(gaussian_bytes(codes, rows).sum())
        else:
            lengths = run_length(values, np.maximum(lanes, 1))
            levels, sets = levels_and_sets(codes.astype(np.int16), lengths, start, states)
            plain = lanes == 0
            levels[plain], sets[plain] = codes[plain], 0
            entropy += float(code_bytes(levels.astype(np.float32), rows, sets).sum())
    return entropy, gaussian if states is None else None


def _has_steps(encoding: Encoding) -> bool:
    parts = [part for field in encoding.fields for part in field]
    return all(isinstance(CODECS[part.codec], StepIntegerCodec) for part in parts)


def sampled_records(container: Container) -> list[RecordSample]:
    """Return the records of spread blocks: of every chunk, unless they are too many.

    Raises
    ------
    FormatError, FileAccessError
        A block that was read is damaged.
    """
    views, fields = container.chunks, len(container.table.kept_fields)
    widest = max(view.record_bytes for view in views)
    budget = min(_MAX_BYTES, container.preamble.file_length + _SPARE_BYTES)
    budget //= len(container.header.tables)
    share = min(1.0, min(_MAX_ROWS, budget / widest) / container.table.rows)
    blocks = [max(1, round(view.blocks * share)) for view in views]
    rows = [count * view.block_rows(0) for count, view in zip(blocks, views)]
    size = sum(count * view.record_bytes for count, view in zip(rows, views))
    every = max(
        -(-len(views) * fields // _MAX_PIECES), -(-sum(rows) // (4 * _MAX_ROWS)),
        -(-size // (2 * budget)),
    )  # fmt: skip
    runs = {
        number: _runs_by_field(record_layout(container.header.encodings[number].fields))
        for number in {view.chunk.encoding for view in views[::every]}
    }
    found = []
    for number in range(0, len(views), every):
        records = _spread(container, number, blocks[number])
        total = sum(view.chunk.rows for view in views[number : number + every])
        encoding = views[number].chunk.encoding
        coder = container.header.encodings[encoding].coder
        lanes = coder.lanes if coder is not None and coder.trellis else 0
        stands_for = total / len(records)
        found.append(RecordSample(number, runs[encoding], lanes, records, stands_for))
    return found


def _spread(container: Container, number: int, count: int) -> Bytes:
    """Records of `count` blocks of a chunk, spread over it."""
    view: ChunkView = container.chunks[number]
    numbers = [n * view.blocks // count for n in range(count)]
    out = np.empty((sum(map(view.block_rows, numbers)), view.record_bytes), np.uint8)
    at, together = 0, max(1, _TOGETHER_BYTES // (view.rows_per_block * view.record_bytes))
    for start in range(0, count, together):
        wanted = [(number, block) for block in numbers[start : start + together]]
        for records in decompress_blocks(container, wanted, container.read_blocks(wanted)):
            out[at : at + len(records)] = records
            at += len(records)
    return out


def _runs_by_field(layout: RecordLayout) -> list[list[Run]]:
    found: list[list[Run]] = [[] for _ in layout.stored_values]
    for run in layout.runs:
        for kept in range(run.first, run.first + run.count):
            found[kept].append(run)
    return found


def _codes(sample: RecordSample, kept: int, start: int, stop: int) -> Floats:
    """Codes of a field's values ``start … stop-1`` as they are stored, float32 (rows, values)."""
    out = np.empty((len(sample.records), stop - start), np.float32)
    for run in sample.runs[kept]:
        low, high = max(start, run.value_offset), min(stop, run.value_offset + run.part.values)
        if low >= high:
            continue
        size = CODECS[run.part.codec].code_bits // 8
        at = run.code_offset_bytes + (kept - run.first) * run.part.code_bytes
        at += size * (low - run.value_offset)
        stored = np.ascontiguousarray(sample.records[:, at : at + size * (high - low)])
        out[:, low - start : high - start] = stored.view(f"<i{size}")
    return out
