"""``tolpack split``: a pack in several files."""

from __future__ import annotations

from dataclasses import asdict

import click

import tolpack
from tolpack.commands.options import LOCATION, json_option, print_json, refuse_memory
from tolpack.commands.terminal import Terminal, checked, echo
from tolpack.container.parts.layout import DEFAULT_PART_SIZE
from tolpack.errors import printable
from tolpack.report.tables import format_bytes
from tolpack.runtime.sizes import parse_bytes
from tolpack.storage.locations import Location


@click.command()
@click.argument("pack", type=LOCATION)
@click.argument("folder", type=LOCATION)
@click.option(
    "--part-size", default=DEFAULT_PART_SIZE, show_default=True,
    callback=checked(lambda value: parse_bytes(value, "--part-size")),
    help="Size of a part file, about.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a manifest that is there.")
@json_option
def split(pack: Location, folder: Location, part_size: str, force: bool, as_json: bool) -> None:
    """Write PACK as part files into FOLDER, and manifest.json, which names them.

    FOLDER, or its manifest.json, can be given wherever a pack is expected. The manifest is written
    last, so FOLDER holds all of the pack or none.

    \b
    tolpack split model.tolpack model-parts/
    tolpack split model.tolpack model-parts/ --part-size 1GB
    """
    refuse_memory(folder)
    result = tolpack.split(pack, folder, part_size=part_size, force=force, reporter=Terminal())
    if as_json:
        print_json(asdict(result))
    else:
        size = format_bytes(result.bytes)
        echo(f"{printable(result.manifest)}: {result.files} part files, {size}")
