"""Writing a planned pack: atomically, resumably, and never larger than ``--size`` allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import compress, compress_runs
from tolpack.codecs.record import record_layout
from tolpack.compress.encode import ChunkRecords
from tolpack.compress.plan import Plan
from tolpack.container.header import Chunk
from tolpack.container.writer import PackWriter
from tolpack.runtime.progress import Reporter


@dataclass(frozen=True, slots=True)
class PackFile:
    """Where a pack goes.

    ``check`` raises if the inputs are no longer those of the plan; ``resume`` continues what an
    interrupted build of the same plan left; without ``replace``, nothing may have the name.
    """

    path: Path
    check: Callable[[], None]
    replace: bool = True
    resume: bool = False


def write(plan: Plan, chunks: ChunkRecords, file: PackFile, reporter: Reporter) -> int:
    """Write the pack of `plan`.

    Parameters
    ----------
    plan : Plan
        The plan.
    chunks : callable
        Gives the records of a chunk; see `tolpack.compress.encode`. Called only for chunks that an
        interrupted build had not written already.
    file : PackFile
        Where it goes.
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
        file.path, plan.key, plan.header_room, resume=file.resume, attempt=plan.reserve_bytes,
        replace=file.replace, check=file.check,
    ) as writer:  # fmt: skip
        if file.resume:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        for array in plan.arrays:
            writer.add_array(array.kind, array.values.load, array.part)
        writer.expect(max(0, plan.predicted_bytes - writer.end_bytes))
        written = _write_chunks(plan, chunks, writer, reporter)
        excess = 0 if plan.size_limit is None else writer.end_bytes - plan.size_limit
        if excess > 0:
            reporter.say(f"{excess} bytes over --size: cold rows compress less than their sample")
            writer.discard()
            return excess
        writer.commit(plan.header(written, writer.sections))
    return 0


def _write_chunks(
    plan: Plan, records: ChunkRecords, writer: PackWriter, reporter: Reporter
) -> list[Chunk]:
    written = []
    with reporter.phase("encoding", plan.rows * len(plan.kept_layers), "rows") as done:
        for number, chunk in enumerate(plan.chunks):
            encoding = plan.encodings[chunk.encoding]
            blocks, index = writer.add_chunk(
                encoding, chunk.first_slot, partial(records, number, done), _compressor(encoding)
            )
            written.append(Chunk(chunk.rows, chunk.encoding, blocks, index))
    return written


def _compressor(encoding: Encoding) -> Callable[[bytes], bytes]:
    if encoding.frame == "zstd-runs":
        return partial(compress_runs, record_layout(encoding.fields).record_bytes)
    return compress
