"""``tolpack convert``: a pack as a plain table."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import LOCATION, PATH, edits_option, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import ConfigError
from tolpack.export.file_kinds import DTYPES, check_dtype
from tolpack.report import tables
from tolpack.storage.locations import Location


@click.command()
@click.argument("source", metavar="PACK", type=LOCATION)
@click.argument("destination", metavar="TABLE", type=PATH)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True,
    help="float32 is exact; changed values are reported. bfloat16 is for .safetensors only. "
    "stored: bit for bit what --bits lossless stores, also as .gguf.",
)  # fmt: skip
@click.option(
    "--table", metavar="NAME", help="Table of PACK [default: all; .npy and .h5 hold one]."
)
@edits_option
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def convert(
    source: Location,
    destination: Path,
    dtype: str,
    table: str | None,
    edits: tuple[Location, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Write the rows of PACK as a plain TABLE: .npy, .safetensors, .h5, .hdf5 or .gguf.

    TABLE has shape [vocab, layers, hidden] and is in the order of token ids. Dropped layers are
    zeros. tolpack build accepts TABLE. With --dtype stored it has the tensors of the model that
    PACK was built from with --bits lossless, with the layers of a token in one row.

    \b
    tolpack convert model.tolpack table.safetensors
    tolpack convert model.tolpack table.h5 --dtype float16
    tolpack convert model.tolpack table.npy --force --json
    tolpack convert lossless.tolpack tensors.safetensors --dtype stored
    tolpack convert lossless.tolpack tensors.gguf --dtype stored --table layer.14
    """
    try:
        check_dtype(destination, dtype)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    result = tolpack.convert(
        source, destination, dtype=dtype, table=table, edits=edits, force=force,
        reporter=Terminal(),
    )  # fmt: skip
    if as_json:
        print_json(result.to_json())
    else:
        echo(tables.convert_line(result))
