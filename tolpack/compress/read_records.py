"""Records of tables that are read, not computed: all fields of a few rows at a time.

The fields of a row lie beside each other in the table's file, so they are read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.workspace.limits import Limits
from tolpack.workspace.workers import split_ids, wait_for

# Encodes one field of some rows into their records.
FieldEncoder = Callable[[Ints, Bytes], int]


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
    for ids in split_ids(token_ids, limits.superblock_tokens(layout.record_bytes)):
        records = np.zeros((len(ids), layout.record_bytes), np.uint8)
        work = partial(_encode_block, encoders, ids, records, block)
        wait_for(pool.map(work, range(0, len(ids), block)), done)
        yield records


def _encode_block(
    encoders: Sequence[FieldEncoder], ids: Ints, records: Bytes, block: int, start: int
) -> int:
    some, rows = ids[start : start + block], records[start : start + block]
    return sum(encode(some, rows) for encode in encoders)
