"""Writing a planned pack: atomically, resumably, and never larger than ``--size`` allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tolpack.compress.encode import ChunkBlocks
from tolpack.compress.plan import Plan
from tolpack.container.atomic_write import partial_path
from tolpack.container.header import Chunk
from tolpack.container.journal import check_leftover
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

    def check_resumable(self, key: bytes) -> None:
        """Raise `ConfigError` if an unfinished pack cannot be continued under `key`."""
        if self.resume:
            check_leftover(partial_path(self.path), key.hex())


def write(plan: Plan, blocks: ChunkBlocks, file: PackFile, reporter: Reporter) -> int:
    """Write the pack of `plan`.

    Parameters
    ----------
    plan : Plan
        The plan.
    blocks : callable
        Gives the blocks of a chunk; see `tolpack.compress.encode`. Called only for chunks that an
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
        # Another attempt at --size has the same key, and other contents.
        file.path, plan.key, plan.header_room, resume=file.resume, attempt=plan.reserve_bytes,
        replace=file.overwrite, check=file.check_inputs,
    ) as writer:  # fmt: skip
        if file.resume:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        for array in plan.arrays:
            writer.add_array(array.kind, array.values.load, array.part)
        writer.expect(max(0, plan.predicted_bytes - writer.end_bytes))
        written = _write_chunks(plan, blocks, writer, reporter)
        excess = 0 if plan.size_limit is None else writer.end_bytes - plan.size_limit
        if excess > 0:
            reporter.say(f"{excess} bytes over --size: rows compress less than their sample")
            writer.discard()
            return excess
        writer.commit(plan.header(written, writer.sections))
    return 0


def _write_chunks(
    plan: Plan, blocks: ChunkBlocks, writer: PackWriter, reporter: Reporter
) -> list[Chunk]:
    written = []
    with reporter.phase("encoding", plan.rows * len(plan.kept_layers), "rows") as done:
        for number, chunk in enumerate(plan.chunks):
            encoding = plan.encodings[chunk.encoding]
            section, index = writer.add_chunk(
                encoding, chunk.first_slot, partial(blocks, number, done)
            )
            written.append(Chunk(chunk.rows, chunk.encoding, section, index))
    return written
