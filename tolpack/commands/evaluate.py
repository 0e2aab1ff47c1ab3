"""``tolpack eval``: perplexity of packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import (
    PATH,
    context_option,
    json_option,
    print_json,
    reading_options,
    take_reading,
    tokenizer_option,
)
from tolpack.report import tables
from tolpack.terminal import Terminal


@click.command(name="eval")
@click.argument("checkpoint", type=PATH)
@click.argument("packs", nargs=-1, type=PATH)
@click.option("--text", type=PATH, required=True, help="UTF-8 text, or .npy of token ids.")
@tokenizer_option
@reading_options
@context_option
@json_option
def evaluate(
    checkpoint: Path, packs: tuple[Path, ...], text: Path, as_json: bool, **settings: Any
) -> None:
    """Measure perplexity of CHECKPOINT, and of each of its PACKS in place of the memory.

    \b
    tolpack eval model.pt model.tolpack --text held-out.txt --tokenizer tokenizer.json
    tolpack eval model/ a.tolpack b.tolpack --text ids.npy --context 256 --json
    """
    from tolpack.evaluate import evaluate as run

    reading = take_reading(settings)
    evaluation = run(checkpoint, packs, text, reading=reading, reporter=Terminal(), **settings)
    if as_json:
        print_json(evaluation.to_json())
    else:
        click.echo(tables.evaluation_table(evaluation))
