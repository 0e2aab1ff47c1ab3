"""``tolpack eval``: what packs, and settings that are swept, change in a model's predictions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click

from tolpack.commands.evaluation_setup import KEPT, OutputFiles, open_evaluator, report_subject
from tolpack.commands.options import (
    LOCATION,
    edits_option,
    evaluation_options,
    json_option,
    print_json,
)
from tolpack.commands.terminal import echo, when_interrupted
from tolpack.errors import ConfigError
from tolpack.pack import open_first_table
from tolpack.reading.edits_files import share_edits
from tolpack.report import evaluation_tables, sweep_page
from tolpack.report.tables import warning_lines
from tolpack.storage.locations import Location

_SWEEP = "Settings to build and evaluate, like 'rank=none,50% bits=4,auto'; repeatable."


@click.command(name="eval")
@click.argument("checkpoint", type=LOCATION)
@click.argument("packs", nargs=-1, type=LOCATION)
@click.option("--sweep", multiple=True, metavar="SPEC", help=_SWEEP)
@edits_option
@evaluation_options
@json_option
def evaluate(
    checkpoint: Location,
    packs: tuple[Location, ...],
    sweep: tuple[str, ...],
    edits: tuple[Location, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure what PACKS change in the predictions of their CHECKPOINT.

    eval mounts a pack in place of the checkpoint's memory FFNs and scores both on the same text:
    by perplexity, by the KL divergence of the pack's predictions from the checkpoint's in nats, and
    by how often both hold the same next token most likely (top 1). KL divergence judges a pack;
    perplexity may even fall when rows get worse, on text unlike a model's training text.

    With several --text files everything is measured on each of them and over the windows of all.
    The worst text counts for the limits of recommended settings.

    Each of --edits goes to those of PACKS that it belongs to.

    With --sweep, eval builds, evaluates and removes packs of many settings. It does not measure a
    setting again that it measured before with the same inputs.

    \b
    tolpack eval model.pt model.tolpack --text held-out.txt --tokenizer tokenizer.json
    tolpack eval model/ a.tolpack b.tolpack --text ids.npy --context 256 --json
    tolpack eval model/ small.tolpack --text held-out.txt --text another-domain.txt
    tolpack eval model/ --text held-out.txt --sweep "rank=none,50% bits=4,8" --report sizes.html
    tolpack eval model/ --text held-out.txt --sweep "rank=auto bits=auto max-kld=0.002,0.008"
    """
    from tolpack.evaluation.experiment_runner import results_on_text
    from tolpack.evaluation.recommend import recommend
    from tolpack.evaluation.scores import Evaluation
    from tolpack.evaluation.sweep import run_sweep
    from tolpack.evaluation.sweep_grid import parse_grids

    try:
        grid, skipped = parse_grids(sweep) if sweep else ((), ())
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if not sweep and (settings["calibrate"] or settings["frequencies"] or settings["fresh"]):
        raise click.UsageError("--calibrate, --frequencies and --fresh are for --sweep")
    subject = report_subject(checkpoint, settings)
    outputs = OutputFiles.take(settings, checkpoint, *packs, *edits)
    if outputs.any and not packs and not sweep:
        raise click.UsageError("--csv, --plot and --report show packs: name some, or --sweep")
    for pack, own in zip(packs, share_edits(packs, edits)):  # before anything is measured
        open_first_table(pack, own).close()
    evaluator, options = open_evaluator(checkpoint, settings)
    scores = evaluator.packs(packs, edits)
    with when_interrupted(lambda: KEPT) if grid else nullcontext():
        results, refused = run_sweep(evaluator, grid, options) if grid else ((), ())
    skipped += refused
    evaluation = Evaluation(evaluator.context, evaluator.baseline, scores, evaluator.warnings)
    recommended = recommend(results, evaluator.windows)
    outputs.write(
        subject.title(evaluation.baseline), scores, results,
        lambda: sweep_page.sweep_page(subject, evaluation, results, skipped, recommended),
    )  # fmt: skip
    if as_json:
        swept = [result.to_json() for result in results]
        value = evaluation.to_json()
        for number, text in enumerate(value.get("texts", ())):
            text["packs"] += results_on_text(results, number)
        more = {"packs": [*value["packs"], *swept], "skipped": list(skipped)} if sweep else {}
        print_json({**value, **more})
        return
    parts = [evaluation_tables.evaluation_table(evaluation)]
    if results:
        parts.append(evaluation_tables.sweep_table(results, skipped))
    if evaluation.baseline.by_text and (scores or results):
        named = [
            *evaluation_tables.named_packs(scores),
            *((r.options.label, r.score) for r in results),
        ]
        parts.append(evaluation_tables.text_table(evaluation.baseline, named))
    echo("\n\n".join(parts) + warning_lines(evaluation.warnings))
