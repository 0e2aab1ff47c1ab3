"""Records of tables that are read, not computed: all fields of a few rows at a time.

The fields of a row lie beside each other in the table's file, so they are read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.workspace.limits import Limits
from tolpack.workspace.workers import split_ids

# Encodes one field of some rows into their records.
FieldEncoder = Callable[[Ints, Bytes], int]
# Arrays of records in work at once.
_AHEAD = 2


def read_records(
    encoders: Sequence[FieldEncoder],
    token_ids: Ints,
    layout: RecordLayout,
    block: int,
    limits: Limits,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> Iterator[Bytes]:
    """Yield the records of `token_ids`, uint8 (n, record_bytes).

    Parameters
    ----------
    encoders : sequence of callable
        For each kept field: takes ids int64 (n,) and their records, and returns n.
    token_ids, layout, limits, pool, done
        As of `tolpack.compress.plan.RecordEncoder`.
    block : int
        Rows that a worker takes together.
    """
    # The next records are made while the last ones are written.
    waiting: list[tuple[Bytes, list[Future[int]]]] = []
    for ids in split_ids(token_ids, limits.superblock_tokens(2 * layout.record_bytes)):
        records = np.zeros((len(ids), layout.record_bytes), np.uint8)
        work = partial(_encode_block, encoders, ids, records, block)
        waiting.append((records, [pool.submit(work, n) for n in range(0, len(ids), block)]))
        if len(waiting) == _AHEAD:
            yield _finished(*waiting.pop(0), done)
    for records, results in waiting:
        yield _finished(records, results, done)


def _finished(
    records: Bytes, results: Sequence[Future[int]], done: Callable[[int], object]
) -> Bytes:
    """Return records once all their rows are encoded."""
    for result in results:
        done(result.result())
    return records


def _encode_block(
    encoders: Sequence[FieldEncoder], ids: Ints, records: Bytes, block: int, start: int
) -> int:
    some, rows = ids[start : start + block], records[start : start + block]
    return sum(encode(some, rows) for encode in encoders)
