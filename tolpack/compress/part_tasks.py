"""Tasks of workers: one part file is encoded, or one that is there already is checked.

Their names are what the dashboard of an engine shows. Numbers and short texts go in, and the
description of a part file comes back; rows and blocks never pass through a scheduler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing

from tolpack.compress.build_job import BuildJob, open_job
from tolpack.compress.encode import encode_chunk
from tolpack.container.parts.folder_file import FolderFile
from tolpack.container.parts.manifest import PART_SUFFIX, PartFile
from tolpack.container.parts.part_file import PartHeader, PartWriter, read_part_header
from tolpack.errors import TolpackError, memory_errors
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.storage.locations import open_folder
from tolpack.version import PRODUCER
from tolpack.workspace.workers import SharedTorchSettings

_READ_BYTES = 4 << 20
# A process may have several threads that work on tasks.
_torch_settings = SharedTorchSettings()


@memory_errors("give each worker more memory, or run fewer of them on a machine")
def encode_part(location: str, digest: str, number: int, attempt: str) -> PartFile:
    """Encode part file `number` of the job of `digest`, in the folder at `location`.

    `attempt` differs in each build: an engine may remember what an earlier call gave, or raised.

    Raises
    ------
    TolpackError
        As of `tolpack.compress.build_job.open_job`; or the input was changed meanwhile, or the part
        file cannot be written.
    """
    opened = open_job(location, digest)
    with _torch_settings.using(opened.compute):
        return make_part(opened.job, opened.folder, opened.sources, number)


def check_part(location: str, name: str, attempt: str) -> PartFile | None:
    """Return what part file `name`, which is there already, holds; ``None`` if it is damaged.
    `attempt` is as of `encode_part`.
    """
    return checked_part(open_folder(location), name)


def make_part(
    job: BuildJob,
    folder: Folder,
    sources: Sequence[TableSource],
    number: int,
    done: Callable[[int], object] = lambda _: None,
) -> PartFile:
    """Encode a part file of `job` to `folder`; `done` is called with the rows × fields done.

    Raises
    ------
    CheckpointError
        The input was changed meanwhile: then no part file is stored.
    FileAccessError
        It cannot be written.
    """
    runs = job.parts[number]
    with PartWriter(folder, job.part_header(number), PRODUCER, len(runs)) as writer:
        for run in runs:
            table, chunk = run.chunk.table, run.chunk.number
            blocks = encode_chunk(
                job.plan.tables[table], sources[table], job.limits, chunk, done, run.first, run.rows
            )
            with closing(blocks):  # which may hold threads
                writer.add_blocks(
                    run.chunk.chunk.blocks, table, run.first_slot, run.rows, blocks,
                    framed=run.chunk.framed,
                )  # fmt: skip
        for source in sources:
            source.check_unchanged()
        return writer.commit()


def checked_part(folder: Folder, name: str) -> PartFile | None:
    """See `check_part`."""
    digest, expected = hashlib.sha256(), name.removesuffix(PART_SUFFIX)
    try:
        with closing(FolderFile(folder, name)) as source:
            for start in range(0, source.size, _READ_BYTES):
                digest.update(source.read(start, min(_READ_BYTES, source.size - start)))
            if digest.hexdigest() != expected:
                return None
            return PartFile(expected, source.size, read_part_header(source).pieces)
    except TolpackError:
        return None


def read_candidate(folder: Folder, name: str) -> PartHeader | None:
    """Return what a file says of itself; ``None`` if it is not a part file, or is unreadable."""
    try:
        with closing(FolderFile(folder, name)) as source:
            return read_part_header(source)
    except TolpackError:
        return None
