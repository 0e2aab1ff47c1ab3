"""What is evaluated: a model that can be run, and the tables that packs may replace."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.compress.pack_provenance import replaced_by_pack
from tolpack.container.provenance import Provenance
from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.language_model import LanguageModel
from tolpack.pack import Pack
from tolpack.sources.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.input_kind import check_input
from tolpack.sources.open_source import open_family, open_files
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import InputPath, input_path, local_input
from tolpack.storage.locations import Location
from tolpack.torch import ToLMemory


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under evaluation.

    ``table`` is ``None`` for a dense model, and the first one of a model with several;
    ``checkpoint`` is ``None`` for a model that transformers runs, which ``mount`` puts a pack in.
    """

    path: InputPath
    model: LanguageModel
    table: TableSource | None
    checkpoint: Checkpoint | None
    mount: Callable[[Pack], LanguageModel] | None = None

    @property
    def weight_bytes(self) -> dict[str, int | None]:
        """Bytes of what a pack replaces, as `Provenance.weight_bytes` has them."""
        if self.table is None:
            return Provenance().weight_bytes()
        return replaced_by_pack([self.table]).weight_bytes()

    def with_pack(self, pack: Pack, path: str | Path) -> LanguageModel:
        """Return the model with the rows of a pack, which stays open while it is used.

        Raises
        ------
        CheckpointError, ConfigError
            The pack does not fit the model; the message names `path`.
        """
        if self.mount is not None:
            try:
                return self.mount(pack)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
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


def read_bytes_per_token(tables: Sequence[Pack], token_ids: NDArray[np.int64]) -> float:
    """Return the mean bytes that lookups of a text's tokens read of a pack's `tables`."""
    total = 0
    for table in tables:
        rows = token_ids if table.ngrams is None else table.row_ids(token_ids).ravel()
        total += int(table.extents(rows)[:, 1].sum())
    return total / len(token_ids)


def open_subject(path: Location, options: CheckpointOptions | None = None) -> Subject:
    """Open a model to run it: a MemoryLLM, a Flex-MemoryLLM, a dense checkpoint, or a folder of
    Gemma 3n, Gemma 4 or Qwen4Exp, which transformers runs.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used.
    """
    options, found = options or CheckpointOptions(), input_path(path)
    if found.is_dir():
        tables = open_family(open_files(found, options), options)
        if tables is not None:
            return _open_transformers(local_input(found, "a model of transformers"), tables[0])
    check_input(found)
    if found.suffix in (".npy", ".h5", ".hdf5"):
        raise ConfigError(
            f"{path} is a table without a model that could be run: give the model's folder or .pt"
        )
    checkpoint = open_checkpoint(path, options)
    table = FFNTable(checkpoint) if checkpoint.config.has_memory else None
    return Subject(checkpoint.path, Decoder(checkpoint), table, checkpoint)


def _open_transformers(path: Path, table: TableSource) -> Subject:
    if table.transformers_model is None:
        raise CheckpointError(
            f"{path} has a table {table.name!r}, but beside it no model that can be run: copy "
            "all files of the model; models with tables that can be run are MemoryLLM, Gemma 3n, "
            "Gemma 4 and Qwen4Exp"
        )
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"{path} needs transformers to be run: pip install 'tolpack[hf]'")
    from tolpack.hf.language_model import open_model

    model = open_model(path, table)
    return Subject(path, model, table, None, model.with_pack)
