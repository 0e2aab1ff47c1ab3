"""``tolpack inspect``: the contents of a pack or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    PATH,
    checkpoint_options,
    json_option,
    print_json,
    take_checkpoint_options,
)
from tolpack.commands.terminal import echo
from tolpack.errors import ConfigError
from tolpack.report import tables
from tolpack.sources.input_kind import CHECKPOINT_SUFFIXES, check_input, is_pack

_TABLE_SUFFIXES = (".npy", ".h5", ".hdf5", ".json", ".toml")


@click.command()
@click.argument("path", metavar="PACK|CHECKPOINT", type=PATH)
@checkpoint_options
@json_option
def inspect(path: Path, as_json: bool, **settings: Any) -> None:
    """Show the tables, layers and chunks of a pack, or the tensors of a checkpoint.

    For a checkpoint, inspect shows the key map that fits its tensor names, the shapes and dtypes
    of its tensors, tensors that are left over, and whether build and eval can use it.

    \b
    tolpack inspect model.tolpack
    tolpack inspect model.pt
    tolpack inspect model/ --key-map map.toml --json
    """
    pack = is_pack(path)
    if not pack and path.suffix in _TABLE_SUFFIXES:
        raise ConfigError(f"{path} is no pack and no checkpoint: expected .tolpack, "
                          f"{', '.join(CHECKPOINT_SUFFIXES)} or a folder")  # fmt: skip
    if not pack and (path.is_dir() or path.suffix in CHECKPOINT_SUFFIXES):
        from tolpack.sources.checkpoint.checkpoint import open_checkpoint
        from tolpack.sources.checkpoint.description import summarize_checkpoint

        summary = summarize_checkpoint(open_checkpoint(path, take_checkpoint_options(settings)))
        info, text = summary.to_json(), tables.checkpoint_table(summary)
    else:
        from tolpack.evaluation.pack_description import describe_pack
        from tolpack.pack import open_first_table

        if not pack:
            check_input(path)
        with open_first_table(path) as opened:
            info = describe_pack(opened)
        text = tables.pack_table(info, str(path))
    if as_json:
        print_json(info)
    else:
        echo(text)
