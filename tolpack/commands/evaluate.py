"""``tolpack eval``: perplexity of packs, and of settings that are swept."""

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
from tolpack.errors import ConfigError
from tolpack.report import sweep_page, tables, trade_off
from tolpack.report.page import write_page
from tolpack.terminal import Terminal, command_line

_SWEEP = "Settings to build and judge, like 'rank=none,50%,auto bits=4,auto'; repeatable."


@click.command(name="eval")
@click.argument("checkpoint", type=PATH)
@click.argument("packs", nargs=-1, type=PATH)
@click.option("--text", type=PATH, required=True, help="UTF-8 text, or .npy of token ids.")
@tokenizer_option
@reading_options
@context_option
@click.option("--sweep", multiple=True, metavar="SPEC", help=_SWEEP)
@click.option("--calibrate", type=PATH, help="Text or token ids to build the sweep's packs with.")
@click.option("--frequencies", type=PATH, help=".npy of token counts, for the sweep's packs.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@csv_option
@plot_option
@report_option
@json_option
def evaluate(
    checkpoint: Path,
    packs: tuple[Path, ...],
    text: Path,
    sweep: tuple[str, ...],
    csv_path: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure perplexity of CHECKPOINT, and of each of its PACKS in place of the memory.

    With --sweep, packs of many settings are built, judged and removed. A setting that was measured
    before, with the same inputs, is not measured again.

    \b
    tolpack eval model.pt model.tolpack --text held-out.txt --tokenizer tokenizer.json
    tolpack eval model/ a.tolpack b.tolpack --text ids.npy --context 256 --json
    tolpack eval model/ --text held-out.txt --sweep "rank=none,50% bits=4,8" --report sizes.html
    tolpack eval model/ --text held-out.txt --sweep "rank=auto bits=auto max-ppl-increase=0.5%,1%"
    """
    from tolpack.evaluate import Evaluation
    from tolpack.judging import Judge
    from tolpack.studying.choice import choices
    from tolpack.studying.setting import parse_grids
    from tolpack.studying.sweep import run_sweep
    from tolpack.workshop import Knowledge

    try:
        grid, skipped = parse_grids(sweep) if sweep else ((), ())
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if not sweep and (settings["calibrate"] or settings["frequencies"] or settings["fresh"]):
        raise click.UsageError("--calibrate, --frequencies and --fresh are for --sweep")
    check_outputs(csv_path, plot, report)
    reporter, reading = Terminal(), take_reading(settings)
    tokenizer, context = settings["tokenizer"], settings["context"]
    judge = Judge(
        checkpoint, text, tokenizer=tokenizer, reading=reading, context=context, reporter=reporter
    )
    scores = tuple(judge.pack(path) for path in packs)
    knowledge = Knowledge(settings["calibrate"], settings["frequencies"], tokenizer)
    points = run_sweep(judge, grid, knowledge, fresh=settings["fresh"], reporter=reporter)
    evaluation = Evaluation(judge.context, judge.baseline, scores)
    if csv_path is not None:
        trade_off.write_csv(scores, points, csv_path)
    if plot is not None:
        title = f"{checkpoint.name}: {evaluation.baseline.tokens} tokens of {text.name}"
        trade_off.plot_sweep(scores, points, plot, title)
    if report is not None:
        origin = sweep_page.Origin(checkpoint, text, command_line())
        page = sweep_page.sweep_page(
            origin, judge.context, evaluation.baseline, scores, points, choices(points)
        )
        write_page(page, report)
    if as_json:
        value = evaluation.to_json()
        if sweep:
            value["packs"] += [point.to_json() for point in points]
            value["skipped"] = list(skipped)
        print_json(value)
    else:
        click.echo(tables.evaluation_table(evaluation))
        if points:
            click.echo("\n" + tables.sweep_table(points, skipped))
