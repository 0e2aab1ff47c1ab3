"""Bases of table sources whose fields all have one width and one dtype.

``vocab_size``, ``num_layers``, ``hidden_size`` and ``dtype`` mean something for such tables only.
They follow from ``rows`` and ``fields`` here. A source with fields of several widths would
implement `TableSource` by itself.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Self

import torch

from tolpack.container.provenance import StoredWeights
from tolpack.ngrams import NGramHash
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.protocol import (
    FieldRows,
    SourceField,
    StoredRows,
    TableSource,
    TransformersFolder,
    encoded_rows,
)
from tolpack.sources.table_limits import check_limits


class UniformTable:
    """A source of equal fields, without any of the optional capabilities.

    Parameters
    ----------
    rows : int
        Number of token ids, or of rows of hashed n-grams.
    fields : sequence of SourceField
        One at least.
    name : str
        Name of the table in a pack.

    Raises
    ------
    CheckpointError
        A pack cannot hold the table: see `check_limits`.
    """

    checkpoint: Checkpoint | None = None
    transformers_model: TransformersFolder | None = None
    fields_compensate = False
    compute = torch.float32
    ffn_bytes: int | None = None
    inner_size = 0
    weight_bytes = 0
    ngrams: NGramHash | None = None

    def __init__(self, rows: int, fields: Sequence[SourceField], name: str = "tol") -> None:
        check_limits(name, rows, fields)
        self.name, self.rows, self.fields = name, rows, tuple(fields)

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        raise NotImplementedError

    def stored_rows(self, field: int) -> StoredRows:
        """See `TableSource.stored_rows`: the floats of `field_rows`."""
        return encoded_rows(self.field_rows(field), self.fields[field])

    def computed_in(self, compute: torch.dtype) -> Self:
        """See `TableSource.computed_in`; nothing is multiplied here."""
        return self

    def digest(self, settings: str = "") -> bytes:
        """Return 32 bytes that differ if the name, the rows, a field, the n-gram hash or `settings`
        do, for the `fingerprint`.
        """
        named = hashlib.sha256(f"{self.name!r} {self.rows} {self.fields} {settings}".encode())
        if self.ngrams is not None:
            named.update(_ngram_bytes(self.ngrams))
        return named.digest()

    @property
    def replaced(self) -> StoredWeights | None:
        """See `TableSource.replaced`: the table as it is stored."""
        stored = [field.part.row_bytes for field in self.fields]
        dtypes = dict.fromkeys(f.codes.codec if f.codes else f.dtype for f in self.fields)
        values = self.rows * sum(field.width for field in self.fields)
        return StoredWeights(values, self.rows * sum(stored), ", ".join(dtypes))

    @property
    def vocab_size(self) -> int:
        """Number of rows."""
        return self.rows

    @property
    def num_layers(self) -> int:
        """Number of fields."""
        return len(self.fields)

    @property
    def hidden_size(self) -> int:
        """Width of every field."""
        return self.fields[0].width

    @property
    def dtype(self) -> str:
        """What the values of every field are exact in."""
        return self.fields[0].dtype


def _ngram_bytes(ngrams: NGramHash) -> bytes:
    """Return bytes that differ if any setting of an n-gram hash does."""
    names = ("mixing", "orders", "sizes", "offsets", "multipliers", "pad", "boundary")
    settings = repr([getattr(ngrams, name) for name in names]).encode()
    ids = ngrams.compressed_ids
    return settings if ids is None else settings + ids.astype("<u4").tobytes()


class DerivedTable(UniformTable):
    """A table made from another one, with its fields and capabilities; a subclass changes rows.

    Parameters
    ----------
    source : TableSource
        The other table.
    """

    def __init__(self, source: TableSource) -> None:
        self._source = source
        self.name = source.name
        self.ngrams = source.ngrams
        self.rows = source.rows
        self.fields = source.fields
        self.checkpoint = source.checkpoint
        self.transformers_model = source.transformers_model
        self.fields_compensate = source.fields_compensate
        self.compute = source.compute
        self.ffn_bytes = source.ffn_bytes
        self.inner_size = source.inner_size
        self.weight_bytes = source.weight_bytes

    @property
    def stored_bytes(self) -> int:
        """See `TableSource.stored_bytes`."""
        return self._source.stored_bytes

    @property
    def replaced(self) -> StoredWeights | None:
        """See `TableSource.replaced`."""
        return self._source.replaced

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        return self._source.field_rows(field)

    def stored_rows(self, field: int) -> StoredRows:
        """See `TableSource.stored_rows`."""
        return self._source.stored_rows(field)

    def computed_in(self, compute: torch.dtype) -> Self:
        """See `TableSource.computed_in`."""
        source = self._source.computed_in(compute)
        if source is self._source:
            return self
        other = copy.copy(self)
        other._source, other.compute = source, compute
        return other

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`."""
        self._source.check(done)

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._source.check_unchanged()

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`."""
        return self._source.fingerprint()

    def sampled_fingerprint(self) -> bytes:
        """See `TableSource.sampled_fingerprint`."""
        return self._source.sampled_fingerprint()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        return self._source.describe()
