"""Encoding rows for ``--bits lossless``: their codes are placed into records as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.compress.plan import PlannedChunk
from tolpack.compress.records import FieldEncoder, encode_fields
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import Limits


@dataclass(frozen=True, slots=True)
class LosslessEncoder:
    """See `tolpack.compress.plan.RecordEncoder`; ``kept``: numbers of the fields, ascending."""

    kept: tuple[int, ...]

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
        """See `RecordEncoder`."""
        loaders = [
            partial(_load, source, number, layout, field) for field, number in enumerate(self.kept)
        ]
        return encode_fields(source, loaders, token_ids, layout, limits, pool, done)


def sample_records(
    source: TableSource, kept: tuple[int, ...], layout: RecordLayout, ids: Ints
) -> Bytes:
    """Return the records of a few rows, uint8 (n, record_bytes)."""
    records = np.zeros((len(ids), layout.record_bytes), np.uint8)
    for field, number in enumerate(kept):
        _load(source, number, layout, field)(ids, records)
    return records


def _load(source: TableSource, number: int, layout: RecordLayout, field: int) -> FieldEncoder:
    stored = source.stored_rows(number)

    def encode(ids: Ints, records: Bytes) -> int:
        layout.place(records, field, *stored(ids))
        return len(ids)

    return encode
