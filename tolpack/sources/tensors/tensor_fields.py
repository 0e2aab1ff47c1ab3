"""Fields of tables whose codes, and scales if they have any, are tensors of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tolpack.codecs.encodings import Part
from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.protocol import SourceField
from tolpack.sources.tensors.tensor_rows import JoinedRows
from tolpack.sources.tensors.tensor_table import Columns, TensorField, tensor_names

FLOAT8 = "float8_e4m3fn"
# By the dtype of scales: the codec, and the bytes of a scale as stored.
_SCALED = {
    "float8_e8m0fnu": ("f8e4m3-e8m0", 1), "float32": ("f8e4m3", 4), "bfloat16": ("f8e4m3", 2),
    "float16": ("f8e4m3", 2),
}  # fmt: skip

# Values that share a scale in published checkpoints.
_USUAL_GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """The rows of a tensor, with what its codes are multiplied by if they are fp8.

    Parameters
    ----------
    rows : JoinedRows
        Values in float32, float16 or bfloat16, or codes in fp8 (E4M3).
    scales : JoinedRows, optional
        As many rows, with a scale for each group of codes: E8M0, float32, bfloat16 or float16.
    step : float, optional
        One scale for the whole tensor.

    Raises
    ------
    CheckpointError
        The dtype is another one, or there are not exactly the scales that it needs, or they do not
        fit.
    """

    rows: JoinedRows
    scales: JoinedRows | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        given = (self.scales is not None) + (self.step is not None)
        plain = self.rows.dtype in DTYPE_BYTES
        if not plain and self.rows.dtype != FLOAT8:
            raise CheckpointError(
                f"tensor {self.names!r} is {self.rows.dtype}, expected float32, float16, bfloat16 "
                "or float8_e4m3fn: convert it"
            )
        if given != (0 if plain else 1):
            raise CheckpointError(
                f"tensor {self.names!r} is {self.rows.dtype} and has {given} kinds of scales, "
                f"expected {0 if plain else 1}"
            )
        if self.scales is not None:
            self._check_scales(self.scales)
        if self.step is not None and not _is_normal(self.step):
            raise CheckpointError(
                f"the scale of tensor {self.names!r} is {self.step!r}, expected a positive normal "
                "float32 number"
            )

    @property
    def names(self) -> str:
        """Names of the tensors of ``rows``."""
        return tensor_names([part.name for part in self.rows.parts])

    @property
    def width(self) -> int:
        """Values of a whole row."""
        return self.rows.row_bytes // self._value_bytes

    @property
    def group_size(self) -> int | None:
        """Values that share a scale in the rows: an even number where a row has one scale."""
        if self.scales is None:
            return None
        count = self.scales.row_bytes // _SCALED[self.scales.dtype][1]
        # The last group may be shorter, so that one for all of an odd width is the same.
        return self.width + self.width % 2 if count == 1 else math.ceil(self.width / count)

    @property
    def dtype(self) -> str:
        """What the values are exact in: see `SourceField`."""
        if self.rows.dtype in DTYPE_BYTES:
            return self.rows.dtype
        if self.scales is not None:
            return "bfloat16" if self.scales.dtype == "float8_e8m0fnu" else "float32"
        return "bfloat16" if math.frexp(self.step or 1.0)[0] == 0.5 else "float32"

    def field(
        self, name: str, layer: int, first: int = 0, width: int | None = None,
        multiplier: float = 1.0,
    ) -> TensorField:  # fmt: skip
        """Return the field of values ``first … first + width - 1`` of each row (default: all).

        Raises
        ------
        CheckpointError
            A group of values with one scale lies across the field's edge.
        """
        width = self.width - first if width is None else width
        part = self._part(width)
        field = SourceField(name, layer, width, self.dtype, multiplier, part)
        codes = Columns(self.rows, first * self._value_bytes, width * self._value_bytes)
        if self.scales is None:
            return TensorField(field, codes)
        group, size = self.group_size or 1, _SCALED[self.scales.dtype][1]
        if first % group or (width % group and first + width != self.width):
            raise CheckpointError(
                f"field {name!r} takes values {first} … {first + width - 1} of tensor "
                f"{self.names!r}, whose scales are for groups of {group}: they do not divide it"
            )
        scales = Columns(self.scales, first // group * size, math.ceil(width / group) * size)
        return TensorField(field, codes, scales)

    @property
    def _value_bytes(self) -> int:
        return DTYPE_BYTES.get(self.rows.dtype, 1)

    def _part(self, width: int) -> Part | None:
        """Return how the values are stored, ``None`` where they are plain floats."""
        if self.step is not None:
            return Part("f8e4m3-step", width, step=self.step)
        if self.scales is not None:
            return Part(_SCALED[self.scales.dtype][0], width, self.group_size)
        return None

    def _check_scales(self, scales: JoinedRows) -> None:
        names = tensor_names([part.name for part in scales.parts])
        if scales.dtype not in _SCALED:
            raise CheckpointError(
                f"tensor {names!r} is {scales.dtype}, expected scales in {' or '.join(_SCALED)}"
            )
        count, group = scales.row_bytes // _SCALED[scales.dtype][1], self.group_size or 1
        if scales.rows != self.rows.rows or math.ceil(self.width / group) != count:
            raise CheckpointError(
                f"tensor {names!r} has {scales.rows} rows of {count} scales, expected "
                f"{self.rows.rows} rows that divide {self.width} values into equal groups"
            )
        usual = next((n for n in _USUAL_GROUPS if math.ceil(self.width / n) == count), group)
        if count > 1 and group not in _USUAL_GROUPS and usual != group:
            raise CheckpointError(
                f"tensor {names!r} has {count} scales for {self.width} values, which may be groups "
                f"of {usual} with a shorter last one, or of {group}: dequantize the tensor first"
            )


def _is_normal(step: float) -> bool:
    """Whether a number is positive and exactly a normal float32."""
    limits = np.finfo(np.float32)
    return bool(limits.tiny <= step <= limits.max) and float(np.float32(step)) == step
