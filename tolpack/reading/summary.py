"""Size of a pack against FP16, and what each of its layers takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from tolpack.codecs.encodings import field_bytes
from tolpack.container.verified_reader import Container
from tolpack.reading.code_rates import CodeRate, code_rates


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One field, of the model's layer ``layer``: ``rank`` (``None`` without a basis), mean stored
    bits per stored value (scales included, basis not), and bytes with basis and mean; a dropped one
    has 0 bits and bytes.

    ``entropy_bits``, ``gaussian_bits``: for entropy-coded rows, see `tolpack.reading.code_rates`.
    """

    layer: int
    rank: int | None
    bits: float
    bytes: int
    entropy_bits: float | None = None
    gaussian_bits: float | None = None


def fp16_bytes(container: Container) -> int:
    """Bytes of all tables of the file in FP16, dropped layers included, and those of edits only
    where there are no others.
    """
    header = container.header
    return sum(2 * table.values for table in header.unedited_tables or header.tables)


def table_bytes(container: Container) -> int:
    """Bytes of the sections of the container's table; those that it shares count too."""
    numbers = set(container.header.sections_of(container.table))
    return sum(container.header.sections[number].length_bytes for number in numbers)


def ratio_fp16(container: Container) -> float:
    """How many times smaller the file is than its tables in FP16, every byte counted."""
    return fp16_bytes(container) / container.preamble.file_length


def bits_per_weight(container: Container) -> float:
    """Bits of the file per value of its full tables."""
    return 16 / ratio_fp16(container)


def layer_summaries(container: Container) -> list[LayerSummary]:
    """Summarise each field of the container's table.

    A compressed chunk's bytes are shared out by the layers' raw bytes, or by their codes' entropy.
    """
    table = container.table
    rates = code_rates(container)
    shares = _stored_bytes(container, rates)
    kept = 0
    layers = []
    for field in table.fields:
        if field.dropped:
            layers.append(LayerSummary(field.layer, None, 0.0, 0))
            continue
        stored, rate = shares[kept], {} if rates is None else asdict(rates[kept])
        arrays = [n for n in (field.basis, field.mean) if n is not None]
        extra = sum(container.header.sections[n].length_bytes for n in arrays)
        bits = 8 * stored / (table.rows * field.stored_values)
        layers.append(LayerSummary(field.layer, field.rank, bits, round(stored) + extra, **rate))
        kept += 1
    return layers


def settings_kind(container: Container) -> str:
    """Return in words how values are stored and whether there is a basis, as `build` makes them."""
    layers = [one for one in layer_summaries(container) if one.bytes]
    coded = any(one.entropy_bits is not None for one in layers)
    ranks = {one.rank for one in layers}
    basis = (
        "no basis" if ranks <= {None} else "uniform rank" if len(ranks) == 1 else "ranks by loss"
    )
    return f"{'entropy-coded' if coded else 'fixed bits'}, {basis}"


def _stored_bytes(container: Container, rates: list[CodeRate] | None) -> list[float]:
    """Bytes of all chunks by kept field."""
    fields, views = container.table.kept_fields, container.chunks
    if rates is None:
        return _raw_shares(container)
    whole = sum(view.length_bytes for view in views)
    sizes = [rate.entropy_bits * field.stored_values for rate, field in zip(rates, fields)]
    total = sum(sizes)
    return [whole * (size / total if total else 1 / len(sizes)) for size in sizes]


def _raw_shares(container: Container) -> list[float]:
    """Bytes of all chunks by kept field, in the shares of a record that is not compressed.

    Encoding by encoding: chunks and fields may be thousands, each.
    """
    stored: Counter[int] = Counter()
    for view in container.chunks:
        stored[view.chunk.encoding] += view.length_bytes
    found = [0.0] * len(container.table.kept_fields)
    for number, size in stored.items():
        encoding = container.header.encodings[number]
        record = container.table.record_bytes(encoding)
        for kept, parts in enumerate(encoding.fields):
            found[kept] += size * field_bytes(parts) / record
    return found
