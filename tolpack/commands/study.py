"""``tolpack study``: the paper's experiments on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    PATH,
    check_outputs,
    context_option,
    csv_option,
    json_option,
    plot_option,
    print_json,
    reading_options,
    report_option,
    take_reading,
    tokenizer_option,
)
from tolpack.report import study_page, study_tables, trade_off
from tolpack.report.page import write_page
from tolpack.report.sweep_page import Origin
from tolpack.terminal import Terminal, comma_separated, command_line

_PARTS = "precision,ranks,trade-off,layers,alpha,spectra,size"


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--text", type=PATH, required=True, help="UTF-8 text, or .npy of token ids.")
@tokenizer_option
@reading_options
@context_option
@click.option("--tokens", type=click.IntRange(2), help="Use the first so many tokens only.")
@click.option(
    "--only", "parts", default=_PARTS, callback=comma_separated,
    help=f"Parts to run, of {_PARTS.replace(',', ', ')} [default: all].",
)  # fmt: skip
@click.option("--calibrate", type=PATH, help="Text or token ids to build packs with.")
@click.option("--frequencies", type=PATH, help=".npy of token counts, for the packs.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@csv_option
@plot_option
@report_option
@json_option
def study(
    checkpoint: Path,
    text: Path,
    parts: tuple[str, ...],
    csv_path: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure what CHECKPOINT's memory is worth, and what packs of it cost.

    Precision, uniform ranks against ranks by loss, layers left out, the memory scaled, spectra,
    sizes. Takes about an hour for a small model; what was measured is kept, so a study that was
    stopped goes on.

    \b
    tolpack study model/ --text held-out.txt --calibrate text.txt --report report.html
    tolpack study model.pt --text ids.npy --only precision,layers --tokens 65536
    """
    from tolpack.judging import Judge
    from tolpack.studying.choice import choices
    from tolpack.studying.study import run_study
    from tolpack.workshop import Knowledge

    check_outputs(csv_path, plot, report)
    reporter, reading = Terminal(), take_reading(settings)
    judge = Judge(
        checkpoint,
        text,
        tokenizer=settings["tokenizer"],
        reading=reading,
        context=settings["context"],
        tokens=settings["tokens"],
        reporter=reporter,
    )
    knowledge = Knowledge(settings["calibrate"], settings["frequencies"], settings["tokenizer"])
    found = run_study(judge, knowledge, parts, fresh=settings["fresh"], reporter=reporter)
    chosen = choices(found.packs)
    if csv_path is not None:
        trade_off.write_csv((), found.packs, csv_path)
    if plot is not None:
        title = f"{checkpoint.name}: {found.baseline.tokens} tokens of {text.name}"
        trade_off.plot_sweep((), found.packs, plot, title)
    if report is not None:
        origin = Origin(checkpoint, text, command_line())
        write_page(study_page.study_page(origin, found, chosen), report)
    if as_json:
        print_json({**found.to_json(), "choices": [choice.to_json() for choice in chosen]})
    else:
        click.echo(study_tables.study_text(found, chosen))
