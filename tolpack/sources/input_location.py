"""Where the input of a build lies, as another process, perhaps on another machine, opens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.locations import Location, absolute


@dataclass(frozen=True, slots=True)
class InputLocation:
    """How to open the input of a build again, in any process that sees the same files.

    ``path``, ``options``, ``layers`` and ``tensor`` are those of
    `tolpack.sources.open_source.open_tables`, with absolute paths; ``compute`` is what products are
    made in.
    """

    path: str
    options: CheckpointOptions
    layers: int | None = None
    tensor: str | None = None
    compute: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, path: Location, options: CheckpointOptions, layers: int | None, tensor: str | None
    ) -> InputLocation:
        """Make the paths absolute: workers have working folders of their own."""
        found = replace(
            options,
            config=None if options.config is None else absolute(options.config),
            key_map=None if options.key_map is None else absolute(options.key_map),
        )
        return cls(absolute(path), found, layers, tensor)

    def computed_in(self, compute: torch.dtype) -> InputLocation:
        """Return it with products made in `compute`."""
        return replace(self, compute=compute)

    def open(self) -> tuple[TableSource, ...]:
        """Open all tables; errors as of `open_tables`."""
        tables = open_tables(self.path, self.options, self.layers, self.tensor)
        return tuple(table.computed_in(self.compute) for table in tables)

    def open_as(self, sampled: Sequence[bytes]) -> tuple[TableSource, ...]:
        """Open all tables, whose sampled fingerprints are known.

        Raises
        ------
        CheckpointError
            They are others; and as of `open_tables`.
        """
        sources = self.open()
        if tuple(source.sampled_fingerprint() for source in sources) != tuple(sampled):
            raise CheckpointError(
                f"{self.path} is another input on this worker than where the build was started, "
                "or was changed since: copy it again, and give the same command again"
            )
        return sources


def are_unchanged(sources: Sequence[TableSource]) -> bool:
    """Whether the files of tables are those that were opened."""
    try:
        for source in sources:
            source.check_unchanged()
    except CheckpointError:
        return False
    return True
