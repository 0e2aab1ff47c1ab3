"""Records of a table, some rows at a time: all fields of a row together, or field by field.

The fields of a row that is read lie beside each other in the table's file, so they are read
together. Rows that are computed need the weights of each field, which are loaded one after the
other, as they may fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import Limits, block_tokens, row_block
from tolpack.workspace.workers import split_ids, wait_for

# Encodes one field of some rows into their records, and returns how many rows.
FieldEncoder = Callable[[Ints, Bytes], int]
# Loads what a field's encoder needs.
FieldLoader = Callable[[], FieldEncoder]
# Arrays of records in work at once.
_AHEAD = 2


def encode_fields(
    source: TableSource,
    loaders: Sequence[FieldLoader],
    token_ids: Ints,
    layout: RecordLayout,
    limits: Limits,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
    *,
    apart: bool = False,
) -> Iterator[Bytes]:
    """Yield the records of `token_ids`, uint8 (n, record_bytes).

    Parameters
    ----------
    source : TableSource
        The table.
    loaders : sequence of callable
        For each kept field: gives its encoder, which takes ids int64 (n,) and their records.
    token_ids, layout, limits, pool, done
        As of `tolpack.compress.plan.RecordEncoder`.
    apart : bool
        Whether fields are loaded one after the other also where none is computed.
    """
    if apart or source.weight_bytes:
        block = block_tokens(max(field.width for field in source.fields))
        return _field_by_field(loaders, token_ids, layout, block, limits, pool, done)
    return _together(loaders, token_ids, layout, row_block(source), limits, pool, done)


def _field_by_field(
    loaders: Sequence[FieldLoader], token_ids: Ints, layout: RecordLayout, block: int,
    limits: Limits, pool: ThreadPoolExecutor, done: Callable[[int], object],
) -> Iterator[Bytes]:  # fmt: skip
    """Load each field in turn, for as many tokens as the limits allow."""
    for ids in split_ids(token_ids, limits.superblock_tokens(layout.record_bytes)):
        records = np.zeros((len(ids), layout.record_bytes), np.uint8)
        for load in loaders:
            encode = load()
            work = partial(_encode_block, [encode], ids, records, block)
            wait_for(pool.map(work, range(0, len(ids), block)), done)
            del encode, work  # the next field's weights must not meet these
        yield records


def _together(
    loaders: Sequence[FieldLoader], token_ids: Ints, layout: RecordLayout, block: int,
    limits: Limits, pool: ThreadPoolExecutor, done: Callable[[int], object],
) -> Iterator[Bytes]:  # fmt: skip
    """Load all fields at once; the next records are made while the last ones are written."""
    encoders = [load() for load in loaders]
    waiting: list[tuple[Bytes, list[Future[int]]]] = []
    try:
        for ids in split_ids(token_ids, limits.superblock_tokens(2 * layout.record_bytes)):
            records = np.zeros((len(ids), layout.record_bytes), np.uint8)
            work = partial(_encode_block, encoders, ids, records, block)
            waiting.append((records, [pool.submit(work, n) for n in range(0, len(ids), block)]))
            if len(waiting) == _AHEAD:
                yield _finished(waiting, done)
        while waiting:
            yield _finished(waiting, done)
    finally:
        for _, results in waiting:  # after an error, or if not all were taken
            for result in results:
                result.cancel()


def _finished(
    waiting: list[tuple[Bytes, list[Future[int]]]], done: Callable[[int], object]
) -> Bytes:
    """Return the first records in work once all their rows are encoded."""
    records, results = waiting[0]
    for result in results:
        done(result.result())
    waiting.pop(0)
    return records


def _encode_block(
    encoders: Sequence[FieldEncoder], ids: Ints, records: Bytes, block: int, start: int
) -> int:
    some, rows = ids[start : start + block], records[start : start + block]
    return sum(encode(some, rows) for encode in encoders)
