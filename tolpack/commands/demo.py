"""``tolpack demo``: all of it on a bundled model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tolpack.commands.options import PATH, json_option, print_json
from tolpack.commands.terminal import Terminal, echo
from tolpack.report import evaluation_tables


@click.command()
@click.option("-o", "--output", type=PATH, help="Folder for the packs [default: a temporary one].")
@json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Build packs of the bundled model at several settings and evaluate them.

    \b
    tolpack demo
    tolpack demo -o packs/
    """
    from tolpack.demo import run_demo

    with tempfile.TemporaryDirectory() as scratch:
        evaluation = run_demo(output or Path(scratch), Terminal())
    if as_json:
        print_json(evaluation.to_json())
    else:
        echo(evaluation_tables.evaluation_table(evaluation))
