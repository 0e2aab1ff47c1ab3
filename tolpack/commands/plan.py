"""``tolpack plan``: sizes before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    PATH,
    drop_option,
    json_option,
    layers_option,
    print_json,
    reading_options,
    take_reading,
)
from tolpack.commands.terminal import checked, echo
from tolpack.compress.settings import parse_rank
from tolpack.errors import ConfigError
from tolpack.report import tables


def _fixed_rank(value: str) -> None:
    if parse_rank(value).word == "auto":
        raise ConfigError("the ranks of auto follow from the table: plan a number or a percentage")


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--rank", callback=checked(_fixed_rank), help="Plan only this rank; not auto.")
@click.option("--bits", type=click.Choice(["16", "8", "4"]), help="Plan only these bits.")
@drop_option
@reading_options
@layers_option
@json_option
def plan(checkpoint: Path, as_json: bool, **settings: Any) -> None:
    """Predict sizes and costs of packs of CHECKPOINT without building them.

    \b
    tolpack plan model.pt
    tolpack plan model.pt --rank 50% --bits 4 --drop 5
    """
    from tolpack.compress.size_prediction import predict_checkpoint

    plans = predict_checkpoint(checkpoint, reading=take_reading(settings), **settings)
    if as_json:
        print_json({"plans": [one.to_json() for one in plans]})
    else:
        echo(tables.plan_table(plans))
