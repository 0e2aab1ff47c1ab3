"""``tolpack bench``: lookups timed on this machine."""

from __future__ import annotations

import click

from tolpack.commands.options import (
    LOCATION,
    edits_option,
    json_option,
    print_json,
    table_option,
)
from tolpack.commands.terminal import Terminal, echo
from tolpack.report import tables
from tolpack.storage.locations import Location


@click.command()
@click.argument("pack", type=LOCATION)
@click.option("--rows", default=512, show_default=True, help="Number of rows of the large lookup.")
@click.option(
    "--seconds", default=1.0, show_default=True, help="Approximate seconds for each measurement."
)
@table_option
@edits_option
@json_option
def bench(
    pack: Location,
    rows: int,
    seconds: float,
    table: str | None,
    edits: tuple[Location, ...],
    as_json: bool,
) -> None:
    """Time lookups of PACK on this machine, warm and cold, in every I/O mode.

    bench reads all of PACK first, and drops it from the page cache before each cold lookup. It
    draws token ids uniformly from the vocabulary. Lookups of real text are faster, because text
    repeats its tokens.

    \b
    tolpack bench model.tolpack
    tolpack bench model.tolpack --rows 4096 --seconds 5
    tolpack bench engram.tolpack --table layer.14
    """
    from tolpack.evaluation.lookup_benchmark import benchmark_lookups

    result = benchmark_lookups(pack, rows, seconds, Terminal(), table, edits)
    if as_json:
        print_json(result.to_json())
    else:
        echo(tables.benchmark_table(result))
