"""Shared by ``eval`` and ``study``: opening the checkpoint and text, and writing result files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.options import take_checkpoint_options
from tolpack.commands.terminal import Terminal, command_line
from tolpack.report import plots, trade_off
from tolpack.report.output_files import check_output_file
from tolpack.report.page import write_page
from tolpack.report.page_content import Page
from tolpack.report.report_subject import ReportSubject
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location

if TYPE_CHECKING:  # these load torch
    from tolpack.evaluation.evaluator import Evaluator
    from tolpack.evaluation.experiment_runner import ExperimentOptions, SweepResult
    from tolpack.evaluation.scores import PackScore

# What Ctrl-C leaves of many measurements.
KEPT = "what was measured is kept, and the same command without --fresh continues after it"
# Options that a build of the same pack takes too.
_SHARED = {
    "calibrate": "--calibrate", "frequencies": "--frequencies", "tokenizer": "--tokenizer",
    "config": "--config", "arch": "--arch", "map_name": "--map", "key_map": "--key-map",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Files of results, checked before hours of measuring."""

    csv: Path | None
    plot: Path | None
    report: Path | None

    @classmethod
    def take(cls, settings: dict[str, Any], *inputs: Location) -> OutputFiles:
        """Take the output files out of `settings`.

        Raises
        ------
        ConfigError, FileAccessError
            A file cannot be written, or is an input.
        """
        files = cls(*(settings.pop(name) for name in ("csv_path", "plot", "report")))
        inputs += tuple(value for value in settings.values() if isinstance(value, Path))
        inputs += settings["texts"]
        check_output_file(files.csv, (".csv",), inputs)
        check_output_file(files.plot, plots.SUFFIXES, inputs)
        check_output_file(files.report, (".html", ".htm"), inputs)
        if files.plot is not None:
            plots.check_plot()
        return files

    @property
    def any(self) -> bool:
        """Whether any file was asked for."""
        return any(path is not None for path in (self.csv, self.plot, self.report))

    def write(
        self,
        title: str,
        packs: Sequence[PackScore],
        results: Sequence[SweepResult],
        page: Callable[[], Page],
    ) -> None:
        """Write the files that were asked for; `page` returns the report."""
        if self.csv is not None:
            trade_off.write_csv(packs, results, self.csv)
        if self.plot is not None and (packs or results):
            trade_off.plot_sweep(packs, results, self.plot, title)
        elif self.plot is not None:
            Terminal().say(f"{self.plot} is not drawn: there are no packs to show")
        if self.report is not None:
            write_page(page(), self.report)


def report_subject(checkpoint: Location, settings: dict[str, Any]) -> ReportSubject:
    """Return the subject of a report, from the settings that name it."""
    words: list[object] = ["tolpack", "build", checkpoint]
    for name, option in _SHARED.items():
        if settings[name] is not None:
            words += [option, settings[name]]
    paths = [input_path(one) for one in (checkpoint, *settings["texts"])]
    return ReportSubject(paths[0], tuple(paths[1:]), command_line(), shlex.join(map(str, words)))


def open_evaluator(
    checkpoint: Location, settings: dict[str, Any], tokens: int | None = None
) -> tuple[Evaluator, ExperimentOptions]:
    """Open the checkpoint and the text; takes the remaining options out of `settings`."""
    from tolpack.calibration.calibrate import CalibrationInputs
    from tolpack.evaluation.evaluator import Evaluator
    from tolpack.evaluation.experiment_runner import ExperimentOptions
    from tolpack.workspace.resources import Resources

    checkpoint_options = take_checkpoint_options(settings)
    tokenizer = settings.pop("tokenizer")
    calibration = CalibrationInputs(
        settings.pop("calibrate"), settings.pop("frequencies"), tokenizer
    )
    resources = Resources(*(settings.pop(name) for name in ("compute", "max_memory", "threads")))
    options = ExperimentOptions(
        calibration, resources, settings.pop("scratch"), settings.pop("fresh")
    )
    evaluator = Evaluator(
        checkpoint, settings.pop("texts"), tokenizer=tokenizer,
        checkpoint_options=checkpoint_options, context=settings.pop("context"), tokens=tokens,
        reporter=Terminal(),
    )  # fmt: skip
    return evaluator, options


def split_parts(parts: Sequence[str]) -> Any:
    """Return a click callback that splits a list at commas and refuses all but `parts`."""

    def callback(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        unknown = [word for word in words if word not in parts]
        if unknown or not words:
            reason = f"no part {', '.join(unknown)}" if unknown else "no part is named"
            raise click.BadParameter(f"{reason}: choose from {', '.join(parts)}")
        return words

    return callback
