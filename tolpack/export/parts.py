"""One file into parts, and back: the same pack, bit for bit.

Both compare every checksum of what they copy. What they write appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tolpack.container.atomic_write import check_output, replacing
from tolpack.container.index import FRAMES_PER_INDEX_BLOCK
from tolpack.container.parts.check_pieces import ChunkRun, chunk_runs
from tolpack.container.parts.layout import DEFAULT_PART_SIZE, RowRun, cut, other_sections
from tolpack.container.parts.manifest import MANIFEST_NAME, Manifest, PartFile
from tolpack.container.parts.part_file import PartHeader, PartWriter
from tolpack.container.parts.parts_sink import publish_manifest
from tolpack.container.parts.parts_source import local_files
from tolpack.container.preamble import PREAMBLE_BYTES
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Buffer
from tolpack.runtime.progress import Reporter
from tolpack.runtime.sizes import parse_bytes
from tolpack.storage.folder import Folder
from tolpack.storage.inputs import local_output
from tolpack.storage.locations import Location, local_path, open_folder
from tolpack.version import PRODUCER

# Bytes that are copied together.
_COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class PartsResult:
    """A pack in parts: where its manifest is, how many part files there are, and their bytes."""

    manifest: str
    files: int
    bytes: int


def split(
    pack: Location,
    folder: Location,
    *,
    part_size: str | int = DEFAULT_PART_SIZE,
    force: bool = False,
    reporter: Reporter | None = None,
) -> PartsResult:
    """Write a pack as part files and a manifest that names them.

    Parameters
    ----------
    pack : str or Path
        The pack; one that is in parts already is cut again.
    folder : str or Path
        Gets the part files and ``manifest.json``; it is made if it does not exist.
    part_size : str or int
        Bytes of a part file, about: ``"256MB"``, or a number.
    force : bool
        Replace a manifest that is there. Part files are never replaced: their names say what they
        hold.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    PartsResult
        What was written.

    Raises
    ------
    ConfigError
        The part size cannot be used, or a manifest is there.
    FileAccessError, FormatError
        The pack cannot be read or is damaged, or the folder cannot be written.
    """
    reporter, size = reporter or Reporter(), parse_bytes(part_size, "--part-size")
    target = open_folder(folder)
    refuse_manifest(target, force=force)
    with closing(Container.open(pack)) as container:
        container.source.expect_order(sequential=True)
        header, preamble = container.header, container.preamble
        runs, others = cut(header, size), other_sections(header)
        count = len(runs) + bool(others)
        with reporter.phase("splitting", preamble.file_length, "B") as done:
            files: list[PartFile] = []
            for number, some in enumerate(runs):
                described = PartHeader(preamble.pack_id, number, count, ())
                with PartWriter(target, described, PRODUCER, len(some)) as writer:
                    for run in some:
                        _add_rows(writer, container, run, done)
                    files.append(writer.commit())
            if others:
                described = PartHeader(preamble.pack_id, len(runs), count, ())
                with PartWriter(target, described, PRODUCER, len(others)) as writer:
                    for section in others:
                        writer.add(section, _section_bytes(container, section, done))
                    files.append(writer.commit())
        start = bytes(container.source.read(0, PREAMBLE_BYTES + preamble.header_length))
        manifest = Manifest(start[:PREAMBLE_BYTES], start[PREAMBLE_BYTES:], tuple(files))
    publish_manifest(target, manifest, replace=force)
    return PartsResult(
        target.file_location(MANIFEST_NAME), count, sum(file.length_bytes for file in files)
    )


def join(
    folder: Location,
    pack: str | Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
) -> int:
    """Write a pack that is in parts as one file.

    Parameters
    ----------
    folder : str or Path
        The manifest, or the folder that holds it.
    pack : str or Path
        The file.
    force : bool
        Replace an existing file.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    ConfigError
        The output exists, or cannot be one.
    FileAccessError, FormatError
        The parts cannot be read or are damaged, or the file cannot be written.
    """
    reporter, path = reporter or Reporter(), local_output(pack)
    check_output(path)
    if path.exists() and not force:
        raise ConfigError(f"output {path} exists: use --force to replace it, or another name")
    with closing(Container.open(folder)) as container:
        check_output(path, _read_files(folder, container))
        container.source.expect_order(sequential=True)
        size = container.preamble.file_length
        with (
            replacing(path, size, replace=force) as file,
            reporter.phase("joining", size, "B") as done,
        ):
            file.write(container.source.read(0, PREAMBLE_BYTES + container.preamble.header_length))
            for number, section in enumerate(container.header.sections):
                file.seek(section.offset_bytes)
                for data in _section_bytes(container, number, done):
                    file.write(data)
    return size


def _read_files(location: Location, container: Container) -> list[Path]:
    """Return the files that a pack is read from, as far as they are on this machine."""
    path = local_path(location)
    if path is None:
        return []
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    return [manifest, *local_files(path, container.source)]


def refuse_manifest(folder: Folder, *, force: bool) -> None:
    """Raise `ConfigError` if `folder` holds a manifest and `force` is false."""
    if not force and folder.size(MANIFEST_NAME) is not None:
        raise ConfigError(
            f"{folder.file_location(MANIFEST_NAME)} exists: use --force to replace it, or another "
            "folder"
        )


def _add_rows(
    writer: PartWriter, container: Container, run: RowRun, done: Callable[[int], object]
) -> None:
    """Add a piece with the blocks of some rows of a chunk."""
    first = run.first // run.chunk.rows_per_block
    blocks = _blocks(container, run.chunk, first, first + run.chunk.blocks(run.rows), done)
    writer.add_blocks(
        run.chunk.chunk.blocks, run.chunk.table, run.first_slot, run.rows, blocks,
        framed=run.chunk.framed,
    )  # fmt: skip


def _section_bytes(
    container: Container, number: int, done: Callable[[int], object]
) -> Iterator[Buffer]:
    """Yield the checked bytes of a section."""
    section = container.header.sections[number]
    if section.kind in ("blocks", "index"):
        runs = chunk_runs(container.header)
        run = next(one for one in runs if number in (one.chunk.blocks, one.chunk.index))
        if section.kind == "blocks":
            yield from _blocks(container, run, 0, run.blocks(run.chunk.rows), done)
            return
        view = container.of_table(run.table)
        for block in range(-(-run.blocks(run.chunk.rows) // FRAMES_PER_INDEX_BLOCK)):
            view.read_index_block(run.number, block)  # checks it
        yield container.source.read(section.offset_bytes, section.length_bytes)
    else:
        yield container.array(number).tobytes()
    done(section.length_bytes)


def _blocks(
    container: Container, run: ChunkRun, first: int, end: int, done: Callable[[int], object]
) -> Iterator[Buffer]:
    """Yield the checked blocks `first` … `end` - 1 of a chunk, each as it is stored."""
    view = container.of_table(run.table)
    while first < end:
        start, length = view.block_extent(run.number, first)
        ends, stop = [length], first + 1
        while stop < end and ends[-1] < _COPY_BYTES:
            offset, length = view.block_extent(run.number, stop)
            ends.append(offset + length - start)
            stop += 1
        data = memoryview(container.source.read(start, ends[-1]))
        blocks = [data[a:b] for a, b in zip([0, *ends], ends)]
        view.check_blocks(run.number, first, blocks)
        yield from blocks
        done(len(data))
        first = stop
