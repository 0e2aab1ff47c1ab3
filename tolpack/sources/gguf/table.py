"""A table in a GGUF file: one tensor, whose rows are cut into fields.

F32, F16, BF16, Q8_0 and Q4_0 go into a pack bit for bit as they are. Types for which a pack has no
codec, such as Q6_K, are dequantized to float32 a few rows at a time; their values are those that
GGML computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.errors import CheckpointError
from tolpack.ngrams import NGramHash
from tolpack.runtime.array_types import Bytes, Floats
from tolpack.sources.gguf.blocks import FLOATS, scales_and_codes, stored_part
from tolpack.sources.gguf.header import GGUFTensor
from tolpack.sources.gguf.package import dequantize, is_dequantized
from tolpack.sources.protocol import FieldRows, StoredRows, check_finite
from tolpack.sources.table_limits import equal_fields, table_name
from tolpack.sources.tensors.last_rows import LastRows
from tolpack.sources.tensors.quantized_table import QuantizedTable
from tolpack.sources.tensors.tensor_rows import FileRows, JoinedRows, RowsFile

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
    ngrams : NGramHash, optional
        How token ids become row numbers.
    """

    layers: int = 1
    first_layer: int = 0
    multiplier: float = 1.0
    ngrams: NGramHash | None = None


class GGUFTable(QuantizedTable):
    """A tensor of a GGUF file as a table; its name is the tensor's, as a pack can hold it.

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
        self._kind = tensor.kind
        self._part = stored_part(tensor.kind.name, width)
        dtype = _DTYPES.get(tensor.kind.name, "float32")
        fields = equal_fields(
            layout.layers, width, dtype, layout.first_layer, layout.multiplier, self._part
        )
        rows = JoinedRows([_file_rows(tensor)])
        super().__init__(table_name(tensor.name), "GGUF", fields, [rows], tensor.kind.name)
        self.ngrams = layout.ngrams
        self._last = LastRows(rows)

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        layer = self.fields[field].layer

        def rows(ids: NDArray[np.int64]) -> Floats:
            if self._part is None:
                values = dequantize(self._field_bytes(ids, field), self._kind)
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

    def _stored(self, ids: NDArray[np.int64], field: int, part: Part) -> tuple[Bytes, Bytes]:
        """Scales and codes of rows; the scales are finite."""
        scales, codes = scales_and_codes(self._field_bytes(ids, field), part)
        if part.group_size is not None:
            check_finite(scales.view("<f2").astype(np.float32), ids, self.fields[field].layer)
        return scales, codes

    def _field_bytes(self, ids: NDArray[np.int64], field: int) -> Bytes:
        size = self.stored[0].row_bytes // self.num_layers
        return self._last.columns(ids, field * size, size)


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


def _file_rows(tensor: GGUFTensor) -> FileRows:
    return FileRows(
        RowsFile(tensor.path), tensor.name, tensor.kind.name, tensor.offset_bytes, tensor.shape[0],
        tensor.row_bytes,
    )  # fmt: skip
