"""What rows coded by models take, part by part, next to what their codes cost by the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tolpack.container.verified_reader import Container
from tolpack.reading.code_rates import MAX_TABLES, RecordSample, sampled_records

# Codes whose costs are added up.
_MAX_CODES = 1 << 24


@dataclass(frozen=True, slots=True)
class CodeCosts:
    """Bytes of a table.

    ``codes``: of its rows' codes by the models, from a sample of rows; ``states``: what blocks take
    beyond that and their checksums; ``checksums``; ``index``; ``models``: with the classes, those
    of bases included. ``stored_per_cost``: blocks without their checksums, for each byte of
    ``codes``; ``None`` if codes cost nothing.
    """

    codes: float
    states: float
    checksums: int
    index: int
    models: int
    stored_per_cost: float | None


def code_costs(container: Container) -> CodeCosts | None:
    """Return what the rows of a table take; ``None`` unless models code all of them, or if the pack
    has very many tables.

    Raises
    ------
    FormatError, FileAccessError
        A block that was read is damaged.
    """
    views, header = container.chunks, container.header
    if len(header.tables) > MAX_TABLES or any(view.encoding.coder is None for view in views):
        return None
    codes = _cost_of_codes(container, sampled_records(container))
    checksums = sum(view.blocks * view.sizes.checksum_bytes for view in views)
    payloads = sum(view.length_bytes for view in views) - checksums
    sections = [header.sections[number] for number in set(header.sections_of(container.table))]
    index = sum(one.length_bytes for one in sections if one.kind == "index")
    models = sum(one.length_bytes for one in sections if one.kind.startswith("code_"))
    per_cost = payloads / codes if codes else None
    return CodeCosts(codes, payloads - codes, checksums, index, models, per_cost)


def _cost_of_codes(container: Container, samples: Sequence[RecordSample]) -> float:
    """Return the bytes of all rows' codes by the models."""
    values = sum(len(one.records) for one in samples) * container.chunks[0].encoding.values
    every, found = -(-values // _MAX_CODES), 0.0
    for sample in samples:
        coder = container.coders.of_encoding(container.chunks[sample.chunk].chunk.encoding)
        bits = coder.rows.cost_bits(coder.codes(sample.records[::every]))
        found += float(bits.mean()) * len(sample.records) * sample.stands_for / 8
    return found
