"""Bases and means as float32, checked beyond their checksums.

What stands behind a right checksum may still make no sense: nothing is given that does not follow
the specification. Nothing is kept either; `tolpack.reading.row_decoder` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tolpack.codecs.part_values import decode_values
from tolpack.container.verified_reader import Container
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes, Floats

# Values of an array that are converted together.
_PIECE_VALUES = 1 << 18


def read_floats(container: Container, number: int) -> Floats:
    """Read section `number`, a basis (coded or not) or a mean, as float32: a copy.

    Raises
    ------
    FormatError
        Code ``array-checksum``, ``array-not-finite``, ``scale-not-finite``, or, of an entropy-coded
        basis, ``frame``, ``code-models`` or ``code-classes``.
    """
    out = np.empty(container.header.sections[number].shape or (), np.float32)
    rows = out.reshape(-1, out.shape[-1])
    for start, piece in float_pieces(container, number):
        rows[start : start + len(piece)] = piece
    return out


def float_pieces(container: Container, number: int) -> Iterator[tuple[int, Floats]]:
    """Yield some rows at a time of what `read_floats` reads, each with its first one's number."""
    section, array = container.header.sections[number], container.array(number)
    part = section.part
    if section.coder is not None:
        coder = container.coders.of_basis(number)
        array = coder.decode(array.astype(np.uint8, copy=False), f"sections[{number}]")
    stored = array.reshape(-1, array.shape[-1])
    count = max(1, _PIECE_VALUES // (part.values if part else stored.shape[1]))
    for start in range(0, len(stored), count):
        some = stored[start : start + count]
        if part is not None:
            rows: Bytes = some.astype(np.uint8, copy=False)
            yield (
                start,
                decode_values(rows[:, : part.scale_bytes], rows[:, part.scale_bytes :], part),
            )
            continue
        with np.errstate(invalid="ignore"):  # NaN, refused below
            values = some.astype(np.float32)
        if not np.isfinite(values).all():
            raise FormatError("array-not-finite", f"sections[{number}]", "NaN or Inf", "finite")
        yield start, values
