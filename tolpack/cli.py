"""The command line: parse, call, print. Nothing is computed here.

torch is imported only by the commands that need it, so that ``inspect``, ``verify`` and ``rows``
work where only the reader is installed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tolpack
from tolpack import report
from tolpack.building.settings import (
    COMPUTE,
    DEFAULT_MAX_MEMORY,
    BuildSettings,
    parse_drop,
    parse_drops,
    parse_increase,
    parse_rank,
    parse_size,
)
from tolpack.errors import ConfigError
from tolpack.sizes import parse_bytes
from tolpack.sources.config import MODEL_TYPES
from tolpack.sources.key_map import BUILT_IN as BUILT_IN_MAPS
from tolpack.terminal import Group, Terminal, checked

if TYPE_CHECKING:  # it loads torch
    from tolpack.sources.checkpoint import Reading

_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_TABLE_SUFFIXES = (".npy", ".h5", ".hdf5", ".json", ".toml")
_PATH = click.Path(path_type=Path)


def _fixed_rank(value: str) -> None:
    if parse_rank(value).word == "auto":
        raise ConfigError("the ranks of auto follow from the table: plan a number or a percentage")


def _reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a checkpoint does not say itself."""
    options = (
        click.option("--config", type=_PATH, help="config.json, where the checkpoint has none."),
        click.option(
            "--arch", type=click.Choice(MODEL_TYPES), help="Model type, in place of the config's."
        ),
        click.option(
            "--map", "map_name", type=click.Choice(BUILT_IN_MAPS),
            help="Tensor names to expect [default: found by inspection].",
        ),
        click.option("--key-map", type=_PATH, help="Your own map of tensor names, a .toml."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _refuse_two_maps(settings: dict[str, Any]) -> None:
    if settings["map_name"] is not None and settings["key_map"] is not None:
        raise click.UsageError("--map and --key-map both choose the names: give one of them")


def _reading(settings: dict[str, Any]) -> Reading:
    """Take the settings of `_reading_options` out of `settings`."""
    from tolpack.sources.checkpoint import Reading

    _refuse_two_maps(settings)
    return Reading(*(settings.pop(name) for name in ("config", "arch", "map_name", "key_map")))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_tokenizer_option = click.option(
    "--tokenizer", type=_PATH, help="tokenizer.json; default: the one beside the checkpoint."
)
_layers_option = click.option(
    "--layers", type=click.IntRange(1), help="Layers of a two-dimensional plain table."
)
_drop_option = click.option(
    "--drop", default="none", show_default=True, callback=checked(parse_drop),
    help="Layers to leave out: none, or numbers and ranges like 3,7-9.",
)  # fmt: skip


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tolpack.__version__, prog_name="tolpack")
def main() -> None:
    """Make the feed-forward memory of MemoryLLM models small, and read its rows back fast.

    \b
    tolpack build model.pt                      a pack at 4 bits, ÷3.7
    tolpack build model.pt --bits auto --rank auto --calibrate text.txt      ÷10 and more
    tolpack eval model.pt model.tolpack --text held-out.txt
    tolpack demo                                all of it on a bundled model
    """


@main.command()
@click.argument("checkpoint", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The pack [default: NAME.tolpack beside it].")
@click.option(
    "--rank", default="none", show_default=True, callback=checked(parse_rank),
    help="auto, full, none (no basis), a number, a percentage like 50%, or r0,r1,… by layer.",
)  # fmt: skip
@click.option("--bits", type=click.Choice(["auto", "16", "8", "4"]), default="4", show_default=True)
@click.option(
    "--drop", default="none", show_default=True, callback=checked(parse_drops),
    help="Layers to leave out: none, or 3,7-9; with --bits auto also auto, or auto:2 for two.",
)  # fmt: skip
@click.option(
    "--size", callback=checked(lambda value: parse_size(value, 100)),
    help="With --rank or --bits auto: largest file, like 800MB or 12% of the FP16 table.",
)  # fmt: skip
@click.option(
    "--max-ppl-increase", callback=checked(parse_increase),
    help="With --bits auto: what the pack may cost on text held out [default: 0.25%].",
)  # fmt: skip
@click.option("--calibrate", type=_PATH, help="Text or .npy of token ids: counts, and losses.")
@click.option("--frequencies", type=_PATH, help=".npy of token counts; frequent tokens first.")
@_tokenizer_option
@_reading_options
@_layers_option
@click.option(
    "--compute",
    type=click.Choice(COMPUTE),
    default="auto",
    show_default=True,
    help="What FFNs are multiplied in; auto: bfloat16 for large tables, where it is fast.",
)
@click.option(
    "--max-memory",
    default=DEFAULT_MAX_MEMORY,
    show_default=True,
    callback=checked(lambda value: parse_bytes(value, "--max-memory")),
    help="Largest resident memory of the build, like 4GB or 800MB.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use [default: all].")
@click.option("--resume", is_flag=True, help="Continue an interrupted build.")
@click.option("--force", is_flag=True, help="Replace an existing pack.")
@_json_option
def build(checkpoint: Path, bits: str, as_json: bool, **settings: Any) -> None:
    """Build a pack from CHECKPOINT.

    CHECKPOINT is a .pt or .pth, a .safetensors, a folder with config.json and .safetensors, or a
    plain table (.npy, .h5, .safetensors) of shape [vocab, layers, hidden].

    \b
    tolpack build model.pt
    tolpack build model/ -o small.tolpack --bits auto --rank auto --calibrate text.txt
    tolpack build model.pt --bits auto --rank auto --max-ppl-increase 1%
    tolpack build model.pt --bits 8 --drop 3,7-9 --frequencies counts.npy
    tolpack build table.npy --layers 24 --bits 16
    """
    given = (settings["drop"], settings["size"], settings["max_ppl_increase"])
    number = bits if bits == "auto" else int(bits)
    try:
        BuildSettings.parse(settings["rank"], number, *given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    _refuse_two_maps(settings)
    output = settings.pop("output")
    result = tolpack.build(checkpoint, output, bits=number, reporter=Terminal(), **settings)
    if as_json:
        _print_json(result.to_json())
    else:
        click.echo(report.build_table(result))


@main.command(name="eval")
@click.argument("checkpoint", type=_PATH)
@click.argument("packs", nargs=-1, type=_PATH)
@click.option("--text", type=_PATH, required=True, help="UTF-8 text, or .npy of token ids.")
@_tokenizer_option
@_reading_options
@click.option(
    "--context", type=click.IntRange(1),
    help="Window length in tokens [default: the model's max_position_embeddings].",
)  # fmt: skip
@_json_option
def evaluate(
    checkpoint: Path, packs: tuple[Path, ...], text: Path, as_json: bool, **settings: Any
) -> None:
    """Measure perplexity of CHECKPOINT, and of each of its PACKS in place of the memory.

    \b
    tolpack eval model.pt model.tolpack --text held-out.txt --tokenizer tokenizer.json
    tolpack eval model/ a.tolpack b.tolpack --text ids.npy --context 256 --json
    """
    from tolpack.evaluate import evaluate as run

    reading = _reading(settings)
    evaluation = run(checkpoint, packs, text, reading=reading, reporter=Terminal(), **settings)
    if as_json:
        _print_json(evaluation.to_json())
    else:
        click.echo(report.evaluation_table(evaluation))


@main.command()
@click.argument("path", metavar="PACK|CHECKPOINT", type=_PATH)
@_reading_options
@_json_option
def inspect(path: Path, as_json: bool, **settings: Any) -> None:
    """Show what a pack holds, or what is recognised in a checkpoint.

    Of a checkpoint: the key map that fits its tensor names, every kind of tensor with shape and
    dtype, what is left over, and whether it is ready for build and eval.

    \b
    tolpack inspect model.tolpack
    tolpack inspect model.pt
    tolpack inspect model/ --key-map map.toml --json
    """
    if path.is_dir() or path.suffix in _CHECKPOINT_SUFFIXES:
        from tolpack.sources.checkpoint import open_checkpoint
        from tolpack.sources.description import summarize_checkpoint

        summary = summarize_checkpoint(open_checkpoint(path, _reading(settings)))
        info, text = summary.to_json(), report.checkpoint_table(summary)
    elif path.suffix in _TABLE_SUFFIXES:
        raise ConfigError(f"{path} is no pack and no checkpoint: expected .tolpack, "
                          f"{', '.join(_CHECKPOINT_SUFFIXES)} or a folder")  # fmt: skip
    else:
        from tolpack.summary import describe_pack

        with tolpack.open(path) as opened:
            info = describe_pack(opened)
        text = report.pack_table(info, str(path))
    if as_json:
        _print_json(info)
    else:
        click.echo(text)


@main.command()
@click.argument("pack", type=_PATH)
@_json_option
@click.pass_context
def verify(ctx: click.Context, pack: Path, as_json: bool) -> None:
    """Read all of PACK and check every checksum; exit 1 if anything is damaged.

    Each damaged place is named with the tokens that it hits; other tokens can still be read.

    \b
    tolpack verify model.tolpack
    """
    with tolpack.open(pack) as opened, Terminal().phase("verifying", opened.nbytes, "B") as done:
        damages = opened.verify(done)
    if as_json:
        found = [asdict(damage) for damage in damages]
        _print_json({"path": str(pack), "ok": not damages, "damages": found})
    else:
        for damage in damages:
            click.echo(report.damage_line(damage))
        count = f"{len(damages)} damaged place{'s' * (len(damages) > 1)}" if damages else "ok"
        click.echo(f"{pack}: {count}")
    ctx.exit(1 if damages else 0)


@main.command()
@click.argument("pack", type=_PATH)
@click.argument("token_ids", metavar="TOKEN_ID...", nargs=-1, type=int, required=True)
@_json_option
def rows(pack: Path, token_ids: tuple[int, ...], as_json: bool) -> None:
    """Show the rows of TOKEN_IDs: norm and first values of each layer, or all with --json.

    \b
    tolpack rows model.tolpack 5 17
    tolpack rows model.tolpack 5 --json
    """
    with tolpack.open(pack) as opened:
        found = opened.rows(list(token_ids))
        stats = opened.stats()
    if as_json:
        _print_json({"token_ids": list(token_ids), "rows": found.tolist(), "stats": stats})
    else:
        click.echo(report.rows_table(token_ids, found))
        reads = f"{stats['block_reads']} reads of records, {stats['block_bytes']} bytes"
        click.echo(f"\n{reads}; opening: {stats['open_reads']} reads, {stats['open_bytes']} bytes")


@main.command()
@click.argument("pack", type=_PATH)
@click.option("--rows", default=512, show_default=True, help="Rows of a large lookup.")
@click.option(
    "--seconds", default=1.0, show_default=True, help="Seconds for each measurement, about."
)
@_json_option
def bench(pack: Path, rows: int, seconds: float, as_json: bool) -> None:
    """Time lookups of PACK on this machine, warm and cold, in every I/O mode.

    Reads PACK whole, and drops it from the page cache before each cold lookup. Tokens are drawn
    evenly from the vocabulary: real text repeats its tokens and is faster.

    \b
    tolpack bench model.tolpack
    tolpack bench model.tolpack --rows 4096 --seconds 5
    """
    from tolpack.bench import run_bench

    result = run_bench(pack, rows, seconds, Terminal())
    if as_json:
        _print_json(result.to_json())
    else:
        click.echo(report.bench_table(result))


@main.command()
@click.argument("checkpoint", type=_PATH)
@click.option("--rank", callback=checked(_fixed_rank), help="Plan this rank only; not auto.")
@click.option("--bits", type=click.Choice(["16", "8", "4"]), help="Plan these bits only.")
@_drop_option
@_reading_options
@_layers_option
@_json_option
def plan(checkpoint: Path, as_json: bool, **settings: Any) -> None:
    """Predict sizes and costs of packs of CHECKPOINT, before any work.

    \b
    tolpack plan model.pt
    tolpack plan model.pt --rank 50% --bits 4 --drop 5
    """
    from tolpack.planning import plan_checkpoint

    plans = plan_checkpoint(checkpoint, reading=_reading(settings), **settings)
    if as_json:
        _print_json({"plans": [one.to_json() for one in plans]})
    else:
        click.echo(report.plan_table(plans))


@main.command()
@click.option("-o", "--output", type=_PATH, help="Keep the packs in this folder.")
@_json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Build packs of the bundled model at several settings and judge them.

    \b
    tolpack demo
    tolpack demo -o packs/
    """
    from tolpack.demo import run_demo

    with tempfile.TemporaryDirectory() as scratch:
        evaluation = run_demo(output or Path(scratch), Terminal())
    if as_json:
        _print_json(evaluation.to_json())
    else:
        click.echo(report.evaluation_table(evaluation))


if __name__ == "__main__":
    main()
