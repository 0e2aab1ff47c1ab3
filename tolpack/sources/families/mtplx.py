"""``ngram-table.safetensors`` of MTPLX: Qwen4Exp's n-gram embedding in MLX's affine quantization.

Layout, as MTPLX writes it and MLX packs it: ``ngram.weight`` uint32 [rows, width · bits / 32],
``ngram.scales`` and ``ngram.biases`` bfloat16, float16 or float32 [rows, width / group size]. Codes
fill the words from the lowest bits on. A value is ``scale · code + bias``. The bits and the group
size are ``ngram_bits`` and ``ngram_group_size`` of the file's metadata.

Values are computed in float32. MLX rounds them to the dtype of the scales.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Bytes, Floats
from tolpack.sources.checkpoint.safetensors_file import open_safetensors
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.family import Family
from tolpack.sources.families.ngram_file import beside, hash_of, layer_of, packed_rows
from tolpack.sources.protocol import FLOAT_CODECS, FieldRows, SourceField, TableSource, check_finite
from tolpack.sources.tensors.quantized_table import QuantizedTable
from tolpack.sources.tensors.tensor_rows import JoinedRows

NAME = "ngram_embedding"
_WEIGHT, _SCALES, _BIASES = "ngram.weight", "ngram.scales", "ngram.biases"
# Widths of codes that do not cross the bytes of a word.
_BITS = (2, 4, 8)
_GROUP_SIZES = (32, 64, 128)


class AffineTable(QuantizedTable):
    """A table whose groups of codes have a scale and a bias each.

    Parameters
    ----------
    field : SourceField
        Its only field.
    codes, scales, biases : JoinedRows
        Rows as MLX packs them; they fit each other.
    bits : int
        2, 4 or 8.
    """

    def __init__(
        self, field: SourceField, codes: JoinedRows, scales: JoinedRows, biases: JoinedRows,
        bits: int,
    ) -> None:  # fmt: skip
        super().__init__(NAME, MTPLX.name, [field], [codes, scales, biases], f"affine {bits}")
        self._bits = bits

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        codes, scales, biases = self.stored
        layer = self.fields[field].layer

        def rows(ids: NDArray[np.int64]) -> Floats:
            values = _unpacked(codes.take(ids), self._bits)
            scale, bias = (_floats(one.take(ids), one.dtype) for one in (scales, biases))
            groups = values.reshape(*scale.shape, values.shape[1] // scale.shape[1])
            with np.errstate(invalid="ignore", over="ignore"):  # refused below
                groups *= scale[:, :, None]
                groups += bias[:, :, None]
            check_finite(values, ids, layer)
            return values

        return rows


def _unpacked(words: Bytes, bits: int) -> Floats:
    """Return the codes of rows of words, uint8 (n, bytes), as float32 (n, codes)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (words[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(len(words), -1).astype(np.float32)


def _floats(stored: Bytes, dtype: str) -> Floats:
    part = Part(FLOAT_CODECS[dtype], stored.shape[1] // (4 if dtype == "float32" else 2))
    return decode_values(stored[:, :0], stored, part)


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    files = beside(files, "ngram-table.safetensors")
    if not all(map(files.has, (_WEIGHT, _SCALES, _BIASES))):
        return None
    bits, group = _metadata(files)
    codes = packed_rows(files, [_WEIGHT], "U32", 4)
    scales, biases = files.rows(_SCALES), files.rows(_BIASES)
    width = codes.row_bytes * 8 // bits
    expected = (codes.rows, width // group)
    if width % group or files.shape(_SCALES) != expected or files.shape(_BIASES) != expected:
        raise CheckpointError(
            f"tensors {_SCALES!r} and {_BIASES!r} have shapes {list(files.shape(_SCALES))} and "
            f"{list(files.shape(_BIASES))}, expected {list(expected)}: a scale for each {group} of "
            f"{width} values"
        )
    if scales.dtype not in FLOAT_CODECS or biases.dtype != scales.dtype:
        raise CheckpointError(
            f"tensors {_SCALES!r} and {_BIASES!r} are {scales.dtype} and {biases.dtype}, expected "
            f"one of {', '.join(FLOAT_CODECS)} for both"
        )
    table = AffineTable(
        SourceField(NAME, layer_of(files), width, "float32"), codes, scales, biases, bits
    )
    table.ngrams = hash_of(files, (), codes.rows)
    return (table,)


def _metadata(files: CheckpointFiles) -> tuple[int, int]:
    """Return the bits and the group size, or raise `CheckpointError`."""
    path = files.store.infos[_WEIGHT][0].path
    found = open_safetensors(path).metadata() if path.suffix == ".safetensors" else {}
    values = []
    for key, choices in (("ngram_bits", _BITS), ("ngram_group_size", _GROUP_SIZES)):
        value = found.get(key, "")
        if value not in map(str, choices):
            raise CheckpointError(
                f"{path}: {key} of the metadata is {value!r:.40}, expected "
                f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
            )
        values.append(int(value))
    return values[0], values[1]


MTPLX = Family("MTPLX n-gram table", (_WEIGHT, _SCALES, _BIASES), _open_tables)
