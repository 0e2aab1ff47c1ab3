"""``tolpack join``: a pack in parts as one file."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import LOCATION, PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import printable
from tolpack.report.tables import format_bytes
from tolpack.storage.locations import Location


@click.command()
@click.argument("folder", type=LOCATION)
@click.argument("pack", type=PATH)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def join(folder: Location, pack: Path, force: bool, as_json: bool) -> None:
    """Write the pack in parts of FOLDER, or of a manifest.json, as one file PACK.

    PACK is bit for bit the file that was split, or that a build without parts makes.

    \b
    tolpack join model-parts/ model.tolpack
    """
    size = tolpack.join(folder, pack, force=force, reporter=Terminal())
    if as_json:
        print_json({"path": str(pack), "bytes": size})
    else:
        echo(f"{printable(str(pack))}: {format_bytes(size)}")
