"""Encoding: a plan and a source become the blocks of a pack, chunk by chunk.

Every chunk follows from the plan and the source alone, so chunks may be encoded in any order, and
anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tolpack.codecs.record import record_layout
from tolpack.compress.plan import PackPlan, Plan
from tolpack.container.blocks import encode_blocks
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Buffer
from tolpack.sources.protocol import TableSource
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
                "the plan was made for another table, or another --compute: plan anew"
            )

    def blocks(table: int, number: int, done: Callable[[int], object]) -> Iterator[Buffer]:
        return encode_chunk(plan.tables[table], sources[table], workspace, number, done)

    return blocks


def encode_chunk(
    plan: Plan,
    source: TableSource,
    workspace: Workspace,
    number: int,
    done: Callable[[int], object] = lambda _: None,
) -> Iterator[Buffer]:
    """Yield the blocks of chunk `number` of `plan`, in order and as they are stored.

    Torch's thread count and precision are set meanwhile, for the whole process: encode one chunk at
    a time in each.

    Parameters
    ----------
    plan : Plan
        What to encode, and how.
    source : TableSource
        The table that the plan was made for.
    workspace : Workspace
        Workers and memory; they change no byte.
    number : int
        Which chunk.
    done : callable, optional
        Called with the number of rows × layers done since the last call.
    """
    chunk = plan.chunks[number]
    encoding = plan.encodings[chunk.encoding]
    layout = record_layout(encoding.fields)
    with product_precision(source.compute), worker_threads(workspace.limits.threads) as pool:
        records = plan.encoder.records(
            source, plan.token_ids(chunk), chunk, layout, workspace.limits, pool, done
        )
        yield from encode_blocks(
            records, encoding, chunk.first_slot, plan.pack_id, table=plan.number, pool=pool
        )
