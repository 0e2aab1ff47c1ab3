"""``tolpack study``: the paper's experiments on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.evaluation_options import Outputs, parts_option, take_measuring, take_origin
from tolpack.commands.options import PATH, json_option, measuring_options, print_json
from tolpack.commands.terminal import echo
from tolpack.evaluation import PARTS
from tolpack.report import study_page, study_tables


@click.command()
@click.argument("checkpoint", type=PATH)
@measuring_options
@click.option("--tokens", type=click.IntRange(2), help="Use only the first N tokens of the text.")
@click.option(
    "--only", "parts", default=",".join(PARTS), callback=parts_option(PARTS),
    help=f"Parts to run, of {', '.join(PARTS)} [default: all].",
)  # fmt: skip
@json_option
def study(
    checkpoint: Path, tokens: int | None, parts: tuple[str, ...], as_json: bool, **settings: Any
) -> None:
    """Run the MemoryLLM paper's experiments on CHECKPOINT and recommend settings for packs.

    The experiments are: precision, uniform ranks against ranks by loss, layer ablation, scaled
    memory FFN outputs, spectra, and sizes. A study takes about an hour for a small model. It
    caches its measurements, so an interrupted study continues where it stopped.

    \b
    tolpack study model/ --text held-out.txt --calibrate text.txt --report report.html
    tolpack study model.pt --text ids.npy --only precision,layers --tokens 65536
    """
    from tolpack.evaluation.recommend import recommend
    from tolpack.evaluation.study import run_study

    origin = take_origin(checkpoint, settings)
    outputs = Outputs.take(settings, checkpoint)
    evaluator, inputs = take_measuring(checkpoint, settings, tokens)
    found = run_study(evaluator, inputs, parts)
    chosen = recommend(found.packs, evaluator.windows)
    outputs.write(
        origin.title(found.baseline), (), found.packs,
        lambda: study_page.study_page(origin, found, chosen),
    )  # fmt: skip
    if as_json:
        more = {"command": origin.command, "choices": [choice.to_json() for choice in chosen]}
        print_json({**found.to_json(), **more})
    else:
        echo(f"{origin.command}\n\n{study_tables.study_text(found, chosen)}")
