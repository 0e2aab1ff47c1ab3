"""``tolpack plan``: predicted sizes, or all decisions of a build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.cluster_options import cluster_options, take_cluster_options
from tolpack.commands.options import (
    LOCATION,
    checkpoint_options,
    compression_option,
    json_option,
    layers_option,
    print_json,
    resource_options,
    take_checkpoint_options,
    target_options,
    tensor_option,
    tokenizer_option,
    trellis_option,
)
from tolpack.commands.terminal import Terminal, checked, echo
from tolpack.compress.settings import (
    BITS,
    BuildSettings,
    parse_bits,
    parse_drops,
    parse_rank,
)
from tolpack.container.provenance import Provenance
from tolpack.errors import ConfigError
from tolpack.report import tables
from tolpack.report.cluster_table import cluster_table
from tolpack.report.provenance_lines import beside_weights
from tolpack.runtime.sizes import format_bytes
from tolpack.storage.locations import Location

if TYPE_CHECKING:  # these load torch, which help does not need
    from tolpack.compress.cluster_plan import ClusterBuild
    from tolpack.compress.measured_plan import PlanRequest

# Options by which the table itself decides: a plan then has to measure it.
_MEASURED = (
    "size", "max_kld", "max_ppl_increase", "max_relative_error", "trellis", "calibrate",
    "frequencies",
)  # fmt: skip


def _options_of_writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add options of build by which no plan differs: its command line can be given as it is."""
    options = (
        click.option(
            "-o", "--output", type=LOCATION, expose_value=False,
            help="As for build; nothing is written.",
        ),
        click.option(
            "--processes", type=click.IntRange(1), metavar="N", expose_value=False,
            help="As for build; changes nothing.",
        ),
        click.option(
            "--cluster", metavar="ADDRESS", expose_value=False,
            help="As for build; it is not connected to.",
        ),
        click.option(
            "--resume", is_flag=True, expose_value=False, help="As for build; changes nothing."
        ),
        click.option(
            "--force", is_flag=True, expose_value=False, help="As for build; changes nothing."
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.option("--rank", callback=checked(parse_rank), help="Rank of the basis, as for build.")
@click.option("--bits", type=click.Choice(BITS), help="Bits, as for build.")
@click.option(
    "--drop", default="none", show_default=True, callback=checked(parse_drops),
    help="Layers to drop, as for build.",
)  # fmt: skip
@compression_option
@trellis_option
@target_options
@tokenizer_option
@checkpoint_options
@layers_option
@tensor_option
@resource_options
@cluster_options
@_options_of_writing
@json_option
def plan(checkpoint: Location, as_json: bool, **settings: Any) -> None:
    """Predict sizes and costs of packs of CHECKPOINT without building one.

    Without a setting, usual ones are predicted from the table's shape. With auto, --size,
    --calibrate or --frequencies, the table is measured as for a build, which may take minutes, and
    the decisions of the build are shown: ranks, codecs, chunks and the predicted size.

    All options of build are taken, so that its command line can be tried with plan in its place.

    With --machines, the time of each phase of a build on so many machines is predicted, with the
    bytes that it reads and sends over the network, what it waits for, and its cost. A few thousand
    rows are encoded for that, and timed on this machine (docs/scale.md).

    \b
    tolpack plan model.pt
    tolpack plan model.pt --rank 50% --bits 4 --drop 5
    tolpack plan model.pt --rank auto --bits auto --size 12% --calibrate text.txt
    tolpack plan model/ --machines 10 --cores 16 --disk 1GB/s --network 10Gbit/s --price 1.20
    """
    build = take_cluster_options(settings)
    auto = [settings[name] for name in ("rank", "bits")] + [settings["drop"].split(":")[0]]
    if "auto" in auto or any(settings[name] not in (None, False) for name in _MEASURED):
        _show_measured(checkpoint, as_json, settings, build)
    elif build is not None:
        _show_cluster(checkpoint, as_json, settings, build)
    else:
        _show_predicted(checkpoint, as_json, settings)


def _show_predicted(checkpoint: Location, as_json: bool, settings: dict[str, Any]) -> None:
    from tolpack.compress.size_prediction import predict_checkpoint

    names = ("rank", "bits", "drop", "layers", "tensor", "compression")
    given = {name: settings[name] for name in names}
    plans = predict_checkpoint(
        checkpoint, checkpoint_options=take_checkpoint_options(settings), **given
    )
    if as_json:
        print_json({"plans": [one.to_json() for one in plans]})
    else:
        echo(tables.plan_table(plans))


def _show_cluster(
    checkpoint: Location, as_json: bool, settings: dict[str, Any], build: ClusterBuild
) -> None:
    from tolpack.compress.cluster_plan import predict_build

    request, rank = _request(checkpoint, settings), settings["rank"] or "none"
    size, phases = predict_build(request, rank, build, Terminal())
    if as_json:
        print_json({"plans": [size.to_json()], "cluster": phases.to_json()})
    else:
        echo(f"{tables.plan_table([size])}\n\n{cluster_table(phases)}")


def _show_measured(
    checkpoint: Location, as_json: bool, settings: dict[str, Any], build: ClusterBuild | None
) -> None:
    from tolpack.compress.cluster_plan import preview_build
    from tolpack.compress.measured_plan import preview_plan

    request, phases = _request(checkpoint, settings), None
    if build is None:
        found = preview_plan(request, Terminal())
    else:
        found, phases = preview_build(request, build, Terminal())
    if as_json:
        shown: dict[str, Any] = {"plans": [], "plan": found[0], "tables": found}
        print_json(shown if phases is None else {**shown, "cluster": phases.to_json()})
    else:
        heads = [f"{one['name']}\n" if len(found) > 1 else "" for one in found]
        texts = [head + tables.measured_plan_table(one) for head, one in zip(heads, found)]
        size = sum(one["predicted_bytes"] for one in found)
        beside = beside_weights(size, Provenance.of(found[0]["provenance"]))
        if beside is not None and len(found) == 1:
            texts[0] += f"; {beside}"
        elif beside is not None:
            texts.append(f"all tables: about {format_bytes(size)}; {beside}")
        echo("\n\n".join([*texts, *([] if phases is None else [cluster_table(phases)])]))


def _request(checkpoint: Location, settings: dict[str, Any]) -> PlanRequest:
    from tolpack.calibration.calibrate import CalibrationInputs
    from tolpack.compress.measured_plan import PlanRequest
    from tolpack.workspace.resources import Resources

    try:
        parsed = BuildSettings.parse(
            settings["rank"] or "none", parse_bits(settings["bits"] or "4"), settings["drop"],
            settings["size"], settings["max_ppl_increase"], settings["compression"],
            settings["max_relative_error"], settings["max_kld"], settings["trellis"],
        )  # fmt: skip
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return PlanRequest(
        checkpoint, parsed,
        CalibrationInputs(*(settings[n] for n in ("calibrate", "frequencies", "tokenizer"))),
        take_checkpoint_options(settings), settings["layers"], settings["tensor"],
        Resources(*(settings[name] for name in ("compute", "max_memory", "threads"))),
    )  # fmt: skip
