"""``tolpack eval``: perplexity of packs, and of settings that are swept."""

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
from tolpack.errors import ConfigError
from tolpack.report import sweep_page, tables, trade_off
from tolpack.report.page import write_page
from tolpack.terminal import command_line

_SWEEP = "Settings to build and judge, like 'rank=none,50% bits=4,auto'; repeatable."


@click.command(name="eval")
@click.argument("checkpoint", type=PATH)
@click.argument("packs", nargs=-1, type=PATH)
@click.option("--sweep", multiple=True, metavar="SPEC", help=_SWEEP)
@measuring_options
@json_option
def evaluate(
    checkpoint: Path,
    packs: tuple[Path, ...],
    sweep: tuple[str, ...],
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
    from tolpack.studying.choice import choices
    from tolpack.studying.setting import parse_grids
    from tolpack.studying.sweep import run_sweep

    try:
        grid, skipped = parse_grids(sweep) if sweep else ((), ())
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    fresh, text = settings.pop("fresh"), settings["text"]
    if not sweep and (settings["calibrate"] or settings["frequencies"] or fresh):
        raise click.UsageError("--calibrate, --frequencies and --fresh are for --sweep")
    outputs = Outputs.take(settings)
    judge, knowledge = take_measuring(checkpoint, settings)
    scores = tuple(judge.pack(path) for path in packs)
    points = run_sweep(judge, grid, knowledge, fresh=fresh, reporter=judge.reporter)
    evaluation = Evaluation(judge.context, judge.baseline, scores)
    if outputs.csv is not None:
        trade_off.write_csv(scores, points, outputs.csv)
    if outputs.plot is not None:
        title = f"{checkpoint.name}: {evaluation.baseline.tokens} tokens of {text.name}"
        trade_off.plot_sweep(scores, points, outputs.plot, title)
    if outputs.report is not None:
        origin = sweep_page.Origin(checkpoint, text, command_line())
        base, chosen = evaluation.baseline, choices(points)
        page = sweep_page.sweep_page(origin, judge.context, base, scores, points, chosen)
        write_page(page, outputs.report)
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
