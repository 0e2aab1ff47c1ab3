"""Encoding rows for ``--bits lossless``: their codes are placed into records as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.compress.plan import PlannedChunk
from tolpack.compress.read_records import read_records
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.sources.protocol import StoredRows, TableSource
from tolpack.workspace.limits import Limits, row_block


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
        encoders = [
            partial(_place_rows, source.stored_rows(number), layout, field)
            for field, number in enumerate(self.kept)
        ]
        return read_records(encoders, token_ids, layout, row_block(source), limits, pool, done)


def sample_records(
    source: TableSource, kept: tuple[int, ...], layout: RecordLayout, ids: Ints
) -> Bytes:
    """Return the records of a few rows, uint8 (n, record_bytes)."""
    records = np.zeros((len(ids), layout.record_bytes), np.uint8)
    for field, number in enumerate(kept):
        _place_rows(source.stored_rows(number), layout, field, ids, records)
    return records


def _place_rows(
    stored: StoredRows, layout: RecordLayout, field: int, ids: Ints, records: Bytes
) -> int:
    layout.place(records, field, *stored(ids))
    return len(ids)
