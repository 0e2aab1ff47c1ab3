"""Options that several commands share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tolpack.commands.terminal import checked
from tolpack.compress.settings import (
    COMPRESSIONS,
    check_size,
    parse_drop,
    parse_increase,
    parse_kld,
    parse_relative_error,
)
from tolpack.errors import ConfigError
from tolpack.runtime.sizes import parse_bytes
from tolpack.sources.checkpoint.config import MODEL_TYPES
from tolpack.sources.checkpoint.key_map import BUILT_IN as BUILT_IN_MAPS
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.storage.locations import Location, local_path, without_credentials
from tolpack.workspace.resources import COMPUTE, DEFAULT_MAX_MEMORY


class _LocationType(click.Path):
    """A path, or a URL as text: a `Path` would join its slashes. A ``file://`` URL is a path."""

    def __init__(self, *, remote: bool) -> None:
        self._remote = remote
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        try:
            path = local_path(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if path is not None:
            return super().convert(path, param, ctx)
        if not self._remote:
            self.fail(f"{without_credentials(value)} is not a path on this machine", param, ctx)
        return value


PATH = _LocationType(remote=False)
LOCATION = _LocationType(remote=True)
_CHECKPOINT_OPTIONS = ("config", "arch", "map_name", "key_map")


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
tokenizer_option = click.option(
    "--tokenizer", type=LOCATION, help="tokenizer.json [default: the one beside the checkpoint]."
)
table_option = click.option(
    "--table", metavar="NAME", help="Table of PACK [default: the only one]."
)
edits_option = click.option(
    "--edits", type=LOCATION, multiple=True,
    help="Edits of a pack, as tolpack edit makes them; repeatable, and the last one counts.",
)  # fmt: skip
layers_option = click.option(
    "--layers", type=click.IntRange(1), help="Number of layers of a two-dimensional plain table."
)
tensor_option = click.option(
    "--tensor", help="Name of any tensor of a checkpoint that is the table; * for a number.",
)  # fmt: skip
compression_option = click.option(
    "--compression", type=click.Choice(COMPRESSIONS), default="auto", show_default=True,
    help="With --bits lossless, 16, 8 or 4: auto entropy-codes frames where that pays.",
)  # fmt: skip
trellis_option = click.option(
    "--trellis", is_flag=True,
    help="With --bits auto: choose codes along a trellis; smaller, but slower to build and read.",
)  # fmt: skip
context_option = click.option(
    "--context", type=click.IntRange(1),
    help="Window length in tokens [default: the model's max_position_embeddings, but at most 2048, "
    "and less for a large vocabulary].",
)  # fmt: skip
drop_option = click.option(
    "--drop", default="none", show_default=True, callback=checked(parse_drop),
    help="Layers to drop: none, or numbers and ranges like 3,7-9.",
)  # fmt: skip


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for checkpoints that do not describe themselves."""
    options = (
        click.option("--config", type=LOCATION, help="config.json, if the checkpoint has none."),
        click.option(
            "--arch", type=click.Choice(MODEL_TYPES), help="Model type, instead of the config's."
        ),
        click.option(
            "--map", "map_name", type=click.Choice(BUILT_IN_MAPS),
            help="Built-in key map [default: the one that fits the tensor names].",
        ),
        click.option("--key-map", type=LOCATION, help="Your own key map, a .toml."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def refuse_two_maps(settings: dict[str, Any]) -> None:
    """Raise if both kinds of map were given."""
    if settings["map_name"] is not None and settings["key_map"] is not None:
        raise click.UsageError("--map and --key-map both choose the names: give one of them")


def refuse_memory(output: Location | None) -> None:
    """Raise if an output would be gone when the command ends."""
    if isinstance(output, str) and output.lower().startswith("memory://"):
        raise click.UsageError(
            f"{output} would be gone when this command ends: give a path, or another URL"
        )


def take_checkpoint_options(settings: dict[str, Any]) -> CheckpointOptions:
    """Take the settings of `checkpoint_options` out of `settings`."""
    refuse_two_maps(settings)
    return CheckpointOptions(*(settings.pop(name) for name in _CHECKPOINT_OPTIONS))


def refuse_checkpoint_options(settings: dict[str, Any], pack: Location) -> None:
    """Take the settings of `checkpoint_options` out of `settings`, and raise if one was given."""
    given = [name for name in _CHECKPOINT_OPTIONS if settings.pop(name) is not None]
    if given:
        option = given[0].removesuffix("_name").replace("_", "-")
        raise click.UsageError(f"--{option} is for checkpoints, and {pack} is a pack")


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a pack may take or cost, and on what that is measured."""
    options = (
        click.option(
            "--size", callback=checked(check_size),
            help="With --rank or --bits auto: largest size of the pack, 800MB or 12% of the FP16 "
            "table.",
        ),
        click.option(
            "--max-kld", metavar="NATS", callback=checked(parse_kld),
            help="With --bits auto: limit of the mean KL divergence from the model's own "
            "predictions [default: 0.002].",
        ),
        click.option(
            "--max-ppl-increase", callback=checked(parse_increase),
            help="With --bits auto: limit of the perplexity increase, like 1%, instead.",
        ),
        click.option(
            "--max-relative-error", callback=checked(parse_relative_error),
            help="With --bits auto: limit of the rows' relative error, for tables whose model "
            "cannot be run.",
        ),
        click.option("--calibrate", type=LOCATION, help="Calibration text, or .npy of token ids."),
        click.option(
            "--frequencies", type=LOCATION,
            help=".npy of token counts, by which tokens are ordered; or a folder of TABLE.npy.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def resource_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the resources of a build."""
    options = (
        click.option(
            "--compute", type=click.Choice(COMPUTE), default="auto", show_default=True,
            help="Dtype of matrix products; auto: bfloat16 for large tables, if fast.",
        ),
        click.option(
            "--max-memory", default=DEFAULT_MAX_MEMORY, show_default=True,
            callback=checked(lambda value: parse_bytes(value, "--max-memory")),
            help="Limit of the build's resident memory, like 4GB or 800MB.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Cores to use [default: all]."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `eval` and `study` share: text, inputs of builds, and output files."""
    options = (
        click.option(
            "--text", "texts", type=LOCATION, required=True, multiple=True,
            help="Evaluation text, or .npy of token ids; repeatable.",
        ),
        tokenizer_option,
        checkpoint_options,
        context_option,
        click.option("--calibrate", type=LOCATION, help="Calibration text, or .npy of token ids."),
        click.option("--frequencies", type=LOCATION, help=".npy of token counts for the builds."),
        resource_options,
        click.option("--scratch", type=PATH, help="Folder for temporary packs [default: TMPDIR]."),
        click.option("--fresh", is_flag=True, help="Measure again; use no cached results."),
        click.option("--csv", "csv_path", type=PATH, help="Write the results of the packs, .csv."),
        click.option(
            "--plot", type=PATH,
            help="Draw perplexity and KL divergence against size, .png or .svg.",
        ),
        click.option("--report", type=PATH, help="Write a report with charts and tables, .html."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def task_names(value: str) -> tuple[str, ...]:
    """Split names of tasks at commas, and keep lm-eval from logging what it always does."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tuple(name.strip() for name in value.split(",") if name.strip())


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(value, indent=2))
