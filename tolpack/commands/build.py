"""``tolpack build``: a pack of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click

import tolpack
from tolpack.commands.options import (
    LOCATION,
    checkpoint_options,
    compression_option,
    json_option,
    layers_option,
    print_json,
    refuse_memory,
    refuse_two_maps,
    resource_options,
    target_options,
    tensor_option,
    tokenizer_option,
    trellis_option,
)
from tolpack.commands.terminal import Terminal, checked, echo, when_interrupted
from tolpack.compress.dask_cluster import cluster_executor
from tolpack.compress.settings import (
    BITS,
    BuildSettings,
    parse_bits,
    parse_drops,
    parse_rank,
)
from tolpack.errors import ConfigError
from tolpack.report import tables
from tolpack.runtime.sizes import parse_bytes
from tolpack.storage.locations import Location, local_path


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.option(
    "-o", "--output", type=LOCATION, help="The pack [default: NAME.tolpack beside it]; a URL, and "
    "with --part-size a folder, gets parts.",
)  # fmt: skip
@click.option(
    "--rank", default="none", show_default=True, callback=checked(parse_rank),
    help="Rank of the basis: none (no basis), auto, full, a number, 50%, or r0,r1,… by layer.",
)  # fmt: skip
@click.option(
    "--bits", type=click.Choice(BITS), default="4", show_default=True,
    help="Bits per value; auto: error compensation and entropy coding; lossless: every bit.",
)  # fmt: skip
@click.option(
    "--drop", default="none", show_default=True, callback=checked(parse_drops),
    help="Layers to drop: none, or 3,7-9; with --bits auto also auto, or auto:2 for two layers.",
)  # fmt: skip
@compression_option
@trellis_option
@target_options
@tokenizer_option
@checkpoint_options
@layers_option
@tensor_option
@resource_options
@click.option(
    "--processes", type=click.IntRange(1), metavar="N",
    help="Encode the rows in N processes, each with --max-memory and its share of the cores.",
)  # fmt: skip
@click.option(
    "--cluster", metavar="ADDRESS",
    help="Encode the rows on the workers of a Dask scheduler, like tcp://host:8786.",
)  # fmt: skip
@click.option(
    "--part-size", metavar="SIZE",
    callback=checked(lambda value: parse_bytes(value, "--part-size")),
    help="Write a folder of part files of about this size, like 256MB, and a manifest.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted build.")
@click.option("--force", is_flag=True, help="Replace an existing pack.")
@json_option
def build(checkpoint: Location, bits: str, as_json: bool, **settings: Any) -> None:
    """Build a pack from CHECKPOINT.

    CHECKPOINT is a .pt or .pth, a .safetensors, a .gguf, a folder with config.json and
    .safetensors, or a plain table (.npy, .h5, .safetensors) of shape [vocab, layers, hidden].
    Tables of other families than MemoryLLM (docs/families.md) are recognised by config and names.

    --calibrate gives token counts and the loss metrics of auto. --max-kld and --max-ppl-increase
    are measured on the last fifth of the calibration text. Without --calibrate, auto samples a text
    from the model.

    \b
    tolpack build model.pt
    tolpack build model/ -o small.tolpack --bits auto --rank auto --calibrate text.txt
    tolpack build model.pt --bits auto --rank auto --max-kld 0.005
    tolpack build model.pt --bits 8 --drop 3,7-9 --frequencies counts.npy
    tolpack build table.npy --layers 24 --bits 16
    tolpack build gemma-3n-E2B/ --bits lossless
    tolpack build engram/ -o parts/ --bits lossless --part-size 256MB --cluster tcp://host:8786
    tolpack build model/ --tensor model.embed_tokens.weight --bits 8
    """
    names = (
        "drop", "size", "max_ppl_increase", "compression", "max_relative_error", "max_kld",
        "trellis",
    )  # fmt: skip
    given = tuple(settings[name] for name in names)
    number = parse_bits(bits)
    try:
        parsed = BuildSettings.parse(settings["rank"], number, *given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    refuse_two_maps(settings)
    refuse_memory(settings["output"])
    output, terminal, cluster = settings.pop("output"), Terminal(), settings.pop("cluster")
    if cluster is not None and settings["processes"] is not None:
        raise click.UsageError("--processes and --cluster both say who encodes: give one of them")
    calibrates = parsed.loss_reach is not None
    with (
        when_interrupted(_continuation(checkpoint, output, settings["part_size"], calibrates)),
        nullcontext() if cluster is None else cluster_executor(cluster) as executor,
    ):
        result = tolpack.build(
            checkpoint, output, bits=number, executor=executor, reporter=terminal, **settings
        )
    if as_json:
        print_json(result.to_json())
    else:
        echo(tables.build_table(result))


def _continuation(
    checkpoint: Location, output: Location | None, part_size: str | None, calibrates: bool
) -> Callable[[], str]:
    """Return what says, once a build is interrupted, what it left and how to go on; `calibrates`:
    whether it measures losses, which are cached.
    """
    from tolpack.compress.outputs import output_files
    from tolpack.runtime.disk_cache import cached_file
    from tolpack.runtime.files import file_state

    if part_size is not None or (output is not None and local_path(output) is None):
        return lambda: "the same command uses the part files that are finished, and makes the rest"
    path, partial = output_files(checkpoint, output)
    before = file_state(path)

    def remedy() -> str:
        if file_state(path) != before:
            return f"{path} is complete; only the comparison with its input was not finished"
        if partial.exists():
            return f"the same command with --resume continues what was written, {partial}"
        again = "nothing was written yet; the same command begins again"
        if not calibrates or cached_file("name") is None:
            return again
        return f"{again}, and takes a calibration that was finished from the cache"

    return remedy
