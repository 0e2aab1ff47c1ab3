"""``tolpack rows``: single rows of a pack."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import PATH, json_option, print_json
from tolpack.report import tables


@click.command()
@click.argument("pack", type=PATH)
@click.argument("token_ids", metavar="TOKEN_ID...", nargs=-1, type=int, required=True)
@json_option
def rows(pack: Path, token_ids: tuple[int, ...], as_json: bool) -> None:
    """Show the rows of TOKEN_IDs: norm and first values of each layer, or all with --json.

    \b
    tolpack rows model.tolpack 5 17
    tolpack rows model.tolpack 5 --json
    """
    with tolpack.open(pack) as opened:
        found = opened.rows(list(token_ids))
        stats = opened.stats()
    if as_json:
        print_json({"token_ids": list(token_ids), "rows": found.tolist(), "stats": stats})
    else:
        click.echo(tables.rows_table(token_ids, found))
        reads = f"{stats['block_reads']} reads of records, {stats['block_bytes']} bytes"
        click.echo(f"\n{reads}; opening: {stats['open_reads']} reads, {stats['open_bytes']} bytes")
