"""``ngram_embedding.safetensors`` of EXL3: Qwen4Exp's n-gram embedding in a trellis code.

Layout, as exllamav3 writes it (``exl3_ngram_trellis``, version 1): a row of ``X.trellis`` or
``X.shard_N.trellis`` is ``1 + width · K / 16`` int16. The first is the bits of a float16 scale. The
others are a ring of ``width`` symbols of K bits, from the lowest bits on. The state at position i
is the last 16 bits up to its symbol, earlier symbols above later ones, around the ring. A value is
``codebook[state] · scale + head_bias[head]``, in which the head follows from the row's number by
``X.head_offsets``.

The codebook ``mul1`` gives a state ``s`` the float16 nearest to ``(1024 + b) · k + c``. ``b`` is
the sum of the four bytes of ``s · 0x83dcd12d`` modulo 2³²; ``k`` and ``c`` are the float16 numbers
with the bits 0x1eee and 0xc931.
"""

from __future__ import annotations

import functools
import re

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Floats
from tolpack.sources.checkpoint.safetensors_file import open_safetensors
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.family import Family
from tolpack.sources.families.ngram_file import beside, hash_of, layer_of, packed_rows
from tolpack.sources.protocol import FieldRows, SourceField, TableSource, check_finite
from tolpack.sources.tensors.quantized_table import QuantizedTable
from tolpack.sources.tensors.tensor_rows import JoinedRows

NAME = "ngram_embedding"
_TENSOR = r"(?P<key>(?:.+\.)?ngram_embedding)\.(?:shard_(?P<shard>\d{1,6})\.)?trellis"
_LAYER = re.compile(r"layers\.(\d{1,5})\.")
_METADATA = {"format": "exl3_ngram_trellis", "version": "1", "codebook": "mul1"}
_HASH_TENSORS = ("layer_multipliers", "head_vocab_sizes", "head_offsets")
_STATE_BITS = 16
_MULTIPLIER = 0x83DCD12D
_SLOPE, _SHIFT = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(np.float32)


class TrellisTable(QuantizedTable):
    """A table whose rows are rings of a trellis code.

    Parameters
    ----------
    field : SourceField
        Its only field.
    rings : JoinedRows
        Rows of 1 + width · `bits` / 16 int16.
    bits : int
        Bits of a symbol, 1 … 8.
    head_offsets : ndarray
        int64 (heads,), ascending from 0: the first row of each head.
    head_bias : ndarray
        float32 (heads, width).
    """

    def __init__(
        self, field: SourceField, rings: JoinedRows, bits: int, head_offsets: NDArray[np.int64],
        head_bias: Floats,
    ) -> None:  # fmt: skip
        settings = f"mul1 {bits} {head_offsets.tolist()} {head_bias.tobytes().hex()}"
        super().__init__(NAME, EXL3.name, [field], [rings], settings)
        self._bits = bits
        self._head_offsets = head_offsets
        self._head_bias = head_bias

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        (rings,) = self.stored
        layer = self.fields[field].layer

        def rows(ids: NDArray[np.int64]) -> Floats:
            words = rings.take(ids).view("<u2")
            heads = np.searchsorted(self._head_offsets, ids, side="right") - 1
            values = _codebook()[_states(words[:, 1:], self._bits)]
            with np.errstate(invalid="ignore", over="ignore"):  # refused below
                values *= words[:, :1].view("<f2").astype(np.float32)
                values += self._head_bias[heads]
            check_finite(values, ids, layer)
            return values

        return rows


@functools.cache
def _codebook() -> Floats:
    """Return the value of each state: float32 (65536,), all exact in float16."""
    product = (np.arange(1 << _STATE_BITS, dtype=np.uint64) * _MULTIPLIER).astype("<u4")
    sums = product.view(np.uint8).reshape(-1, 4).sum(axis=1)
    values: Floats = ((1024 + sums).astype(np.float32) * _SLOPE + _SHIFT).astype(np.float16)
    return values.astype(np.float32)


def _states(ring: NDArray[np.uint16], bits: int) -> NDArray[np.int64]:
    """Return the state at each position of rings, uint16 (n, words): (n, words · 16 / bits)."""
    starts = np.arange(ring.shape[1] * 16 // bits) * bits
    word = starts // 16
    two: NDArray[np.int64] = (
        ring[:, word] | ring[:, (word + 1) % ring.shape[1]].astype(np.int64) << 16
    )
    symbols = (two >> (starts % 16)) & (2**bits - 1)
    states: NDArray[np.int64] = symbols.copy()
    for back in range(1, -(-_STATE_BITS // bits)):
        states |= np.roll(symbols, back, axis=1) << back * bits
    states &= 0xFFFF
    return states


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    files = beside(files, "ngram_embedding.safetensors")
    found = files.matching(_TENSOR)
    if not found:
        return None
    names = sorted(found, key=lambda name: int(found[name]["shard"] or 0))
    keys = {match["key"] for match in found.values()}
    numbers = [int(found[name]["shard"] or 0) for name in names]
    if len(keys) != 1 or numbers != list(range(len(names))):
        missing = sorted(set(range(max(numbers))) - set(numbers))[:3]
        raise CheckpointError(
            f"{files.path} has {len(names)} trellis tensors of {len(keys)} tables, expected the "
            f"shards of one, numbered from 0; missing: {missing or 'none'}"
        )
    key = keys.pop()
    _check_metadata(files, names[0])
    rings = packed_rows(files, names, "I16", 2)
    bias, offsets = _heads(files, key, rings.rows)
    bits = _symbol_bits(names[0], rings.row_bytes // 2, bias.shape[1])
    layer = _LAYER.search(key)
    number = int(layer[1]) if layer else layer_of(files)
    field = SourceField(NAME, number, bias.shape[1], "float32")
    table = TrellisTable(field, rings, bits, offsets, bias)
    table.ngrams = hash_of(files, [f"{key}.{name}" for name in _HASH_TENSORS], rings.rows)
    return (table,)


def _check_metadata(files: CheckpointFiles, name: str) -> None:
    path = files.store.infos[name][0].path
    found = open_safetensors(path).metadata() if path.suffix == ".safetensors" else {}
    for key, value in _METADATA.items():
        if found.get(key) != value:
            raise CheckpointError(
                f"{path}: {key} of the metadata is {found.get(key)!r:.40}, expected {value!r}: "
                "other trellis codes are not read"
            )


def _heads(files: CheckpointFiles, key: str, rows: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return bias and first row of each head, or raise `CheckpointError`."""
    names = f"{key}.head_bias", f"{key}.head_offsets"
    for name in names:
        if not files.has(name):
            raise CheckpointError(f"tensor {name!r} is missing from {files.path}")
    bias, offsets = (files.values(name) for name in names)
    first = offsets.long().numpy()
    fits = bias.ndim == 2 and offsets.ndim == 1 and 0 < len(bias) == len(first)
    if not fits or first[0] != 0 or (np.diff(first) <= 0).any() or first[-1] >= rows:
        raise CheckpointError(
            f"tensors {names[0]!r} and {names[1]!r} have shapes {list(bias.shape)} and "
            f"{list(offsets.shape)}, expected [heads, width] and ascending rows from 0, below "
            f"{rows:,}"
        )
    return bias.float().numpy(), first


def _symbol_bits(name: str, words: int, width: int) -> int:
    """Return the bits of a symbol, or raise `CheckpointError`."""
    bits, rest = divmod((words - 1) * 16, width)
    if rest or not 1 <= bits <= 8:
        raise CheckpointError(
            f"tensor {name!r} has rows of {words} words, expected 1 + {width} · K / 16 with K from "
            "1 to 8"
        )
    return bits


EXL3 = Family(
    "EXL3 n-gram table",
    ("…ngram_embedding.shard_N.trellis", "…ngram_embedding.trellis"),
    _open_tables,
)
