"""Digests of what tables are computed from: as a pack keeps them, and as they are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from tolpack.sources.protocol import TableSource

# Tables that are named each with its digest; of more, all have one together.
_MOST_NAMED = 256
_ALL = "*"


def table_digests(sources: Sequence[TableSource]) -> dict[str, str]:
    """Return the SHA-256 of everything that the values of each table follow from, in hex, by name:
    a checkpoint's configuration and weights as stored, but not in which dtype they are multiplied.

    Everything is read once, unless `TableSource.check` did.
    """
    found = {
        one.name: hashlib.sha256(one.computed_in(torch.float32).fingerprint()).hexdigest()
        for one in sources
    }
    if len(found) <= _MOST_NAMED:
        return found
    return {_ALL: hashlib.sha256("".join(found.values()).encode()).hexdigest()}


def digest_room(names: Sequence[str]) -> int:
    """Return the most bytes that digests of tables `names` take as JSON."""
    shown = names if len(names) <= _MOST_NAMED else [_ALL]
    return sum(len(name) + 70 for name in shown)
