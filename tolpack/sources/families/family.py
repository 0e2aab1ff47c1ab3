"""What a family of models is: its name, what it is recognised by, and how its tables open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.protocol import TableSource


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models with tables.

    Parameters
    ----------
    name : str
        As its users call it.
    tensors : tuple of str
        Names of its tensors, for messages, with ``…`` for any prefix and ``N`` for a number.
    open_tables : callable
        Returns all tables that one pack holds, ``None`` if the files are of another family. It
        raises `CheckpointError` if they are of this one, and damaged or incomplete.
    """

    name: str
    tensors: tuple[str, ...]
    open_tables: Callable[[CheckpointFiles], tuple[TableSource, ...] | None]
