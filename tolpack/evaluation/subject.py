"""What is evaluated: a model that can be run, and the tables that packs may replace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.language_model import LanguageModel
from tolpack.pack import Pack
from tolpack.sources.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.protocol import TableSource
from tolpack.torch import ToLMemory


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under evaluation.

    ``table`` is ``None`` for a dense model; ``checkpoint`` for one that transformers runs.
    """

    path: Path
    model: LanguageModel
    table: TableSource | None
    checkpoint: Checkpoint | None

    @property
    def ffn_bytes(self) -> int | None:
        """Stored bytes of the FFN weights that a pack replaces, if there are any."""
        return None if self.table is None else self.table.ffn_bytes

    def with_pack(self, pack: Pack, path: str | Path) -> LanguageModel:
        """Return the model with the rows of a pack, which stays open while it is used.

        Raises
        ------
        CheckpointError, ConfigError
            The pack does not fit the model; the message names `path`.
        """
        if self.table is None:
            raise CheckpointError(f"a dense model has no memory that {path} could replace")
        table = self.table
        expected = (table.vocab_size, table.num_layers, table.hidden_size)
        found = (pack.vocab_size, pack.num_layers, pack.hidden_size)
        if found != expected:
            raise ConfigError(
                f"{path} holds {found[0]} tokens × {found[1]} layers × {found[2]}, but the "
                f"checkpoint has {expected[0]} × {expected[1]} × {expected[2]}: they do not belong "
                "together"
            )
        return self.model.with_memory(ToLMemory(pack))


def open_subject(path: str | Path, options: CheckpointOptions | None = None) -> Subject:
    """Open a MemoryLLM, a Flex-MemoryLLM or a dense checkpoint to run it.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used.
    """
    checkpoint = open_checkpoint(path, options)
    table = FFNTable(checkpoint) if checkpoint.config.has_memory else None
    return Subject(checkpoint.path, Decoder(checkpoint), table, checkpoint)
