"""Open a source of rows: a checkpoint, or a plain table on disk."""

from __future__ import annotations

from pathlib import Path

from tolpack.errors import ConfigError
from tolpack.sources.arrays import ArrayTable, open_array
from tolpack.sources.checkpoint.checkpoint import name_tensors
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.input_kind import check_input
from tolpack.sources.protocol import TableSource


def open_tables(
    path: str | Path, options: CheckpointOptions | None = None, layers: int | None = None
) -> tuple[TableSource, ...]:
    """Open all tables that a pack of `path` holds; parameters and errors as of `open_source`."""
    return (open_source(path, options, layers),)


def open_source(
    path: str | Path, options: CheckpointOptions | None = None, layers: int | None = None
) -> FFNTable | ArrayTable:
    """Open a checkpoint or a plain table, where that is one table.

    Parameters
    ----------
    path : str or Path
        ``.pt``, ``.pth``, a folder, or ``.safetensors`` for checkpoints; ``.npy``, ``.h5`` or
        a ``.safetensors`` with one tensor for tables.
    options : CheckpointOptions, optional
        Settings that a checkpoint lacks, or that replace its own.
    layers : int, optional
        Layers of a two-dimensional table.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used; the message says what to do.
    """
    path = Path(path)
    check_input(path)
    array = open_array(path)
    if array is not None:
        return ArrayTable(array, layers)
    if layers is not None:
        raise ConfigError("--layers is for two-dimensional tables; a checkpoint has its config")
    store = open_store(path)
    checkpoint = name_tensors(path, store, options or CheckpointOptions())
    return FFNTable(checkpoint)
