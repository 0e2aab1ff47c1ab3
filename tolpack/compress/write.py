"""Writing a planned pack: atomically, resumably, and never larger than ``--size`` allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tolpack.compress.encode import ChunkBlocks
from tolpack.compress.plan import PRODUCER, PackPlan, Plan
from tolpack.container.byte_sink import ByteSink
from tolpack.container.header import Chunk, Header, Table
from tolpack.container.local_sink import LocalSink
from tolpack.container.writer import PackWriter
from tolpack.runtime.progress import Reporter


@dataclass(frozen=True, slots=True)
class PackFile:
    """Where a pack goes.

    ``check_inputs`` raises if the inputs are no longer those of the plan; ``resume`` continues what
    an interrupted build of the same plan left; without ``overwrite``, no file may have the name.
    """

    path: Path
    check_inputs: Callable[[], None]
    overwrite: bool = True
    resume: bool = False

    def open(self, key: bytes) -> ByteSink:
        """Take the file over for packs of `key`, so that no other build writes it.

        Raises
        ------
        ConfigError, FileAccessError
            As of `tolpack.container.local_sink.LocalSink`.
        """
        return LocalSink(self.path, key.hex(), resume=self.resume, replace=self.overwrite)


def write(
    plan: PackPlan,
    blocks: ChunkBlocks,
    sink: ByteSink,
    check_inputs: Callable[[], None],
    reporter: Reporter,
) -> int:
    """Write the pack of `plan`.

    Parameters
    ----------
    plan : PackPlan
        The plan.
    blocks : callable
        Gives the blocks of a chunk; see `tolpack.compress.encode`. Called only for chunks that an
        interrupted build had not written already.
    sink : ByteSink
        Where the bytes go, opened for the plan's key.
    check_inputs : callable
        Raises if the inputs are no longer those of the plan.
    reporter : Reporter
        Receives progress.

    Returns
    -------
    int
        0, or by how many bytes the pack is larger than ``plan.size_limit``: then nothing is left of
        it.

    Raises
    ------
    ConfigError, FileAccessError
        As of `tolpack.container.writer.PackWriter`.
    """
    with PackWriter(
        sink, plan.key, plan.header_room, attempt=plan.digest, check=check_inputs
    ) as writer:
        if sink.resumes:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        written = _write_tables(plan, blocks, writer, reporter)
        excess = 0 if plan.size_limit is None else writer.end_bytes - plan.size_limit
        if excess > 0:
            reporter.say(f"{excess} bytes over --size: rows compress less than their sample")
            writer.discard()
            return excess
        encodings = tuple(encoding for table in plan.tables for encoding in table.encodings)
        writer.commit(Header(tuple(written), encodings, tuple(writer.sections), PRODUCER))
    return 0


def _write_tables(
    plan: PackPlan, blocks: ChunkBlocks, writer: PackWriter, reporter: Reporter
) -> list[Table]:
    tables, encodings = [], 0
    for one in plan.tables:
        first = len(writer.sections)
        for array in one.arrays:
            writer.add_array(array.kind, array.values.load, array.part)
        left = sum(table.predicted_bytes for table in plan.tables[one.number :])
        writer.expect(max(0, left - (writer.end_bytes if not one.number else 0)))
        chunks = _write_chunks(one, blocks, writer, reporter)
        tables.append(one.placed_table(first, encodings, chunks))
        encodings += len(one.encodings)
    return tables


def _write_chunks(
    plan: Plan, blocks: ChunkBlocks, writer: PackWriter, reporter: Reporter
) -> list[Chunk]:
    written = []
    kept = len(plan.table.kept_fields)
    with reporter.phase("encoding", plan.rows * kept, "rows") as done:
        for number, chunk in enumerate(plan.chunks):
            encoding = plan.encodings[chunk.encoding]
            section, index = writer.add_chunk(
                encoding, chunk.first_slot, partial(blocks, plan.number, number, done), plan.number
            )
            written.append(Chunk(chunk.rows, chunk.encoding, section, index))
    return written
