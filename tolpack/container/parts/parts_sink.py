"""`PartsSink`: where `tolpack.container.writer.PackWriter` writes a pack whose blocks are in part
files already.

Arrays and indexes become the last part file. `PartsSink.commit` creates the manifest, which fails
if there is one: a reader sees all of a pack or nothing, and of two writers one succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tolpack.container.byte_sink import ByteSink
from tolpack.container.header import Section
from tolpack.container.parts.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    PartFile,
    parse_manifest,
)
from tolpack.container.parts.part_file import PartWriter
from tolpack.container.parts.parts_source import read_manifest_header
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.array_types import Buffer
from tolpack.storage.folder import AlreadyExistsError, Folder


class PartsSink(ByteSink):
    """See the module.

    Parameters
    ----------
    folder : Folder
        Holds the part files, and gets the manifest.
    files : sequence of PartFile
        Those with blocks.
    last : PartWriter, optional
        Of the part file for arrays and indexes, where the pack has any.
    replace : bool
        Whether a manifest that is there is replaced.
    alignment : int
        Sections of the pack begin at multiples of so many bytes.
    """

    resumes = False

    def __init__(
        self,
        folder: Folder,
        files: Sequence[PartFile],
        last: PartWriter | None,
        *,
        replace: bool = False,
        alignment: int = SECTION_ALIGNMENT,
    ) -> None:
        self.name = folder.file_location(MANIFEST_NAME)
        self.finished: list[Section] = []
        self._folder, self._files, self._replace = folder, list(files), replace
        self._last, self._alignment = last, alignment

    def begin(self, attempt: int) -> None:
        """See `ByteSink`: what is continued are part files, by who makes them."""
        if self._last is not None:
            self._last.__enter__()

    def write(self, offset: int, parts: Iterable[Buffer]) -> int:
        """See `ByteSink`: the zeros before a section are stored nowhere."""
        data = b"".join(bytes(part) for part in parts)
        if self._last is None:
            raise FileAccessError(f"{self.name}: a section more than were announced")
        self._last.add(len(self.finished), [data[align(offset, self._alignment) - offset :]])
        return len(data)

    def note(self, section: Section) -> None:
        """See `ByteSink`."""
        self.finished.append(section)

    def read(self, offset: int, length: int) -> bytes:
        """See `ByteSink`: nothing is read back, as nothing is continued."""
        raise FileAccessError(f"{self.name}: bytes {offset} … {offset + length} were not kept")

    def commit(self, size: int, start: bytes) -> None:
        """See `ByteSink`.

        Raises
        ------
        FileAccessError
            There is another manifest, unless it may be replaced.
        """
        files = self._files if self._last is None else [*self._files, self._last.commit()]
        manifest = Manifest(start[:PREAMBLE_BYTES], start[PREAMBLE_BYTES:], tuple(files))
        read_manifest_header(manifest)
        publish_manifest(self._folder, manifest, replace=self._replace)

    def discard(self) -> None:
        """See `ByteSink`: the part files are removed, unless a pack that is there has them too."""
        named = named_files(self._folder)
        for file in self._files:
            if file.name not in named:
                self._folder.delete(file.name)

    def close(self, *, failed: bool) -> None:
        """See `ByteSink`."""
        if self._last is not None:
            self._last.__exit__()

    def sync(self) -> None:
        """See `ByteSink`: a part file is synced once it is complete."""

    def forget(self, count: int) -> None:
        """See `ByteSink`."""
        del self.finished[count:]

    def expect(self, size: int) -> None:
        """See `ByteSink`: the blocks are there already."""


def named_files(folder: Folder) -> set[str]:
    """Return the names of the part files that the manifest of `folder` names, if there is one.

    Raises
    ------
    FormatError
        It is damaged.
    """
    if folder.size(MANIFEST_NAME) is None:
        return set()
    manifest = parse_manifest(folder.read_whole(MANIFEST_NAME, MAX_MANIFEST_BYTES))
    return {file.name for file in manifest.files}


def publish_manifest(folder: Folder, manifest: Manifest, *, replace: bool = False) -> None:
    """Store a manifest whose part files are in `folder`: the pack is there from now on.

    Raises
    ------
    FileAccessError
        There is another manifest, unless it may be replaced.
    """
    data = manifest.to_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        raise ConfigError(
            f"the manifest takes {len(data):,} bytes, but the format allows "
            f"{MAX_MANIFEST_BYTES:,}: make the parts larger"
        )
    if replace:
        with folder.temporary() as path:
            path.write_bytes(data)
            folder.put(MANIFEST_NAME, path)
        return
    try:
        folder.create(MANIFEST_NAME, data)
    except AlreadyExistsError as error:
        if folder.read_whole(MANIFEST_NAME, MAX_MANIFEST_BYTES) != data:
            raise FileAccessError(
                f"{folder.file_location(MANIFEST_NAME)} exists, and is of another pack: use "
                "--force to replace it, or another folder"
            ) from error
