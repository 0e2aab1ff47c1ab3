"""``tolpack study``: the paper's experiments on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    PATH,
    Outputs,
    json_option,
    measuring_options,
    print_json,
    take_measuring,
)
from tolpack.report import study_page, study_tables, trade_off
from tolpack.report.page import write_page
from tolpack.report.sweep_page import Origin
from tolpack.terminal import comma_separated, command_line

_PARTS = "precision,ranks,trade-off,layers,alpha,spectra,size"


@click.command()
@click.argument("checkpoint", type=PATH)
@measuring_options
@click.option("--tokens", type=click.IntRange(2), help="Use the first so many tokens only.")
@click.option(
    "--only", "parts", default=_PARTS, callback=comma_separated,
    help=f"Parts to run, of {_PARTS.replace(',', ', ')} [default: all].",
)  # fmt: skip
@json_option
def study(
    checkpoint: Path, tokens: int | None, parts: tuple[str, ...], as_json: bool, **settings: Any
) -> None:
    """Measure what CHECKPOINT's memory is worth, and what packs of it cost.

    Precision, uniform ranks against ranks by loss, layers left out, the memory scaled, spectra,
    sizes. Takes about an hour for a small model; what was measured is kept, so a study that was
    stopped goes on.

    \b
    tolpack study model/ --text held-out.txt --calibrate text.txt --report report.html
    tolpack study model.pt --text ids.npy --only precision,layers --tokens 65536
    """
    from tolpack.studying.choice import choices
    from tolpack.studying.study import run_study

    fresh, text = settings.pop("fresh"), settings["text"]
    outputs = Outputs.take(settings)
    judge, knowledge = take_measuring(checkpoint, settings, tokens)
    found = run_study(judge, knowledge, parts, fresh=fresh, reporter=judge.reporter)
    chosen = choices(found.packs)
    if outputs.csv is not None:
        trade_off.write_csv((), found.packs, outputs.csv)
    if outputs.plot is not None:
        title = f"{checkpoint.name}: {found.baseline.tokens} tokens of {text.name}"
        trade_off.plot_sweep((), found.packs, outputs.plot, title)
    if outputs.report is not None:
        origin = Origin(checkpoint, text, command_line())
        write_page(study_page.study_page(origin, found, chosen), outputs.report)
    if as_json:
        print_json({**found.to_json(), "choices": [choice.to_json() for choice in chosen]})
    else:
        click.echo(study_tables.study_text(found, chosen))
