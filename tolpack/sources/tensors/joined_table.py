"""What tables have in common whose rows stand in tensors of files."""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.sources.identity import FileStates
from tolpack.sources.protocol import SourceField
from tolpack.sources.tensors.recorded_hashes import RecordedHashes
from tolpack.sources.tensors.tensor_rows import JoinedRows, TensorRows
from tolpack.sources.uniform_table import UniformTable


class JoinedTable(UniformTable):
    """A table whose rows stand in tensors.

    ``_settings``: everything else that values depend on, for fingerprints.

    Parameters
    ----------
    name : str
        Name of the table in a pack.
    family : str
        The family of models or files, for messages.
    fields : sequence of SourceField
        One at least.
    stored : sequence of JoinedRows
        The rows that fields are columns of, each once; the first has as many as the table.
    files : FileStates, optional
        The files as they were when opened; default: as they are.
    """

    _settings = ""

    def __init__(
        self, name: str, family: str, fields: Sequence[SourceField], stored: Sequence[JoinedRows],
        files: FileStates | None = None,
    ) -> None:  # fmt: skip
        super().__init__(stored[0].rows, fields, name)
        self.family, self.stored = family, tuple(stored)
        paths = tuple(dict.fromkeys(part.path for part in self.parts))
        self._files = FileStates(paths) if files is None else files
        self._hashes = RecordedHashes(self._files, paths)

    @property
    def parts(self) -> tuple[TensorRows, ...]:
        """The tensors that hold the rows."""
        return tuple(part for rows in self.stored for part in rows.parts)

    @property
    def stored_bytes(self) -> int:
        """See `TableSource.stored_bytes`."""
        return sum(rows.nbytes for rows in self.stored) + self._hashes.nbytes

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._files.check()

    def sampled_fingerprint(self) -> bytes:
        """See `TableSource.sampled_fingerprint`."""
        return self.digest(self._settings) + self._files.sampled_digest()
