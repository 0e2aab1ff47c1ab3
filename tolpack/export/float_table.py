"""A table's rows as values of one dtype, for a plain table [vocab, layers, hidden].

Every dtype but float32 may round. The rounding errors are measured as rows are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.bfloat16 import from_bfloat16, rounded_to_bfloat16
from tolpack.container.header import Table
from tolpack.errors import ConfigError
from tolpack.export.tensor_files import NUMPY_DTYPES, Metadata, Tensor
from tolpack.pack import Pack
from tolpack.reading.lookup import common_width
from tolpack.runtime.array_types import Floats

# Decoded bytes, and rows, at a time.
_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 1 << 16
# Smallest normal values: below them a dtype has fewer digits, and then none.
_LEAST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126}


class FloatTable:
    """A table of a pack as one tensor of `dtype`, which is called `name`.

    Parameters
    ----------
    table : Table
        What the pack's header says of it.
    dtype : str
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    name : str
        Name of the tensor.

    Raises
    ------
    ConfigError
        Layers differ in width.
    """

    def __init__(self, table: Table, dtype: str, name: str) -> None:
        shape = (table.rows, len(table.fields), common_width(table.fields, ()))
        row_bytes = math.prod(shape[1:]) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
        self.table = table
        self.shape: tuple[int, ...] | None = shape
        self.tensors: tuple[Tensor, ...] = (Tensor(name, dtype, shape, row_bytes),)
        self.numbers: dict[str, NDArray[Any]] = {}
        self.dropped = tuple(n for n, field in enumerate(table.fields) if field.dropped)
        self.rounding = Rounding(dtype)
        self.multiplier = 1.0

    def blocks(self, pack: Pack) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """See `tolpack.export.convert.TableValues`."""
        rows, layers, hidden = self.tensors[0].shape
        order = pack.stored_order()
        count = min(max(1, _BLOCK_BYTES // (4 * layers * hidden)), _BLOCK_ROWS, rows)
        block = np.empty((count, layers, hidden), np.float32)
        for start in range(0, rows, count):
            ids = np.sort(order.tokens(start, min(start + count, rows)))
            exact = pack.rows(ids, out=block[: len(ids)])
            yield ids, {self.tensors[0].name: self.rounding.rounded(ids, exact)}

    def metadata(self) -> Metadata:
        """See `tolpack.export.convert.TableValues`."""
        rows, layers, hidden = self.tensors[0].shape
        return {
            "vocab_size": rows,
            "num_layers": layers,
            "hidden_size": hidden,
            "dropped_layers": list(self.dropped),
            "changed_values": self.rounding.changed,
            "max_relative_error": self.rounding.relative,
            "max_absolute_error": self.rounding.absolute,
        }


class Rounding:
    """Converts rows to a dtype, and measures the rounding errors.

    ``changed``: values that the dtype does not hold exactly; ``absolute`` and ``relative``: the
    largest errors of them, and ``normal_relative`` that of those which do not underflow; of the
    others ``zeroed`` became zero, and ``subnormal`` keep fewer digits.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.changed = 0
        self.relative = self.absolute = self.normal_relative = 0.0
        self.zeroed = self.subnormal = 0

    def rounded(self, ids: NDArray[np.int64], exact: Floats) -> NDArray[Any]:
        """Return `exact`, the rows of `ids`, (n, layers, hidden), in the dtype of the table.

        Raises
        ------
        ConfigError
            A finite value is beyond the dtype's range.
        """
        if self.dtype == "float32":
            return exact.astype("<f4", copy=False)
        stored, wide = self._both(exact)
        differs = (wide != exact) & ~np.isnan(exact)
        if differs.any():
            self._measure(ids, exact, wide, differs)
        return stored

    def _both(self, exact: Floats) -> tuple[NDArray[Any], Floats]:
        """Return `exact` in the dtype, and that converted back to float32."""
        if self.dtype == "float16":
            with np.errstate(over="ignore"):
                half = exact.astype("<f2")
            return half, half.astype(np.float32)
        bits = rounded_to_bfloat16(exact)
        bits[np.isnan(exact)] = 0x7FC0
        return bits.astype("<u2", copy=False), from_bfloat16(bits)

    def _measure(
        self, ids: NDArray[np.int64], exact: Floats, wide: Floats, differs: NDArray[np.bool_]
    ) -> None:
        before, after = exact[differs], wide[differs]
        if np.isinf(after).any():
            row, layer, column = np.argwhere(np.isinf(wide) & differs)[0]
            raise ConfigError(
                f"token {ids[row]}, layer {layer} has the value {exact[row, layer, column]:.6g}, "
                f"beyond the range of {self.dtype}: use float32"
            )
        error = np.abs(after.astype(np.float64) - before)
        self.changed += len(error)
        self.absolute = max(self.absolute, float(error.max()))
        relative = error / np.abs(before)
        self.relative = max(self.relative, float(relative.max()))
        tiny = np.abs(after) < _LEAST_NORMAL[self.dtype]
        self.zeroed += int(np.count_nonzero(after == 0))
        self.subnormal += int(np.count_nonzero(tiny & (after != 0)))
        if not tiny.all():
            self.normal_relative = max(self.normal_relative, float(relative[~tiny].max()))

    @property
    def underflows(self) -> str:
        """How many values became zero or lost digits below the dtype's range, in words; "" if none
        did.
        """
        counts = [
            f"{count:,} {'value' if count == 1 else 'values'} {what}"
            for count, what in ((self.zeroed, "became 0"), (self.subnormal, "became subnormal"))
            if count
        ]
        if not counts:
            return ""
        least = f"{_LEAST_NORMAL[self.dtype]:.2g}"
        return f"{' and '.join(counts)}, as {self.dtype} has full precision from {least} up only"
