"""Tables whose rows are stored in another form than a pack's, and are decoded as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tolpack.sources.identity import rows_digest
from tolpack.sources.protocol import SourceField
from tolpack.sources.tensors.joined_table import JoinedTable
from tolpack.sources.tensors.tensor_rows import JoinedRows
from tolpack.sources.tensors.tensor_table import tensor_names


class QuantizedTable(JoinedTable):
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
        super().__init__(name, family, fields, stored)
        self._settings = settings
        self._digests: list[bytes] = []

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`; raises `CheckpointError` also if a file is not the one whose
        SHA-256 stands beside it. Values are checked as they are decoded.
        """
        self._hashes.check(done)
        for rows in self.stored[len(self._digests) :]:
            self._digests.append(rows_digest(rows.rows, rows.row_bytes, rows.block, done))

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
