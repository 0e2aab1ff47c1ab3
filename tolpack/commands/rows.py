"""``tolpack rows``: single rows of a pack, or those of a text."""

from __future__ import annotations

from pathlib import Path

import click

import tolpack
from tolpack.commands.options import PATH, json_option, print_json
from tolpack.commands.terminal import echo
from tolpack.errors import ConfigError
from tolpack.evaluation.pack_description import locate
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.report import row_tables


@click.command()
@click.argument("pack", type=PATH)
@click.argument("token_ids", metavar="[TOKEN_ID...]", nargs=-1, type=int)
@click.option("--text", help="Show the tokens of this text instead of TOKEN_IDs.")
@click.option(
    "--tokenizer", type=PATH, help="tokenizer.json [default: with --text, the one beside PACK]."
)
@json_option
def rows(
    pack: Path, token_ids: tuple[int, ...], text: str | None, tokenizer: Path | None, as_json: bool
) -> None:
    """Show the rows of TOKEN_IDs: norm and first values of each layer, or all with --json.

    With --text, rows shows one line for each token of the text, in order: its slot and chunk, the
    bytes that a lookup of it reads, and the norm of its row, whole and by layer.

    \b
    tolpack rows model.tolpack 5 17
    tolpack rows model.tolpack 5 --json
    tolpack rows model.tolpack --text "The cat sat." --tokenizer tokenizer.json
    """
    if bool(token_ids) == (text is not None):
        raise click.UsageError("give either TOKEN_IDs or a --text")
    encoder = _open_tokenizer(pack, text, tokenizer)
    with tolpack.open(pack) as opened:
        ids = list(token_ids)
        if encoder is not None and text is not None:
            ids = encoder.encode_for(text, opened.vocab_size).tolist()
        values = opened.rows(ids)
        stats = opened.stats()
        locations = [] if text is None else locate(opened, ids)
    texts = None if encoder is None else encoder.texts(ids)
    if as_json:
        tokens = {} if texts is None else {"tokens": texts}
        print_json({"token_ids": ids, **tokens, "rows": values.tolist(), "stats": stats})
        return
    if text is None or texts is None:
        echo(row_tables.rows_table(ids, values, texts))
    else:
        echo(row_tables.text_table(ids, texts, locations, values, opened.kept_layers))
    reads = f"{stats['block_reads']} reads of records, {stats['block_bytes']} bytes"
    echo(f"\n{reads}; opening: {stats['open_reads']} reads, {stats['open_bytes']} bytes")


def _open_tokenizer(pack: Path, text: str | None, given: Path | None) -> TextTokenizer | None:
    path = given if text is None else find_tokenizer(pack, given)
    if path is None and text is not None:
        raise ConfigError(
            f"--text needs the model's tokenizer, and there is none beside {pack}: give "
            "--tokenizer tokenizer.json"
        )
    return None if path is None else TextTokenizer(path)
