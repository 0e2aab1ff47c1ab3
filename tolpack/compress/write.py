"""Writing a planned pack: atomically, resumably, and never larger than ``--size`` allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tolpack.codecs.encodings import Encoding
from tolpack.compress.encode import ChunkBlocks
from tolpack.compress.plan import PackPlan, Plan, PlannedArray, placed_coder
from tolpack.container.byte_sink import ByteSink
from tolpack.container.header import Chunk, Header, Table
from tolpack.container.local_sink import LocalSink
from tolpack.container.writer import PackWriter
from tolpack.runtime.progress import Reporter
from tolpack.version import PRODUCER

# Gives the bytes of all blocks of a chunk, and the length of each one if they are frames; takes the
# numbers of its table and of the chunk in it.
StoredChunks = Callable[[int, int], tuple[int, Sequence[int]]]
# Adds a chunk of a plan by its number; takes a callback for progress, returns section numbers.
_AddChunk = Callable[[Plan, int, Callable[[int], object]], tuple[int, int | None]]


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
    stored: StoredChunks | None = None,
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
    stored : callable, optional
        Tells of chunks whose blocks are stored already; `blocks` is not called then.

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
        sink, plan.key, plan.header_room, attempt=plan.digest, alignment=plan.alignment,
        check=check_inputs,
    ) as writer:  # fmt: skip
        if sink.resumes:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        add_chunk: _AddChunk = partial(_add_encoded, writer, blocks)
        if stored is not None:
            add_chunk = partial(_add_stored, writer, stored)
        written = _write_tables(plan, add_chunk, writer, reporter)
        excess = 0 if plan.size_limit is None else writer.end_bytes - plan.size_limit
        if excess > 0:
            reporter.say(f"{excess} bytes over --size: rows compress less than their sample")
            writer.discard()
            return excess
        tables, encodings = written
        sections = tuple(writer.sections)
        writer.commit(Header(
            tables, encodings, sections, PRODUCER, alignment=plan.alignment,
            provenance=plan.provenance.to_text(),
        ))  # fmt: skip
    return 0


def _write_tables(
    plan: PackPlan, add_chunk: _AddChunk, writer: PackWriter, reporter: Reporter
) -> tuple[tuple[Table, ...], tuple[Encoding, ...]]:
    tables, encodings = [], list[Encoding]()
    for one in plan.tables:
        first = len(writer.sections)
        for array in one.arrays:
            _add_array(writer, array, first)
        left = sum(table.predicted_bytes for table in plan.tables[one.number :])
        writer.expect(max(0, left - (writer.end_bytes if not one.number else 0)))
        chunks = _write_chunks(one, add_chunk, reporter)
        tables.append(one.placed_table(first, len(encodings), chunks))
        encodings += one.placed_encodings(first)
    return tuple(tables), tuple(encodings)


def _add_array(writer: PackWriter, array: PlannedArray, first_section: int) -> None:
    coder = placed_coder(array.coder, first_section)
    if coder is None:
        writer.add_array(array.kind, array.values.load)
    else:
        writer.add_entropy_coded_basis(lambda: array.values.load().tobytes(), array.shape, coder)


def _write_chunks(plan: Plan, add_chunk: _AddChunk, reporter: Reporter) -> list[Chunk]:
    written = []
    kept = len(plan.table.kept_fields)
    with reporter.phase("encoding", plan.rows * kept, "rows") as done:
        for number, chunk in enumerate(plan.chunks):
            section, index = add_chunk(plan, number, done)
            written.append(Chunk(chunk.rows, chunk.encoding, section, index))
    return written


def _add_encoded(
    writer: PackWriter, blocks: ChunkBlocks, plan: Plan, number: int,
    done: Callable[[int], object],
) -> tuple[int, int | None]:  # fmt: skip
    chunk = plan.chunks[number]
    made = partial(blocks, plan.number, number, done)
    return writer.add_chunk(plan.encodings[chunk.encoding], chunk.first_slot, made, plan.number)


def _add_stored(
    writer: PackWriter, stored: StoredChunks, plan: Plan, number: int,
    done: Callable[[int], object],
) -> tuple[int, int | None]:  # fmt: skip
    chunk = plan.chunks[number]
    size, lengths = stored(plan.number, number)
    done(chunk.rows * len(plan.table.kept_fields))
    return writer.add_stored_chunk(
        plan.encodings[chunk.encoding], chunk.first_slot, size, lengths, plan.number
    )
