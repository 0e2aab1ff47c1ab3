"""``tolpack verify``: every checksum of a pack."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from tolpack.commands.options import LOCATION, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import printable
from tolpack.pack import Pack, open_first_table
from tolpack.report import tables
from tolpack.runtime.sizes import counted
from tolpack.storage.locations import Location

# Damaged places that are listed one by one.
_MOST_LINES = 50


@click.command()
@click.argument("pack", type=LOCATION)
@json_option
@click.pass_context
def verify(ctx: click.Context, pack: Location, as_json: bool) -> None:
    """Read all of PACK and check every checksum; exit 1 if anything is damaged.

    verify names each damaged place and the tokens that it affects. Other tokens can still be read.

    \b
    tolpack verify model.tolpack
    """
    terminal = Terminal()
    with open_first_table(pack) as opened, terminal.phase("verifying", opened.nbytes, "B") as done:
        damages, edits = opened.verify(done), _of_edits(opened)
    if as_json:
        values = [asdict(damage) for damage in damages]
        print_json({"path": str(pack), "ok": not damages, "damages": values, **edits})
    else:
        listed = [damage for damage in damages if damage.places == 1][:_MOST_LINES]
        for damage in listed:
            echo(printable(tables.damage_line(damage)))
        more = sum(damage.places for damage in damages) - len(listed)
        if more:
            echo(f"… and {more} more (--json tells more of them)")
        places = sum(damage.places for damage in damages)
        count = counted(places, "damaged place") if damages else "ok"
        said = f"; edits of {edits['rows']} rows of the pack {edits['base']}" if edits else ""
        echo(f"{printable(str(pack))}: {count}{said}")
    ctx.exit(1 if damages else 0)


def _of_edits(pack: Pack) -> dict[str, Any]:
    """Return what is said of edits alone: the digest of their pack, and their rows."""
    header = pack.container.header
    if header.base is None:
        return {}
    return {"base": header.base, "rows": sum(table.rows for table in header.tables)}
