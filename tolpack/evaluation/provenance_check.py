"""Whether a pack and what it is held against belong together, by the digests that packs keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tolpack.container.provenance import Provenance

# Hex digits of a digest that a warning shows.
_SHOWN = 8


def other_checkpoint(
    pack: str, made_from: Provenance, checkpoint: str, digests: Mapping[str, str]
) -> str | None:
    """Return a warning if a pack was made from another checkpoint, given the `digests` of that
    checkpoint's tables; ``None`` if it was not, or if nothing tells.
    """
    for table in sorted(made_from.checkpoint.keys() & digests.keys()):
        own, other = made_from.checkpoint[table], digests[table]
        if own != other:
            return (
                f"{pack} was made from another checkpoint (SHA-256 {shortened(own)}) than "
                f"{checkpoint} ({shortened(other)}): unless that is a copy in another dtype, its "
                "figures say nothing about it"
            )
    return None


def other_tokenizer(
    pack: str, made_from: Provenance, tokenizer: str, digest: str | None
) -> str | None:
    """Return a warning if a pack was calibrated with another tokenizer than that of `digest`."""
    own = made_from.tokenizer
    if own is None or digest is None or own == digest:
        return None
    return (
        f"{pack} was calibrated with another tokenizer (SHA-256 {shortened(own)}) than {tokenizer} "
        f"({shortened(digest)}): check which of them the checkpoint was trained with"
    )


def other_origin(a: str, own: Provenance, b: str, other: Provenance) -> str | None:
    """Return a warning if two packs were made from different checkpoints."""
    for table in sorted(own.checkpoint.keys() & other.checkpoint.keys()):
        first, second = own.checkpoint[table], other.checkpoint[table]
        if first != second:
            return (
                f"{a} and {b} were made from different checkpoints (SHA-256 {shortened(first)} and "
                f"{shortened(second)}): their difference is not what packing costs"
            )
    return None


def shortened(digest: str) -> str:
    """Return the first digits of a digest."""
    return digest[:_SHOWN] + "…"


def pack_name(path: object) -> str:
    """Return how a warning names a pack: by its file's name."""
    return Path(str(path)).name
