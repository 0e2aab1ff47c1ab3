"""Tables whose rows are stored in another form than a pack's, and are decoded as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tolpack.sources.identity import FileStates, rows_digest
from tolpack.sources.protocol import SourceField
from tolpack.sources.tensors.recorded_hashes import RecordedHashes
from tolpack.sources.tensors.tensor_rows import JoinedRows, TensorRows
from tolpack.sources.tensors.tensor_table import tensor_names
from tolpack.sources.uniform_table import UniformTable


class QuantizedTable(UniformTable):
    """A table made of the rows of one or more tensors; a subclass says what they stand for.

    Parameters
    ----------
    name : str
        Name of the table in a pack.
    family : str
        The family of models or files, for messages.
    fields : sequence of SourceField
        One at least, of equal widths.
    stored : sequence of JoinedRows
        All with as many rows as the table.
    settings : str
        Everything else that values depend on, for the fingerprint.
    """

    def __init__(
        self, name: str, family: str, fields: Sequence[SourceField],
        stored: Sequence[JoinedRows], settings: str,
    ) -> None:  # fmt: skip
        super().__init__(stored[0].rows, fields, name)
        self.family, self.stored = family, tuple(stored)
        self._settings = settings
        paths = {part.path for part in self.parts}
        self._files = FileStates(paths)
        self._hashes = RecordedHashes(self._files, sorted(paths))
        self._digests: list[bytes] = []

    @property
    def parts(self) -> tuple[TensorRows, ...]:
        """The tensors that hold the rows."""
        return tuple(part for rows in self.stored for part in rows.parts)

    @property
    def stored_bytes(self) -> int:
        """See `TableSource.stored_bytes`."""
        return sum(rows.nbytes for rows in self.stored) + self._hashes.nbytes

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`; raises `CheckpointError` also if a file is not the one whose
        SHA-256 stands beside it. Values are checked as they are decoded.
        """
        self._hashes.check(done)
        for rows in self.stored[len(self._digests) :]:
            self._digests.append(rows_digest(rows.rows, rows.row_bytes, rows.block, done))

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._files.check()

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: name, fields, settings, hash and every bit of the rows."""
        self.check(lambda size: None)
        return self.digest(self._settings) + b"".join(self._digests)

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        lines = [f"family: {self.family}"]
        for rows in self.stored:
            names = tensor_names([part.name for part in rows.parts])
            lines.append(f"{names}  {rows.rows} rows of {rows.row_bytes} bytes, {rows.dtype}")
        return lines + self._hashes.describe()
