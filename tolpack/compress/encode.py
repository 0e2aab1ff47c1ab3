"""Encoding: a plan and a source become the blocks of a pack, chunk by chunk.

Every chunk follows from the plan and the source alone, so chunks may be encoded in any order, and
anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from tolpack.codecs.record import record_layout
from tolpack.compress.plan import PackPlan, Plan
from tolpack.container.blocks import encode_blocks
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Buffer
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import Limits
from tolpack.workspace.workers import product_precision, worker_threads
from tolpack.workspace.workspace import Workspace

# Gives the blocks of a chunk; takes the numbers of its table and of the chunk in it, and a callback
# for progress.
ChunkBlocks = Callable[[int, int, Callable[[int], object]], Iterator[Buffer]]


def encode(plan: PackPlan, sources: Sequence[TableSource], workspace: Workspace) -> ChunkBlocks:
    """Return a function that encodes the chunk of a given number: see `encode_chunk`.

    Raises
    ------
    ConfigError
        The plan was made for another table, or for one that is multiplied in another dtype.
    """
    for one, source in zip(plan.tables, sources, strict=True):
        if source.fingerprint() != one.source:
            raise ConfigError(
                "the plan was made for another table, or another --compute: plan again"
            )

    def blocks(table: int, number: int, done: Callable[[int], object]) -> Iterator[Buffer]:
        return encode_chunk(plan.tables[table], sources[table], workspace.limits, number, done)

    return blocks


def encode_chunk(
    plan: Plan,
    source: TableSource,
    limits: Limits,
    number: int,
    done: Callable[[int], object] = lambda _: None,
    first_row: int = 0,
    rows: int | None = None,
) -> Generator[Buffer]:
    """Yield the blocks of chunk `number` of `plan`, or of some of its rows, in order and as they
    are stored.

    Rows that begin at a multiple of 2048 and of the rows of a block, and end at one or with the
    chunk, have the very blocks that they have in the whole chunk: matrix products, which round by
    their shapes, are made of the same rows together.

    Torch's thread count and precision are set meanwhile, for the whole process: encode one chunk at
    a time in each.

    Parameters
    ----------
    plan : Plan
        What to encode, and how.
    source : TableSource
        The table that the plan was made for.
    limits : Limits
        Threads and memory; they change no byte.
    number : int
        Which chunk.
    done : callable, optional
        Called with the number of rows × layers done since the last call.
    first_row, rows : int, optional
        Which rows of the chunk, counted from its first; default: all.
    """
    chunk = plan.chunks[number].some_rows(first_row, rows)
    encoding = plan.encodings[chunk.encoding]
    layout = record_layout(encoding.fields)
    with product_precision(source.compute), worker_threads(limits.threads) as pool:
        records = plan.encoder.records(
            source, plan.token_ids(chunk), chunk, layout, limits, pool, done
        )
        yield from encode_blocks(
            records, encoding, chunk.first_slot, plan.pack_id, table=plan.number, pool=pool,
            coder=plan.record_coder(chunk.encoding),
        )  # fmt: skip
