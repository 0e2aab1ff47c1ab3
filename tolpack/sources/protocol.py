"""The interface of a table source, whatever its rows are made of.

A source gives float32 rows for any list of token ids, one layer at a time, and never holds the
whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.registry import CODECS
from tolpack.container.provenance import StoredWeights
from tolpack.errors import CheckpointError
from tolpack.ngrams import NGramHash
from tolpack.runtime.array_types import Bytes
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.storage.inputs import InputPath

FieldRows = Callable[[NDArray[np.int64]], NDArray[np.float32]]
# Scales uint8 (n, scale bytes) and codes uint8 (n, code bytes) of rows int64 (n,).
StoredRows = Callable[[NDArray[np.int64]], tuple[Bytes, Bytes]]

# The codec that holds the values of each dtype bit for bit.
FLOAT_CODECS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class SourceField:
    """One field of a table: `width` values in each row.

    ``layer`` is the layer of the model that reads it. ``dtype`` is ``"float32"``, ``"float16"`` or
    ``"bfloat16"``: what the values are exact in. ``multiplier`` is a constant by which the model
    multiplies the values, such as √256 in Gemma's per-layer embeddings; rows that a source gives
    are not multiplied by it yet. ``codes`` is how the values are stored where that is not plain
    ``dtype``: a codec, its group size and its step.
    """

    name: str
    layer: int
    width: int
    dtype: str
    multiplier: float = 1.0
    codes: Part | None = None

    @property
    def part(self) -> Part:
        """How a pack holds the values bit for bit as they are stored."""
        return self.codes or Part(FLOAT_CODECS[self.dtype], self.width)


@dataclass(frozen=True, slots=True)
class TransformersFolder:
    """A folder with a whole model that transformers can run, beside its tables.

    ``other_values``: values of its tensors that belong to no table.
    """

    path: InputPath
    other_values: int


class TableSource(Protocol):
    """A table of ``rows`` rows, one for each token id, whose values are in several ``fields``.

    Capabilities that only some sources have are attributes too, with a neutral value in the others:
    ``checkpoint``, ``transformers_model``, ``fields_compensate``, ``compute`` and `computed_in`,
    ``ffn_bytes``, ``replaced``, ``inner_size``, ``weight_bytes`` and ``ngrams``. So no user has to
    ask what kind of source it has.
    """

    @property
    def name(self) -> str:
        """Name of the table in a pack."""
        ...

    @property
    def rows(self) -> int:
        """Number of token ids."""
        ...

    @property
    def fields(self) -> tuple[SourceField, ...]:
        """What a row is made of, in the order of a pack's fields."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files that rows depend on, which `check` reads."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model that the reference decoder can run to measure losses; ``None`` for others."""
        ...

    @property
    def transformers_model(self) -> TransformersFolder | None:
        """The folder from which transformers can run the model; ``None`` where it cannot."""
        ...

    @property
    def fields_compensate(self) -> bool:
        """Whether fields can make up for one another's errors, because what becomes of them is
        added to one stream.
        """
        ...

    @property
    def compute(self) -> torch.dtype:
        """Dtype of the operands of matrix products; float32 where there are none."""
        ...

    @property
    def ffn_bytes(self) -> int | None:
        """Stored bytes of the FFN weights that the table replaces; ``None`` if there are none."""
        ...

    @property
    def replaced(self) -> StoredWeights | None:
        """The weights that a pack stands for: the FFNs of ``ffn_bytes``, or the table itself as it
        is stored; ``None`` where rows are computed from weights that a model keeps.
        """
        ...

    @property
    def inner_size(self) -> int:
        """Inner width of those FFNs; 0 if there are none."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Most bytes of weights that one function of `field_rows` holds; 0 where rows are read.

        They are counted in float32. While weights are loaded they take as much once more.
        """
        ...

    @property
    def ngrams(self) -> NGramHash | None:
        """How token ids become row numbers; ``None`` where a row belongs to a token id."""
        ...

    @property
    def vocab_size(self) -> int:
        """The same as ``rows``."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of fields."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width that all fields have."""
        ...

    @property
    def dtype(self) -> str:
        """Dtype that all fields have."""
        ...

    def field_rows(self, field: int) -> FieldRows:
        """Return a function that maps int64 ids (n,) to the rows of field number `field`, float32
        (n, width).

        Weights are loaded here, once; the function may be called from several threads.
        """
        ...

    def stored_rows(self, field: int) -> StoredRows:
        """Return a function that maps int64 ids (n,) to the scales and codes of their rows, as
        ``fields[field].part`` says; it may be called from several threads.
        """
        ...

    def computed_in(self, compute: torch.dtype) -> TableSource:
        """Return the same table with its matrix products made in `compute`; itself where nothing
        is multiplied.
        """
        ...

    def check(self, done: Callable[[int], object]) -> None:
        """Read everything that rows depend on once, for the `fingerprint`; `done` is called with
        the number of bytes read since the last call.

        Raises
        ------
        CheckpointError
            A weight is NaN or infinite.
        """
        ...

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when it was opened."""
        ...

    def fingerprint(self) -> bytes:
        """Return bytes that differ if the table's name does, or any bit that rows depend on; how
        the bits are stored does not matter.
        """
        ...

    def sampled_fingerprint(self) -> bytes:
        """Return bytes that differ if a setting, or the size or a sample of a file does: what tells
        without reading everything, on another machine or later, that the input is another one.
        """
        ...

    def describe(self) -> list[str]:
        """Return lines that say what was matched, with shapes."""
        ...


def encoded_rows(rows: FieldRows, field: SourceField) -> StoredRows:
    """Return what `TableSource.stored_rows` does for a field whose values are plain floats."""
    codec = CODECS[field.part.codec]
    return lambda ids: codec.encode(rows(ids), None, None)


def check_finite(values: NDArray[np.float32], ids: NDArray[np.int64], layer: int) -> None:
    """Raise `CheckpointError` if rows `values` (n, hidden) of tokens `ids` hold NaN or Inf."""
    finite = np.isfinite(values)
    if not finite.all():
        token = ids[~finite.all(axis=1)][0]
        raise CheckpointError(
            f"the table holds NaN or Inf at token {token}, layer {layer}: repair the checkpoint"
        )
