"""Raw records or frames: what frames save of a sample, which chunks have them, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.codecs.encodings import Encoding, field_bytes
from tolpack.compress.chunks import ChunkSpan
from tolpack.compress.fixed.encoding_choice import raw_chunk_bytes
from tolpack.container.blocks import stored_bytes
from tolpack.container.index import index_bytes
from tolpack.runtime.array_types import Bytes

# Frames must save this share of a chunk, or its rows stay raw and need no decompression.
MIN_SAVING = 0.03


def frame_saving(records: Bytes, encoding: Encoding) -> float:
    """Return the share of `records`, uint8 (n, record_bytes), that frames of `encoding` save."""
    return 1 - stored_bytes(records, encoding) / records.size


def chunk_encodings(
    spans: Sequence[ChunkSpan], raw: Encoding, framed: Encoding, saved: float
) -> tuple[tuple[Encoding, ...], list[int]]:
    """Return the encodings of a table, and the number of each chunk's: raw records for hot chunks,
    frames for cold ones if they save enough.
    """
    if saved < MIN_SAVING or all(span.hot for span in spans):
        return (raw,), [0] * len(spans)
    if not any(span.hot for span in spans):
        return (framed,), [0] * len(spans)
    return (raw, framed), [0 if span.hot else 1 for span in spans]


def chunk_sizes(
    spans: Sequence[ChunkSpan], raw: Encoding, framed: Encoding, saved: float
) -> list[float]:
    """Return the bytes of all chunks' sections; `saved` is the share that frames save of cold ones,
    or 0 where they stay raw.
    """
    record = sum(field_bytes(field) for field in raw.fields)
    sizes: list[float] = []
    for span in spans:
        if span.hot or not saved:
            sizes.append(raw_chunk_bytes(raw, span.rows))
            continue
        frames = -(-span.rows // framed.rows_per_block)
        sizes += [span.rows * record * (1 - saved), index_bytes(frames)]
    return sizes
