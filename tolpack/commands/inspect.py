"""``tolpack inspect``: the contents of a pack or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    LOCATION,
    checkpoint_options,
    edits_option,
    json_option,
    print_json,
    take_checkpoint_options,
    tensor_option,
)
from tolpack.commands.terminal import echo
from tolpack.errors import ConfigError
from tolpack.report.tables import checkpoint_table, family_table, pack_table
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_kind import CHECKPOINT_SUFFIXES, check_input, is_gguf, is_pack
from tolpack.storage.inputs import InputPath, input_path, local_input
from tolpack.storage.locations import Location

_TABLE_SUFFIXES = (".npy", ".h5", ".hdf5", ".json", ".toml")


@click.command()
@click.argument("path", metavar="PACK|CHECKPOINT", type=LOCATION)
@checkpoint_options
@tensor_option
@edits_option
@json_option
def inspect(
    path: Location,
    tensor: str | None,
    edits: tuple[Location, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Show the tables, layers and chunks of a pack, or the tables of a checkpoint.

    Of edits, inspect shows which tokens they are of, and the digest of their pack.

    For a MemoryLLM, inspect shows the key map that fits its tensor names, the shapes and dtypes
    of its tensors, tensors that are left over, and whether build and eval can use it. For models
    of other families it shows their tables, and for any checkpoint the tensor of --tensor.

    \b
    tolpack inspect model.tolpack
    tolpack inspect model.pt
    tolpack inspect model/ --key-map map.toml --json
    tolpack inspect model/ --tensor model.embed_tokens.weight
    """
    pack, found = is_pack(path), input_path(path)
    if edits and not pack:
        raise click.UsageError(f"--edits is for packs, and {path} is none")
    if not pack and found.suffix in _TABLE_SUFFIXES:
        raise ConfigError(f"{path} is neither a pack nor a checkpoint: expected .tolpack, "
                          f"{', '.join(CHECKPOINT_SUFFIXES)} or a folder")  # fmt: skip
    if not pack and is_gguf(path):
        info, text = _describe_gguf(local_input(found, "a GGUF file"), tensor)
    elif not pack and (found.is_dir() or found.suffix in CHECKPOINT_SUFFIXES):
        info, text = _describe_checkpoint(found, take_checkpoint_options(settings), tensor)
    else:
        if tensor is not None:
            raise click.UsageError(f"--tensor is for checkpoints, and {path} is none")
        info, text = _describe_pack(path, edits, pack=pack)
    if as_json:
        print_json(info)
    else:
        echo(text)


def _describe_checkpoint(
    path: InputPath, options: CheckpointOptions, tensor: str | None
) -> tuple[dict[str, Any], str]:
    """Return what --json prints, and the text."""
    from tolpack.sources.checkpoint.checkpoint import name_tensors
    from tolpack.sources.checkpoint.description import summarize_checkpoint
    from tolpack.sources.families.description import summarize_tables
    from tolpack.sources.open_source import check_memoryllm, open_family, open_files
    from tolpack.sources.tensors.named_tensor import open_named_tensor

    check_input(path)
    files = open_files(path, options)
    if tensor is not None:
        tables = summarize_tables(files, [open_named_tensor(files, tensor, None)])
        return tables.to_json(), family_table(tables)
    found = open_family(files, options)
    if found is not None:
        tables = summarize_tables(files, found)
        return tables.to_json(), family_table(tables)
    check_memoryllm(files, options)
    summary = summarize_checkpoint(name_tensors(path, files.store, options))
    return summary.to_json(), checkpoint_table(summary)


def _describe_gguf(path: Path, tensor: str | None) -> tuple[dict[str, Any], str]:
    """Return what --json prints, and the text."""
    from tolpack.sources.gguf.open_gguf import summarize_gguf

    tables = summarize_gguf(path, tensor)
    return tables.to_json(), family_table(tables)


def _describe_pack(
    path: Location, edits: tuple[Location, ...], *, pack: bool
) -> tuple[dict[str, Any], str]:
    """Return what --json prints, and the text."""
    from tolpack.evaluation.pack_description import describe_pack
    from tolpack.pack import open_first_table

    if not pack:
        check_input(input_path(path))
    with open_first_table(path, edits) as opened:
        info = describe_pack(opened)
    return info, pack_table(info, str(path))
