"""``tolpack diff``: a pack against another one, or against its checkpoint."""

from __future__ import annotations

from typing import Any

import click

from tolpack.commands.options import (
    LOCATION,
    checkpoint_options,
    edits_option,
    json_option,
    layers_option,
    print_json,
    refuse_checkpoint_options,
    table_option,
    take_checkpoint_options,
    tensor_option,
)
from tolpack.commands.terminal import Terminal, echo
from tolpack.report import row_tables
from tolpack.sources.input_kind import is_pack
from tolpack.storage.locations import Location


@click.command()
@click.argument("pack", metavar="PACK_A", type=LOCATION)
@click.argument("reference", metavar="PACK_B|CHECKPOINT", type=LOCATION)
@click.option(
    "--tokenizer", type=LOCATION,
    help="tokenizer.json, for the names of tokens [default: the one beside either argument].",
)  # fmt: skip
@click.option("--frequencies", type=LOCATION, help=".npy of token counts, which weight the errors.")
@click.option(
    "--worst", type=click.IntRange(0), default=10, show_default=True,
    help="Number of tokens to list, those with the largest errors.",
)  # fmt: skip
@table_option
@edits_option
@checkpoint_options
@layers_option
@tensor_option
@json_option
def diff(pack: Location, reference: Location, as_json: bool, **settings: Any) -> None:
    """Show where PACK_A differs from PACK_B, or from the CHECKPOINT or table it was made from.

    diff prints relative errors by layer, by chunk (tokens of similar frequency), and of the worst
    tokens. The second argument is the reference. diff reads all of both. Edits go to the pack that
    they belong to, and to PACK_A if both are that: so a pack is held against its edited self.

    \b
    tolpack diff model.tolpack model.pt
    tolpack diff small.tolpack large.tolpack --tokenizer tokenizer.json --worst 20
    tolpack diff model.tolpack model/ --frequencies counts.npy --json
    tolpack diff engram.tolpack model/ --table layer.14
    tolpack diff model.tolpack model.tolpack --edits names.edits
    """
    from tolpack.evaluation.diff import diff_tables

    if is_pack(reference):
        refuse_checkpoint_options(settings, reference)
    else:
        settings["checkpoint_options"] = take_checkpoint_options(settings)
    result = diff_tables(pack, reference, reporter=Terminal(), **settings)
    if as_json:
        print_json(result.to_json())
    else:
        echo(row_tables.diff_table(result))
