"""``tolpack convert``: a pack as a plain table."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import ConfigError
from tolpack.export.table_writers import STORED_DTYPES, check_dtype
from tolpack.report import tables


@click.command()
@click.argument("source", metavar="PACK", type=PATH)
@click.argument("destination", metavar="TABLE", type=PATH)
@click.option(
    "--dtype", type=click.Choice(list(STORED_DTYPES)), default="float32", show_default=True,
    help="float32 is exact; changed values are reported. bfloat16 is for .safetensors only.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def convert(source: Path, destination: Path, dtype: str, force: bool, as_json: bool) -> None:
    """Write the rows of PACK as a plain TABLE: .npy, .safetensors, .h5 or .hdf5.

    TABLE has shape [vocab, layers, hidden] and is in the order of token ids. Dropped layers are
    zeros. tolpack build accepts TABLE.

    \b
    tolpack convert model.tolpack table.safetensors
    tolpack convert model.tolpack table.h5 --dtype float16
    tolpack convert model.tolpack table.npy --force --json
    """
    try:
        check_dtype(destination, dtype)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    result = tolpack.convert(source, destination, dtype=dtype, force=force, reporter=Terminal())
    if as_json:
        print_json(result.to_json())
    else:
        echo(tables.convert_line(result))
