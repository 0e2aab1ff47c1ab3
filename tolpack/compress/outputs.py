"""Where a pack goes, and who encodes it: one file or a folder of parts, here or on workers.

An output is taken over before anything is measured for it, so that two builds do not write the same
one. What it gives then writes the pack of a plan.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from tolpack.compress.build_job import BuildJob
from tolpack.compress.build_parts import MadeParts, make_parts
from tolpack.compress.encode import encode
from tolpack.compress.plan import PackPlan
from tolpack.compress.write import PackFile, write
from tolpack.container.atomic_write import check_output, check_writable, partial_path
from tolpack.container.local_sink import check_unfinished
from tolpack.container.parts.layout import DEFAULT_PART_SIZE
from tolpack.container.parts.manifest import MANIFEST_NAME
from tolpack.container.parts.part_file import PartWriter
from tolpack.container.parts.parts_sink import PartsSink
from tolpack.errors import ConfigError, FileAccessError
from tolpack.export.parts import refuse_manifest
from tolpack.runtime.sizes import parse_bytes
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.storage.inputs import InputPath, input_path, local_output
from tolpack.storage.local_folder import LocalFolder
from tolpack.storage.locations import Location, local_path, open_folder
from tolpack.version import PRODUCER
from tolpack.workspace.jobs import is_build_file, parts_folder
from tolpack.workspace.workspace import Workspace

# Writes the pack of a plan; takes the tables and a workspace, and returns what `write` returns.
WritePack = Callable[[PackPlan, Sequence[TableSource], Workspace], int]
# Part files of a pack that becomes one file: few enough to be small beside it, many enough for
# some dozen workers; but none is smaller or larger than this.
_PARTS, _LEAST_PART_BYTES, _MOST_PART_BYTES = 64, 1 << 20, 256 << 20


class PackOutput(Protocol):
    """See the module."""

    @property
    def location(self) -> Location:
        """Where the pack can be opened."""
        ...

    @property
    def spill_folder(self) -> Path:
        """Where arrays that do not fit in memory may go."""
        ...

    def task_folder(self) -> Folder:
        """Return where jobs and part files go that workers need and make.

        Raises
        ------
        ConfigError
            Another pack is there.
        """
        ...

    def open(self, key: bytes) -> AbstractContextManager[WritePack]:
        """Take the output over for packs of `key`.

        Raises
        ------
        ConfigError, FileAccessError
            It cannot be written, or another build writes it.
        """
        ...

    def afresh(self) -> Self:
        """Return it for another plan: nothing is left to be continued."""
        ...


@dataclass(frozen=True, slots=True)
class FileOutput:
    """One file, encoded by the threads of this process; by workers to part files beside it."""

    file: PackFile

    @property
    def location(self) -> Path:
        """See `PackOutput`."""
        return self.file.path

    @property
    def spill_folder(self) -> Path:
        """See `PackOutput`."""
        return self.file.path.parent

    def task_folder(self) -> LocalFolder:
        """See `PackOutput`: nothing there has to be durable, and it is removed at the end."""
        folder = LocalFolder(parts_folder(self.file.path), is_durable=False)
        if folder.size(MANIFEST_NAME) is not None:
            raise ConfigError(
                f"{folder.location} holds a pack in parts, and is where workers would put theirs: "
                "rename it, or give another -o"
            )
        return folder

    @contextmanager
    def open(self, key: bytes) -> Iterator[WritePack]:
        """See `PackOutput`."""
        with self.file.open(key) as sink:

            def write_pack(
                plan: PackPlan, sources: Sequence[TableSource], workspace: Workspace
            ) -> int:
                check, reporter = self.file.check_inputs, workspace.reporter
                if workspace.workers is None:
                    blocks = encode(plan, sources, workspace)
                    return write(plan, blocks, sink, check, reporter)
                folder = self.task_folder()
                made = _made(plan, sources, folder, _part_bytes(plan), workspace)
                excess = write(plan, made.blocks, sink, check, reporter)
                _remove_parts(folder)
                return excess

            yield write_pack

    def afresh(self) -> FileOutput:
        """See `PackOutput`."""
        return replace(self, file=replace(self.file, resume=False))


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """Part files of about ``part_bytes`` bytes in a folder, and a manifest that is created last."""

    folder: Folder
    part_bytes: int
    check_inputs: Callable[[], None]
    overwrite: bool = False

    @property
    def location(self) -> Location:
        """See `PackOutput`."""
        return self.folder.path if isinstance(self.folder, LocalFolder) else self.folder.location

    @property
    def spill_folder(self) -> Path:
        """See `PackOutput`."""
        if isinstance(self.folder, LocalFolder):
            return self.folder.path.parent
        return Path(tempfile.gettempdir())

    def task_folder(self) -> Folder:
        """See `PackOutput`."""
        return self.folder

    @contextmanager
    def open(self, key: bytes) -> Iterator[WritePack]:
        """See `PackOutput`: several builds may make part files; one creates the manifest."""
        yield self._write_pack

    def afresh(self) -> FolderOutput:
        """See `PackOutput`."""
        return self

    def _write_pack(
        self, plan: PackPlan, sources: Sequence[TableSource], workspace: Workspace
    ) -> int:
        made = _made(plan, sources, self.folder, self.part_bytes, workspace)
        job, last = made.job, None
        if job.count > len(job.parts):
            header = job.part_header(len(job.parts))
            last = PartWriter(self.folder, header, PRODUCER, job.other_sections)
        with PartsSink(
            self.folder, made.files, last, replace=self.overwrite, alignment=plan.alignment
        ) as sink:
            return write(plan, made.blocks, sink, self.check_inputs, workspace.reporter, made.chunk)


def choose_output(
    checkpoint: Location,
    output: Location | None,
    part_size: str | int | None,
    check_inputs: Callable[[], None],
    *,
    force: bool,
    resume: bool,
    inputs: Sequence[str | Path | None],
) -> PackOutput:
    """Return where the pack goes: a folder of parts with a part size, or elsewhere; else a file.

    Raises
    ------
    ConfigError, FileAccessError
        Something would be lost by writing it, or it is not a possible output.
    """
    if part_size is None and (output is None or local_path(output) is not None):
        path = output_path(checkpoint, output, force, inputs)
        return FileOutput(PackFile(path, check_inputs, overwrite=force, resume=resume))
    size = parse_bytes(DEFAULT_PART_SIZE if part_size is None else part_size, "--part-size")
    folder = parts_output(checkpoint, output, force)
    return FolderOutput(folder, size, check_inputs, overwrite=force)


def parts_output(checkpoint: Location, output: Location | None, force: bool) -> Folder:
    """Return the folder that gets the parts of a pack; default: ``NAME.parts`` beside the
    checkpoint.

    Raises
    ------
    ConfigError
        It holds a pack, and `force` is false; or it is a file, or the checkpoint itself.
    FileAccessError
        There is no folder to make it in.
    """
    if output is None:
        output = _default_output(input_path(checkpoint)).with_suffix(".parts")
    folder = open_folder(output)
    if isinstance(folder, LocalFolder):
        path = folder.path
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output {path} is a file, and parts go to a folder: give another -o")
        source = local_path(checkpoint)
        if path.exists() and source is not None and path.samefile(source):
            raise ConfigError(f"output {path} holds the checkpoint: give a folder of its own")
        if not path.parent.is_dir():
            raise FileAccessError(
                f"cannot write {path}: there is no folder {path.parent}; make it, or give another "
                "-o"
            )
    refuse_manifest(folder, force=force)
    return folder


def output_path(
    checkpoint: Location,
    output: Location | None,
    force: bool,
    inputs: Sequence[Location | None] = (),
) -> Path:
    """Return where the pack goes, after checking that nothing is lost by writing it.

    Raises
    ------
    ConfigError
        The output is not a possible file, or is an input, or exists and `force` is false; or an
        input has the name of an unfinished output.
    """
    source = input_path(checkpoint)
    path = _default_output(source) if output is None else local_output(output)
    paths = [input_path(one) for one in (checkpoint, *inputs) if one is not None]
    given = [one for one in paths if isinstance(one, Path)]
    if isinstance(source, Path) and source.is_dir():
        given += [file for file in source.iterdir() if file.suffix != ".tolpack"]
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder: give a file name with -o")
    if not path.parent.is_dir():
        raise FileAccessError(
            f"cannot write {path}: there is no folder {path.parent}; make it, or give another -o"
        )
    check_output(path, given)
    check_unfinished(path, given)
    if os.path.lexists(path) and not force:
        raise ConfigError(f"output {path} exists: use --force to replace it, or another -o")
    check_writable(path)
    return path


def _default_output(source: InputPath) -> Path:
    """``NAME.tolpack`` beside the checkpoint, or in the current folder for one that is elsewhere; a
    dot in a folder's name is not a suffix.
    """
    if isinstance(source, Path) and not source.name:
        source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    return Path(source.parent if isinstance(source, Path) else "", f"{name}.tolpack")


def output_files(checkpoint: Location, output: Location | None) -> tuple[Path, Path]:
    """Return the file that a build writes, and what it is called until it is complete."""
    path = _default_output(input_path(checkpoint)) if output is None else local_output(output)
    return path, partial_path(path)


def _made(
    plan: PackPlan, sources: Sequence[TableSource], folder: Folder, part_bytes: int,
    workspace: Workspace,
) -> MadeParts:  # fmt: skip
    job, found = BuildJob.of(plan, workspace.limits, part_bytes), workspace.workers
    if found is not None:
        job = job.for_workers(found.input, sources, found.limits, is_durable=folder.is_durable)
    workers = None if found is None else found.workers
    return MadeParts(job, folder, make_parts(job, folder, sources, workers, workspace.reporter))


def _part_bytes(plan: PackPlan) -> int:
    """Return the bytes of a part file of a pack that becomes one file: by its size alone."""
    return min(max(plan.predicted_bytes // _PARTS, _LEAST_PART_BYTES), _MOST_PART_BYTES)


def _remove_parts(folder: LocalFolder) -> None:
    """Remove what builds leave in a folder of part files, and the folder, if nothing else is
    there.
    """
    with contextlib.suppress(OSError):
        for path in folder.path.iterdir():
            if is_build_file(path.name):
                path.unlink(missing_ok=True)
        folder.path.rmdir()
