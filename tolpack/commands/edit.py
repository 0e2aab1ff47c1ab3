"""``tolpack edit``: new rows for some tokens, as a file of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import tolpack
from tolpack.commands.options import (
    LOCATION,
    PATH,
    checkpoint_options,
    edits_option,
    json_option,
    print_json,
    table_option,
    take_checkpoint_options,
)
from tolpack.commands.terminal import checked, echo
from tolpack.container.atomic_write import check_output, refuse_existing
from tolpack.edits import DEFAULT_KEYS
from tolpack.keys.named_tokens import parse_keys, parse_layers
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.storage.locations import Location

_CHANGES = ("zero", "scale", "rows", "source", "keys", "like")
_OPTIONS = {"source": "--from", "keys": "--suppress-keys", "like": "--suppress-like"}
_OF_KEYS = ("keys", "like")


def _change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what rows become."""
    options = (
        click.option("--zero", is_flag=True, help="Zeros."),
        click.option("--scale", type=float, metavar="F", help="The row times F."),
        click.option(
            "--rows", type=LOCATION, metavar="TABLE.npy",
            help="Rows [tokens, layers, hidden], one for each token in the order given.",
        ),
        click.option(
            "--from", "source", type=LOCATION, metavar="CHECKPOINT|PACK",
            help="The rows of another checkpoint, plain table or pack.",
        ),
        click.option(
            "--suppress-keys", "keys", metavar="LAYER:KEY,…", callback=checked(parse_keys),
            help="The row less what these keys of --checkpoint contribute.",
        ),
        click.option(
            "--suppress-like", "like", multiple=True, metavar="TOKEN",
            help="The row less the keys that TOKEN uses more than others do; repeatable.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("pack", type=LOCATION)
@click.option("-o", "output", type=PATH, required=True, help="File of edits to write.")
@click.option(
    "--token", "names", multiple=True, metavar="TOKEN",
    help="Token to edit: its id, or its text with the space before it; repeatable.",
)  # fmt: skip
@click.option("--tokens", type=LOCATION, metavar="FILE.npy", help=".npy of token ids to edit.")
@_change_options
@click.option(
    "--keys-per-layer", type=click.IntRange(1),
    help=f"With --suppress-like: keys of each layer [default: {DEFAULT_KEYS}].",
)  # fmt: skip
@click.option(
    "--layers", callback=checked(parse_layers),
    help="Layers to change, like 0,3-5 [default: all that the pack stores].",
)  # fmt: skip
@click.option("--checkpoint", type=LOCATION, help="Checkpoint with the keys to suppress.")
@click.option(
    "--tokenizer", type=LOCATION,
    help="tokenizer.json [default: the one beside PACK, or beside the checkpoint].",
)  # fmt: skip
@click.option(
    "--bits", type=click.Choice(("32", "16")), default="32", show_default=True,
    help="32 stores the new rows exactly; 16 rounds them.",
)  # fmt: skip
@edits_option
@table_option
@checkpoint_options
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def edit(pack: Location, output: Path, as_json: bool, **settings: Any) -> None:
    """Write new rows for some tokens of PACK to a file of edits; PACK is not changed.

    tolpack.open(PACK, edits=[EDITS]) and the option --edits of other commands give the rows of PACK
    with these in place. Edits belong to the pack that they were made for, and to no other. Edited
    rows are stored whole, so that no other token's row changes; layers that are not in --layers
    keep the values that PACK gives, with --edits if there are some.

    --suppress-keys and --suppress-like subtract c·W_down[:, k] of the keys k, with the coefficients
    c that the token has in --checkpoint. --suppress-like chooses keys in each layer: those whose
    mean |c|·‖W_down[:, k]‖ over the given tokens exceeds that over 1,024 tokens of the vocabulary
    most.

    \b
    tolpack edit model.tolpack -o names.edits --token " Ahab" --token 3081 --zero
    tolpack edit model.tolpack -o half.edits --tokens ids.npy --scale 0.5 --layers 0-3
    tolpack edit model.tolpack -o new.edits --tokens ids.npy --rows rows.npy
    tolpack edit model.tolpack -o exact.edits --tokens ids.npy --from model.pt
    tolpack edit model.tolpack -o k.edits --token 17 --suppress-keys 0:12,3:7 --checkpoint m.pt
    """
    force, table, edits = (settings.pop(name) for name in ("force", "table", "edits"))
    request = _request(settings)
    check_output(output, [pack, *edits])
    refuse_existing(output, force=force)
    with tolpack.open(pack, table=table, edits=edits) as opened:
        from tolpack.edits.edit_request import EditRequest, make_edits
        from tolpack.report.edit_table import edit_table

        made = make_edits(opened, output, EditRequest(**request), force=force)
    if as_json:
        print_json(made.to_json())
    else:
        echo(edit_table(made))


def _request(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of an `EditRequest` out of `settings`, checked as far as they can be.

    Raises
    ------
    UsageError
        Options are missing, or contradict each other.
    """
    if not settings["names"] and settings["tokens"] is None:
        raise click.UsageError("no token to edit: give --token TOKEN or --tokens FILE.npy")
    given = [name for name in _CHANGES if _is_given(settings[name])]
    options = [_OPTIONS.get(name, f"--{name}") for name in given]
    if len(given) != 1:
        every = ", ".join(_OPTIONS.get(name, f"--{name}") for name in _CHANGES)
        found = " and ".join(options) or "none"
        raise click.UsageError(f"one change is needed, {found} given: choose one of {every}")
    _check_keys_options(settings, given[0], options[0])
    request = {name: settings.pop(name) for name in ("names", "tokens", *_CHANGES, "checkpoint")}
    request["options"] = take_checkpoint_options(settings)
    if request["options"] != CheckpointOptions() and given[0] not in (*_OF_KEYS, "source"):
        raise click.UsageError(f"{options[0]} reads no checkpoint: leave out the options of one")
    request["tokenizer"], request["bits"] = settings.pop("tokenizer"), int(settings.pop("bits"))
    per_layer, layers = settings.pop("keys_per_layer"), settings.pop("layers")
    request |= {} if per_layer is None else {"keys_per_layer": per_layer}
    request["layers"] = None if layers is None else parse_layers(layers)
    if request["keys"] is not None:
        request["keys"] = parse_keys(request["keys"])
    return request


def _is_given(value: Any) -> bool:
    """Whether an option was given; a number 0 is."""
    return value is not None and value is not False and value != ()


def _check_keys_options(settings: dict[str, Any], change: str, option: str) -> None:
    """Refuse options that belong to another change."""
    suppresses = change in _OF_KEYS
    if suppresses and settings["checkpoint"] is None:
        raise click.UsageError(f"{option} needs the keys of a checkpoint: give --checkpoint")
    if not suppresses and settings["checkpoint"] is not None:
        raise click.UsageError(f"--checkpoint has the keys to suppress: it is not for {option}")
    if change != "like" and settings["keys_per_layer"] is not None:
        raise click.UsageError(f"--keys-per-layer is for --suppress-like, not for {option}")
