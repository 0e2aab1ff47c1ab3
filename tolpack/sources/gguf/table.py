"""A table in a GGUF file: one tensor, whose rows are cut into fields.

F32, F16, BF16, Q8_0 and Q4_0 go into a pack bit for bit as they are. Types for which a pack has no
codec, such as Q6_K, are dequantized to float32 a few rows at a time; their values are those that
GGML computes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.errors import CheckpointError, printable
from tolpack.runtime.array_types import Bytes, Floats
from tolpack.sources.gguf.blocks import FLOATS, scales_and_codes, stored_part
from tolpack.sources.gguf.header import GGUFTensor
from tolpack.sources.gguf.package import dequantize, is_dequantized
from tolpack.sources.gguf.row_file import RowFile
from tolpack.sources.identity import FileStates, rows_digest
from tolpack.sources.protocol import FieldRows, StoredRows, check_finite
from tolpack.sources.uniform_table import UniformTable

_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class TableLayout:
    """What a tensor's rows mean.

    Parameters
    ----------
    layers : int
        Fields of a row, of equal width.
    first_layer : int
        The model's layer of the first field.
    multiplier : float
        See `SourceField`.
    """

    layers: int = 1
    first_layer: int = 0
    multiplier: float = 1.0


class GGUFTable(UniformTable):
    """A tensor of a GGUF file as a table; its name is the tensor's.

    Parameters
    ----------
    tensor : GGUFTensor
        Two or more dimensions, of a type that can be read; its place in the file was checked.
    layout : TableLayout
        How its rows are cut.

    Raises
    ------
    CheckpointError
        The type cannot be read, or the shape does not fit.
    """

    def __init__(self, tensor: GGUFTensor, layout: TableLayout) -> None:
        _check_type(tensor)
        width = _field_width(tensor, layout.layers)
        super().__init__(
            tensor.shape[0], layout.layers, width, _DTYPES.get(tensor.kind.name, "float32")
        )
        self.name = tensor.name
        part = stored_part(tensor.kind.name, width)
        self.fields = tuple(
            replace(
                field,
                name=f"layer.{layout.first_layer + field.layer}",
                layer=layout.first_layer + field.layer,
                multiplier=layout.multiplier,
                codes=part,
            )
            for field in self.fields
        )
        self._tensor = tensor
        self._part = part
        self._rows = RowFile(tensor.path, tensor.offset_bytes, self.rows, tensor.row_bytes)
        self._files = FileStates([tensor.path])
        self._digest: bytes | None = None

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        layer = self.fields[field].layer

        def rows(ids: NDArray[np.int64]) -> Floats:
            if self._part is None:
                values = dequantize(self._field_bytes(ids, field), self._tensor.kind)
            else:
                values = decode_values(*self._stored(ids, field, self._part), self._part)
            check_finite(values, ids, layer)
            return values

        return rows

    def stored_rows(self, field: int) -> StoredRows:
        """See `TableSource.stored_rows`; types that were dequantized give their float32 values."""
        part, layer = self._part, self.fields[field].layer
        if part is None:
            return super().stored_rows(field)

        def stored(ids: NDArray[np.int64]) -> tuple[Bytes, Bytes]:
            scales, codes = self._stored(ids, field, part)
            if part.group_size is None:
                check_finite(decode_values(scales, codes, part), ids, layer)
            return scales, codes

        return stored

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self._tensor.nbytes

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`."""
        if self._digest is None:
            row_bytes = self._tensor.row_bytes
            self._digest = rows_digest(self.rows, row_bytes, self._whole_rows, done)

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._files.check()

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: shape, type and every bit of the rows."""
        self.check(lambda size: None)
        shape = (self.rows, self.num_layers, self.hidden_size)
        named = hashlib.sha256(f"{shape} {self._tensor.kind.name}".encode())
        return named.digest() + (self._digest or b"")

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        tensor = self._tensor
        kept = "" if self._part else ", dequantized to float32"
        return [f"{printable(tensor.name)} {list(tensor.shape)} {tensor.kind.name}{kept}"]

    def _stored(self, ids: NDArray[np.int64], field: int, part: Part) -> tuple[Bytes, Bytes]:
        """Scales and codes of rows; the scales are finite."""
        scales, codes = scales_and_codes(self._field_bytes(ids, field), part)
        if part.group_size is not None:
            check_finite(scales.view("<f2").astype(np.float32), ids, self.fields[field].layer)
        return scales, codes

    def _field_bytes(self, ids: NDArray[np.int64], field: int) -> Bytes:
        size = self._tensor.row_bytes // self.num_layers
        return self._rows.take(ids, field * size, (field + 1) * size)

    def _whole_rows(self, start: int, stop: int) -> Bytes:
        return self._rows.take(np.arange(start, stop), 0, self._tensor.row_bytes)


def _field_width(tensor: GGUFTensor, layers: int) -> int:
    """Return the values of a field, or raise `CheckpointError`."""
    name, shape = tensor.name, list(tensor.shape)
    if len(shape) < 2 or min(shape) == 0:
        raise CheckpointError(
            f"tensor {name!r} has shape {shape}, expected rows for tokens: [vocab, values] or "
            "[vocab, layers, values]"
        )
    width, rest = divmod(math.prod(shape[1:]), max(layers, 1))
    if layers < 1 or rest or width % (tensor.kind.block_values or 1):
        raise CheckpointError(
            f"tensor {name!r} has shape {shape} and type {tensor.kind.name}: its rows cannot be "
            f"cut into {layers:,} layers of whole blocks of {tensor.kind.block_values or 1} values"
        )
    return width


def _check_type(tensor: GGUFTensor) -> None:
    if tensor.kind.name in FLOATS or is_dequantized(tensor.kind):
        return
    raise CheckpointError(
        f"tensor {tensor.name!r} is of type {tensor.kind.name}, expected one that the "
        "gguf package dequantizes: install a newer one, or convert the model to another type"
    )
