"""What the rows of an entropy-coded pack take, next to what they would take at least.

Read from the pack itself: whole blocks, spread over all chunks. Per layer the codes' adaptive
entropy, and the Gaussian rate–distortion function at the same distortion
(`tolpack.codecs.entropy`), both in bits per stored value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.entropy import code_bytes, gaussian_bytes
from tolpack.codecs.record import record_layout
from tolpack.codecs.values import Bytes, Floats
from tolpack.container.encodings import CODEC_SIZES, Encoding
from tolpack.container.reader import Container
from tolpack.reading.sections import read_records

# Rows, and bytes of their records, that are looked at.
_MAX_ROWS = 1 << 13
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class CodeRate:
    """One layer, in bits per stored value."""

    entropy_bits: float
    gaussian_bits: float


def code_rates(container: Container) -> list[CodeRate] | None:
    """Return the rates of the kept layers, in order; ``None`` if not all values are such codes.

    Raises
    ------
    FormatError, FileAccessError
        A block that was read is damaged.
    """
    if not all(_has_steps(encoding) for encoding in container.header.encodings):
        return None
    chunks = _sampled(container)
    rows = np.concatenate([np.full(len(records), each) for _, records, each in chunks])
    rates = []
    for kept, field in enumerate(container.table.kept_fields):
        codes = np.concatenate([_codes(encoding, records, kept) for encoding, records, _ in chunks])
        scale = 8 / (container.table.rows * field.stored_values)
        entropy, gaussian = code_bytes(codes, rows).sum(), gaussian_bytes(codes, rows).sum()
        rates.append(CodeRate(float(entropy) * scale, float(gaussian) * scale))
    return rates


def _has_steps(encoding: Encoding) -> bool:
    return all(CODEC_SIZES[part.codec].has_step for parts in encoding.fields for part in parts)


def _sampled(container: Container) -> list[tuple[Encoding, Bytes, float]]:
    """Records of spread blocks of every chunk, and the rows that each one stands for."""
    widest = max(view.record_bytes for view in container.chunks)
    share = min(1.0, min(_MAX_ROWS, _MAX_BYTES / widest) / container.table.rows)
    found = []
    for number, view in enumerate(container.chunks):
        wanted = max(1, round(view.blocks * share))
        blocks = np.arange(wanted) * view.blocks // wanted
        records = np.concatenate([read_records(container, number, int(b)) for b in blocks])
        found.append((view.encoding, records, view.chunk.rows / len(records)))
    return found


def _codes(encoding: Encoding, records: Bytes, kept: int) -> Floats:
    """Codes of a field, float32 (rows, stored values)."""
    values = record_layout(encoding.fields).decode(records, {kept})[kept]
    steps: NDArray[np.float32] = np.concatenate(
        [np.full(part.values, part.step, np.float32) for part in encoding.fields[kept]]
    )
    return np.asarray(np.rint(values / steps), np.float32)
