"""``tolpack keys``: which keys of the memory FFNs tokens use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.options import (
    LOCATION,
    PATH,
    checkpoint_options,
    json_option,
    print_json,
    take_checkpoint_options,
    tokenizer_option,
)
from tolpack.commands.terminal import Terminal, command_line, echo
from tolpack.errors import ConfigError
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.model.tokenizer_check import TokenizerCheck
from tolpack.report.output_files import check_output_file
from tolpack.sources.input_kind import is_gguf, is_pack
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location

if TYPE_CHECKING:  # they load torch
    from tolpack.keys.analysis import KeySettings
    from tolpack.sources.checkpoint.checkpoint import Checkpoint

_TABLES = (".npy", ".h5", ".hdf5")


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.option("--layers", help="Layers to read, as 0,3 or 2-5 [default: all].")
@click.option(
    "--clusters", type=click.IntRange(2), default=32, show_default=True,
    help="Number of clusters of tokens in each layer.",
)  # fmt: skip
@click.option(
    "--token", "tokens", multiple=True, metavar="TOKEN",
    help="Look a token up, by its id or its text; repeatable. Digits in quotes are a text.",
)  # fmt: skip
@click.option(
    "--key", "keys", multiple=True, metavar="LAYER:KEY", help="Look a key up; repeatable."
)
@tokenizer_option
@checkpoint_options
@click.option(
    "--projection", type=click.Choice(("tsne", "pca")), default="tsne", show_default=True,
    help="How --report places tokens on its map.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
              help="Seed of clusters, samples and maps.")  # fmt: skip
@click.option("--report", type=PATH, help="Write a report with a map of the vocabulary, .html.")
@json_option
def keys(checkpoint: Location, report: Path | None, as_json: bool, **settings: Any) -> None:
    """Show which keys of CHECKPOINT's memory FFNs tokens use, and which tokens use the same.

    The row of a token in a layer is a sum of values, the columns of W_down, each times the token's
    coefficient for that key (MemoryLLM, section 3). keys computes the coefficients of the whole
    vocabulary, puts tokens with similar ones into clusters (k-means), and says for each layer how
    far they fall into clusters, and how many keys are outliers, each beside controls.

    With --token it shows the nearest tokens by keys, the strongest keys, and other tokens of these.
    The strength of a key for a token is the norm of what it adds to the row. With --key it shows
    the tokens of a key. The report has a map of the vocabulary for each layer.

    \b
    tolpack keys model/ --report keys.html
    tolpack keys model.pt --tokenizer tokenizer.json --layers 0 --token " London" --token 431
    tolpack keys model/ --layers 0,3 --key 0:526 --key 3:17 --json
    """
    from tolpack.keys.analysis import analyse_keys
    from tolpack.report import key_tables

    _refuse_other_inputs(checkpoint)
    tokenizer = settings.pop("tokenizer")
    inputs = [one for one in (checkpoint, tokenizer) if one is not None]
    check_output_file(report, (".html", ".htm"), inputs)
    opened, asked, texts = _open(checkpoint, tokenizer, report is not None, settings)
    analysis = analyse_keys(opened, asked, texts, Terminal())
    if report is not None:
        from tolpack.report.keys_page import keys_page
        from tolpack.report.page import write_page

        write_page(keys_page(analysis, command_line()), report)
    if as_json:
        print_json(key_tables.keys_json(analysis))
    else:
        echo(key_tables.keys_text(analysis))


def _open(
    checkpoint: Location, tokenizer: Location | None, mapped: bool, settings: dict[str, Any]
) -> tuple[Checkpoint, KeySettings, list[str | None] | None]:
    """Open checkpoint and tokenizer; returns them with what is asked, checked."""
    from tolpack.keys.analysis import KeySettings, check_settings
    from tolpack.keys.named_tokens import find_tokens, parse_key, parse_layers
    from tolpack.sources.checkpoint.checkpoint import open_checkpoint

    layers = settings["layers"]
    asked = KeySettings(
        None if layers is None else parse_layers(layers), settings["clusters"], settings["seed"],
        settings["projection"] if mapped else None,
        keys=tuple(map(parse_key, settings["keys"])),
    )  # fmt: skip
    opened = open_checkpoint(checkpoint, take_checkpoint_options(settings))
    check_settings(opened, asked)
    path, vocab_size = find_tokenizer(input_path(checkpoint), tokenizer), opened.config.vocab_size
    encoder = None if path is None else TextTokenizer(path)
    if encoder is not None:
        TokenizerCheck(input_path(checkpoint), vocab_size, Terminal())(encoder)
    tokens = tuple(find_tokens(settings["tokens"], encoder, vocab_size).tolist())
    asked = KeySettings(
        asked.layers, asked.clusters, asked.seed, asked.projection, tokens, asked.keys
    )
    check_settings(opened, asked)
    texts = None if encoder is None else encoder.texts(range(vocab_size))
    return opened, asked, texts


def _refuse_other_inputs(checkpoint: Location) -> None:
    """Raise `ConfigError` for what has rows and no keys."""
    kind = "a pack" if is_pack(checkpoint) else "a GGUF file" if is_gguf(checkpoint) else None
    if input_path(checkpoint).suffix in _TABLES:
        kind = "a plain table"
    if kind is not None:
        raise ConfigError(
            f"{checkpoint} is {kind}: its rows are sums over keys that it does not hold. Give the "
            "MemoryLLM checkpoint that the rows were computed from"
        )
