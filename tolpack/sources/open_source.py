"""Open sources of rows: a model of a known family, any tensor, or a plain table on disk."""

from __future__ import annotations

from tolpack.errors import CheckpointError, ConfigError, printable
from tolpack.sources.arrays.array_table import ArrayTable, open_array
from tolpack.sources.checkpoint.checkpoint import name_tensors
from tolpack.sources.checkpoint.config import MODEL_TYPES, find_raw_config
from tolpack.sources.checkpoint.key_map import match
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.shards import check_whole, open_store
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.known import FAMILIES
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.gguf.open_gguf import open_gguf
from tolpack.sources.input_kind import check_input, is_gguf
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.named_tensor import near_names, open_named_tensor
from tolpack.storage.inputs import InputPath, input_path, local_input
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

_MEMORYLLM = "MemoryLLM (layers.N.memory_mlp.up_proj.weight)"


def open_tables(
    path: Location | RemotePath,
    options: CheckpointOptions | None = None,
    layers: int | None = None,
    tensor: str | None = None,
) -> tuple[TableSource, ...]:
    """Open all tables that a pack of `path` holds.

    Parameters
    ----------
    path : str or Path
        ``.pt``, ``.pth``, a folder, or ``.safetensors`` for checkpoints; ``.gguf``; ``.npy``,
        ``.h5`` or a ``.safetensors`` with one tensor for tables. By URL a folder of safetensors,
        a ``.safetensors``, or a ``.npy``.
    options : CheckpointOptions, optional
        Settings that a checkpoint lacks, or that replace its own.
    layers : int, optional
        Layers of a two-dimensional table.
    tensor : str, optional
        Name of a tensor of a checkpoint that is the table: see `open_named_tensor`.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be used; the message says what to do.
    """
    path, options = input_path(path), options or CheckpointOptions()
    if is_gguf(path):
        return open_gguf(local_input(path, "a GGUF file"), tensor, layers)
    check_input(path)
    if tensor is not None:
        return (open_named_tensor(open_files(path, options), tensor, layers),)
    if path.is_file():
        check_whole(path)
    array = open_array(path)
    if array is not None:
        return (ArrayTable(array, layers),)
    if layers is not None:
        raise ConfigError("--layers is for two-dimensional tables; a checkpoint has its config")
    files = open_files(path, options)
    tables = open_family(files, options)
    if tables is not None:
        return tables
    check_memoryllm(files, options)
    return (FFNTable(name_tensors(path, files.store, options)),)


def open_source(
    path: Location | RemotePath,
    options: CheckpointOptions | None = None,
    layers: int | None = None,
    tensor: str | None = None,
) -> TableSource:
    """Open the only table of `path`; parameters and errors as of `open_tables`.

    Raises
    ------
    ConfigError
        There are several.
    """
    tables = open_tables(path, options, layers, tensor)
    if len(tables) > 1:
        raise ConfigError(
            f"{path} holds {len(tables)} tables ({', '.join(table.name for table in tables)}), and "
            "this works on one: choose its tensor with --tensor"
        )
    return tables[0]


def open_files(path: InputPath, options: CheckpointOptions) -> CheckpointFiles:
    """Open the files of a checkpoint, of whatever family; errors as of `open_tables`."""
    store = open_store(path)
    config = find_raw_config(path, options.config, store.config)
    return CheckpointFiles(path, store, config if isinstance(config, dict) else {})


def open_family(
    files: CheckpointFiles, options: CheckpointOptions
) -> tuple[TableSource, ...] | None:
    """Open the tables of the family that `files` are of; ``None`` if they are of none, or `options`
    say that they are a MemoryLLM.

    Raises
    ------
    CheckpointError
        They are of a family, and damaged or incomplete; or `tolpack strip` took the table away.
    """
    if files.pack_name is not None:
        raise CheckpointError(
            f"{files.path} was stripped: its table is in the pack {files.pack_name!r} beside it. "
            "Give the folder that it was made from, with this pack as PACK where one is asked for; "
            "tolpack lm-eval and tolpack.hf.load take it as it is"
        )
    if options.names_memoryllm:
        return None
    opened = (family.open_tables(files) for family in FAMILIES)
    return next((tables for tables in opened if tables is not None), None)


def check_memoryllm(files: CheckpointFiles, options: CheckpointOptions) -> None:
    """Raise `CheckpointError` with all that was looked for, if nothing says that `files` are a
    MemoryLLM: neither `options`, nor the configuration, nor the names of tensors.
    """
    says_other = files.model_type not in ("", *MODEL_TYPES)
    if options.names_memoryllm or not says_other or _has_memory_ffns(files):
        return
    sought = [_MEMORYLLM, *(f"{one.name} ({', '.join(one.tensors)})" for one in FAMILIES)]
    patterns = [tensor.removeprefix("…") for one in FAMILIES for tensor in one.tensors]
    near = dict.fromkeys(name for one in patterns for name in near_names(one, files, 1))
    raise CheckpointError(
        f"{files.path} (model_type {files.model_type!r}) has no table that is known. Looked for: "
        f"{'; '.join(sought)}. Nearest names: {', '.join(map(printable, near)) or 'none'}. "
        "--tensor NAME makes a table of any tensor, and --arch says that it is a MemoryLLM"
    )


def _has_memory_ffns(files: CheckpointFiles) -> bool:
    """Whether a built-in key map finds memory FFNs."""
    try:
        slices = match(files.store.infos, None).slices
    except CheckpointError:
        return False
    return any(".memory_mlp." in name for name in slices)
