"""``tolpack merge``: a pack and its edits as one pack."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import LOCATION, PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.report import tables
from tolpack.storage.locations import Location


@click.command()
@click.argument("pack", type=LOCATION)
@click.argument("edits", nargs=-1, required=True, type=LOCATION)
@click.option("-o", "--output", required=True, type=PATH, metavar="NEW", help="The new pack.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def merge(
    pack: Location, edits: tuple[Location, ...], output: Path, force: bool, as_json: bool
) -> None:
    """Write PACK and its EDITS as one pack, NEW.

    Of a token in several EDITS the last one counts. All other tokens keep their stored bytes.
    PACK stays as it is; edits of it do not fit NEW.

    merge blanks the old rows of edited tokens where that touches no other token: where records are
    not compressed, or a block holds one row. Elsewhere old rows stay in NEW, though no reader shows
    them; merge says how many. To have none of them, build the pack again.

    \b
    tolpack merge model.tolpack names.edits -o edited.tolpack
    tolpack merge model.tolpack first.edits second.edits -o edited.tolpack --force
    """
    result = tolpack.merge(pack, edits, output, force=force, reporter=Terminal())
    if as_json:
        print_json(result.to_json())
    else:
        echo(tables.merge_line(result))
