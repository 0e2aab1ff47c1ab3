"""``tolpack study``: the paper's experiments on a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.evaluation_setup import (
    KEPT,
    OutputFiles,
    open_evaluator,
    report_subject,
    split_parts,
)
from tolpack.commands.options import (
    LOCATION,
    evaluation_options,
    json_option,
    print_json,
    task_names,
)
from tolpack.commands.terminal import echo, when_interrupted
from tolpack.evaluation import STUDY_PARTS
from tolpack.report import study_page, study_tables
from tolpack.report.tables import warning_lines
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location

if TYPE_CHECKING:  # it loads torch
    from tolpack.evaluation.task_accuracy import TaskSettings


@click.command()
@click.argument("checkpoint", type=LOCATION)
@evaluation_options
@click.option("--tokens", type=click.IntRange(2), help="Use only the first N tokens of the text.")
@click.option(
    "--only", "parts", default=",".join(STUDY_PARTS), callback=split_parts(STUDY_PARTS),
    help=f"Parts to run, of {', '.join(STUDY_PARTS)} [default: all].",
)  # fmt: skip
@click.option(
    "--tasks",
    help="Tasks of lm-eval to run too, with commas; tolpack_* are made of the first --text.",
)  # fmt: skip
@click.option(
    "--task-limit", type=click.IntRange(2), default=250, show_default=True,
    help="With --tasks: use only the first N documents of a task.",
)  # fmt: skip
@json_option
def study(
    checkpoint: Location, tokens: int | None, parts: tuple[str, ...], as_json: bool, **settings: Any
) -> None:
    """Run the MemoryLLM paper's experiments on CHECKPOINT and recommend settings for packs.

    The experiments are: precision, uniform ranks against ranks by loss, layer ablation, scaled
    memory FFN outputs, spectra, and sizes. A study takes about an hour for a small model. It
    caches its measurements, so an interrupted study continues where it stopped. With several --text
    files packs are measured on each, and the worst text counts for the settings it recommends.

    \b
    tolpack study model/ --text held-out.txt --calibrate text.txt --report report.html
    tolpack study model.pt --text ids.npy --only precision,layers --tokens 65536
    """
    from tolpack.evaluation.recommend import recommend
    from tolpack.evaluation.study import run_study

    subject = report_subject(checkpoint, settings)
    tasks = _take_tasks(settings)
    outputs = OutputFiles.take(settings, checkpoint)
    evaluator, options = open_evaluator(checkpoint, settings, tokens)
    with when_interrupted(lambda: KEPT):
        results = run_study(evaluator, replace(options, tasks=tasks), parts)
    recommended = recommend(results.packs, evaluator.windows)
    outputs.write(
        subject.title(results.baseline), (), results.packs,
        lambda: study_page.study_page(subject, results, recommended, evaluator.warnings),
    )  # fmt: skip
    if as_json:
        more = {"command": subject.command, "choices": [one.to_json() for one in recommended]}
        print_json({**results.to_json(), **more})
    else:
        text = study_tables.study_text(results, recommended)
        echo(f"{subject.command}\n\n{text}{warning_lines(results.warnings)}")


def _take_tasks(settings: dict[str, Any]) -> TaskSettings | None:
    """Take the tasks out of `settings`, if there are any."""
    from tolpack.evaluation.task_accuracy import TaskSettings

    tasks, limit = settings.pop("tasks"), settings.pop("task_limit")
    if tasks is None:
        return None
    return TaskSettings(
        task_names(tasks), input_path(settings["texts"][0]), settings["tokenizer"], limit
    )
