"""Whether a pack and what it is held against belong together, by the digests that packs keep."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tolpack.container.provenance import Provenance
from tolpack.model.text import tokenizer_digest
from tolpack.pack import Pack
from tolpack.runtime.progress import Reporter
from tolpack.storage.inputs import InputPath

if TYPE_CHECKING:  # it loads torch
    from tolpack.evaluation.subject import Subject

# Hex digits of a digest that a warning shows.
_SHOWN = 8


class OriginCheck:
    """Warns of packs that were not made from a checkpoint, or not calibrated with its tokenizer.

    Parameters
    ----------
    subject : Subject
        The checkpoint; weights that its table follows from are read once, with the first pack.
    tokenizer : InputPath, optional
        What encodes the texts.
    reporter : Reporter
        Is told.
    """

    def __init__(self, subject: Subject, tokenizer: InputPath | None, reporter: Reporter) -> None:
        self._subject, self._tokenizer, self._reporter = subject, tokenizer, reporter

    def __call__(self, pack: Pack, name: str) -> None:
        """Warn if `pack`, which `name` names, does not belong to them."""
        made_from, found = Provenance.parse(pack.container.header.provenance), []
        if made_from.checkpoint:
            path = str(self._subject.path)
            found.append(other_checkpoint(name, made_from, path, self._digests))
        if made_from.tokenizer and self._tokenizer is not None:
            digest = tokenizer_digest(self._tokenizer)
            found.append(other_tokenizer(name, made_from, str(self._tokenizer), digest))
        for warning in found:
            if warning is not None:
                self._reporter.warn(warning)

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        from tolpack.sources.table_digests import table_digests  # loads torch

        table = self._subject.table
        return {} if table is None else table_digests([table])


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
