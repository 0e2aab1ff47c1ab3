"""Part files of a plan: made by workers or in this process, found again, and read back.

A part file that is there already is taken if it says that it is of this plan, and its digest is its
name. So a build that was interrupted, wherever it ran, makes only what is missing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tolpack.compress.build_job import BuildJob
from tolpack.compress.part_tasks import (
    check_part,
    checked_part,
    encode_part,
    make_part,
    read_candidate,
)
from tolpack.container.parts.check_pieces import LENGTH_BYTES
from tolpack.container.parts.layout import RowRun
from tolpack.container.parts.manifest import PART_SUFFIX, PartFile, Piece
from tolpack.container.parts.part_file import PartHeader
from tolpack.runtime.array_types import Buffer, Ints
from tolpack.runtime.progress import Reporter
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.storage.locations import absolute
from tolpack.workspace.jobs import JOB_SUFFIX, store_job
from tolpack.workspace.run_tasks import Workers, run_tasks

# Small reads of a folder that are made at once.
_READS_AT_ONCE = 16
# Bytes that are read back together.
_COPY_BYTES = 4 << 20


def make_parts(
    job: BuildJob,
    folder: Folder,
    sources: Sequence[TableSource],
    workers: Workers | None,
    reporter: Reporter,
) -> list[PartFile]:
    """Make all part files of `job` that hold rows, and return them in order.

    Parameters
    ----------
    job : BuildJob
        What to make.
    folder : Folder
        Where part files go, or are already.
    sources : sequence of TableSource
        The tables, for this process.
    workers : Workers or None
        Who makes them; ``None``: this process.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    TolpackError
        As of `tolpack.compress.part_tasks.encode_part` and `run_tasks`.
    """
    made = _valid_parts(job, folder, workers, reporter)
    missing = [number for number in range(len(job.parts)) if number not in made]
    if made:
        reporter.say(f"{len(made)} of {len(job.parts)} part files are there already")
    work = sum(map(job.work, missing))
    with reporter.phase("encoding", work, "rows") as done:
        if workers is None:
            for number in missing:
                made[number] = make_part(job, folder, sources, number, done)
        elif missing:

            def take(number: int, file: PartFile) -> None:
                made[missing[number]] = file
                done(job.work(missing[number]))

            digest, attempt = store_job(job, folder), uuid.uuid4().hex
            calls = [(absolute(folder.location), digest, number, attempt) for number in missing]
            run_tasks(workers, encode_part, calls, take, reporter)
            folder.delete(digest + JOB_SUFFIX)
    return [made[number] for number in range(len(job.parts))]


def _valid_parts(
    job: BuildJob, folder: Folder, workers: Workers | None, reporter: Reporter
) -> dict[int, PartFile]:
    """Return the part files of `job` that are in the folder and undamaged, by their number."""
    candidates = list(_candidates(job, folder).items())
    found: dict[int, PartFile] = {}

    def take(number: int, file: PartFile | None) -> None:
        if file is not None:
            found[candidates[number][0]] = file

    if workers is None:
        for place, (_, name) in enumerate(candidates):
            take(place, checked_part(folder, name))
    else:
        attempt = uuid.uuid4().hex
        calls = [(absolute(folder.location), name, attempt) for _, name in candidates]
        run_tasks(workers, check_part, calls, take, reporter)
    return found


def _candidates(job: BuildJob, folder: Folder) -> dict[int, str]:
    """Return the files that say that they are part files of `job`: number → name."""
    names = [name for name in folder.names() if name.endswith(PART_SUFFIX)]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        headers = pool.map(partial(read_candidate, folder), names)
        return {
            header.index: name
            for name, header in zip(names, headers)
            if header is not None and _is_of(job, header)
        }


def _is_of(job: BuildJob, header: PartHeader) -> bool:
    if header.index >= len(job.parts):  # that of arrays and indexes is made again
        return False
    held = [(piece.section, piece.table, piece.first_row, piece.rows) for piece in header.pieces]
    wanted = [_described(run) for run in job.parts[header.index]]
    return (header.pack_id, header.count, header.plan, held) == (
        job.pack_id, job.count, job.plan_digest, wanted
    )  # fmt: skip


def _described(run: RowRun) -> tuple[int, int, int, int]:
    return run.chunk.chunk.blocks, run.chunk.table, run.first_slot, run.rows


@dataclass(frozen=True, slots=True)
class MadeParts:
    """Part files of `job`, in order, as a writer reads them back."""

    job: BuildJob
    folder: Folder
    files: Sequence[PartFile]

    def blocks(self, table: int, number: int, done: Callable[[int], object]) -> Iterator[Buffer]:
        """Yield the blocks of a chunk: see `tolpack.compress.encode.ChunkBlocks`."""
        fields = len(self.job.plan.tables[table].table.kept_fields)
        for file, piece, run in self._pieces(table, number):
            lengths = self._lengths(file, piece, run) if run.chunk.framed else None
            yield from _read_blocks(self.folder, file, piece, lengths)
            done(run.rows * fields)

    def chunk(self, table: int, number: int) -> tuple[int, Sequence[int]]:
        """Return the bytes and lengths of a chunk's blocks: see
        `tolpack.compress.write.StoredChunks`.
        """
        pieces = self._pieces(table, number)
        size = sum(piece.length_bytes for _, piece, _ in pieces)
        if not pieces[0][2].chunk.framed:
            return size, ()
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            lengths = list(pool.map(lambda one: self._lengths(*one), pieces))
        return size, np.concatenate(lengths).tolist()

    def _pieces(self, table: int, number: int) -> list[tuple[PartFile, Piece, RowRun]]:
        return [
            (file, piece, run)
            for file, runs in zip(self.files, self.job.parts)
            for piece, run in zip(file.pieces, runs)
            if (run.chunk.table, run.chunk.number) == (table, number)
        ]

    def _lengths(self, file: PartFile, piece: Piece, run: RowRun) -> Ints:
        """Return the lengths of a piece's frames, int64 (blocks,)."""
        size = LENGTH_BYTES * run.chunk.blocks(run.rows)
        data = self.folder.read(file.name, int(piece.lengths_offset_bytes or 0), size)
        return np.frombuffer(data, "<u4").astype(np.int64)


def _read_blocks(
    folder: Folder, file: PartFile, piece: Piece, lengths: Ints | None
) -> Iterator[Buffer]:
    """Yield the bytes of a piece: many blocks together, or frame by frame."""
    if lengths is None:
        for start in range(0, piece.length_bytes, _COPY_BYTES):
            size = min(_COPY_BYTES, piece.length_bytes - start)
            yield folder.read(file.name, piece.offset_bytes + start, size)
        return
    ends, first = lengths.cumsum(), 0
    while first < len(ends):
        start = int(ends[first] - lengths[first])
        stop = max(first + 1, int(np.searchsorted(ends, start + _COPY_BYTES, "right")))
        data = folder.read(file.name, piece.offset_bytes + start, int(ends[stop - 1]) - start)
        cuts = [0, *(ends[first:stop] - start).tolist()]
        yield from (data[a:b] for a, b in zip(cuts, cuts[1:]))
        first = stop
