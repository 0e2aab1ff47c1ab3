"""Edits, as the header says them: the key ``edits`` of a table, whose rows replace some of another
table's (SPEC §5).

Edits are a file of their own, which names the pack that it belongs to by the SHA-256 of that pack's
preamble and header; or they stand in the pack itself, behind its tables.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from tolpack.container.preamble import MAX_ROWS
from tolpack.container.typed_json import Node
from tolpack.errors import FormatError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Edits:
    """Whose rows a table replaces: those of ``token_ids`` (a section number) in ``table``, which
    has ``rows`` rows.

    ``base``: SHA-256 of preamble and header of the pack with that table, 64 digits; ``None``: the
    table is in the same file.
    """

    table: str
    rows: int
    token_ids: int
    base: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain values for the header's JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def parse_edits(node: Node, last_section: int) -> Edits:
    """Decode the object of key ``edits``, with every value's type and range checked.

    Raises
    ------
    FormatError
        ``header-field``.
    """
    return Edits(
        table=node.text("table"),
        rows=node.integer("rows", 1, MAX_ROWS),
        token_ids=node.integer("token_ids", 0, last_section),
        base=_digest(node) if node.has("base") else None,
    )


def _digest(node: Node) -> str:
    found = node.text("base")
    if _DIGEST.fullmatch(found) is None:
        expected = "64 digits 0 … 9 and a … f"
        raise FormatError("header-field", f"{node.place}.base", found, expected)
    return found
