"""The n-gram hash of a table, as the header says it: the key ``ngrams`` of a table (SPEC §5).

Rows can be read without it. It tells which of them a text touches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.container.preamble import MAX_HEADS, MAX_ORDER, MAX_ROWS
from tolpack.container.typed_json import Node
from tolpack.errors import FormatError
from tolpack.ngrams.hashing import ID_LIMIT, NGramHash

MIXINGS = ("xor", "sum")
# Ids that are hashed, and token ids where no map says how many there are.
MAX_ID = ID_LIMIT - 1
# With "sum", sizes times the largest order: so sums of reduced products fit 64 bits.
_MAX_SUM = 1 << 32
_MAX_INTEGER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class NGrams:
    """The fields of `tolpack.ngrams.NGramHash`; ``id_map`` is the section of its compressed ids."""

    mixing: str
    orders: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    multipliers: tuple[int, ...]
    pad: int
    boundary: int | None = None
    id_map: int | None = None

    @classmethod
    def of(cls, ngrams: NGramHash, id_map: int | None = None) -> NGrams:
        """Return what a header says of `ngrams`, whose compressed ids are section `id_map`."""
        return cls(
            ngrams.mixing, ngrams.orders, ngrams.sizes, ngrams.offsets, ngrams.multipliers,
            ngrams.pad, ngrams.boundary, id_map,
        )  # fmt: skip

    def to_hash(self, compressed_ids: NDArray[np.uint32] | None) -> NGramHash:
        """Return the hash, given the content of its ``id_map``: uint32 (vocab,)."""
        return NGramHash(
            self.mixing, self.orders, self.sizes, self.offsets, self.multipliers,
            self.pad, self.boundary, compressed_ids,
        )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Return plain values for the header's JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def parse_ngrams(node: Node, last_section: int) -> NGrams:
    """Decode the object of key ``ngrams``, with every value's type and range checked.

    Raises
    ------
    FormatError
        ``header-field``.
    """
    return NGrams(
        mixing=node.text("mixing", MIXINGS),
        orders=node.integers("orders", 1, MAX_ORDER, MAX_HEADS),
        sizes=node.integers("sizes", 1, MAX_ROWS, MAX_HEADS),
        offsets=node.integers("offsets", 0, MAX_ROWS - 1, MAX_HEADS),
        multipliers=node.integers("multipliers", -_MAX_INTEGER, _MAX_INTEGER, MAX_ORDER),
        pad=node.integer("pad", 0, MAX_ID),
        boundary=node.optional_integer("boundary", 0, MAX_ID),
        id_map=node.optional_integer("id_map", 0, last_section),
    )


def check_heads(ngrams: NGrams, rows: int, place: str) -> None:
    """Raise `FormatError` unless all heads of `ngrams` lie in a table of `rows` rows."""
    heads = len(ngrams.orders)
    for key, found, expected in (
        ("sizes", len(ngrams.sizes), heads),
        ("offsets", len(ngrams.offsets), heads),
        ("multipliers", len(ngrams.multipliers), max(ngrams.orders)),
    ):
        if found != expected:
            raise FormatError("ngram-heads", f"{place}.{key}", f"{found} items", f"{expected}")
    largest, order = max(ngrams.sizes), max(ngrams.orders)
    if ngrams.mixing == "sum" and largest * order > _MAX_SUM:
        limit = f"at most {_MAX_SUM // order} with order {order}"
        raise FormatError("ngram-heads", f"{place}.sizes", largest, limit)
    for head, (offset, size) in enumerate(zip(ngrams.offsets, ngrams.sizes)):
        if offset + size > rows:
            raise FormatError(
                "ngram-heads", f"{place}.offsets[{head}]", f"rows up to {offset + size}",
                f"at most {rows}",
            )  # fmt: skip
