"""``tolpack rows``: single rows of a pack, or those of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import tolpack
from tolpack.commands.options import (
    LOCATION,
    edits_option,
    json_option,
    print_json,
    table_option,
)
from tolpack.commands.terminal import echo
from tolpack.container.ngram_header import MAX_ID
from tolpack.errors import ConfigError
from tolpack.evaluation.pack_description import locate
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.report import row_tables
from tolpack.runtime.sizes import counted
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location


class _TokenIdType(click.types.IntParamType):
    """A number; the error for a word names the option that takes words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See `click.ParamType`."""
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not a token id; for words give --text {value!r}", param, ctx)


@click.command()
@click.argument("pack", type=LOCATION)
@click.argument("token_ids", metavar="[TOKEN_ID...]", nargs=-1, type=_TokenIdType())
@click.option("--text", help="Show the tokens of this text instead of TOKEN_IDs.")
@click.option(
    "--tokenizer", type=LOCATION, help="tokenizer.json [default: with --text, the one beside PACK]."
)
@table_option
@edits_option
@json_option
def rows(
    pack: Location,
    token_ids: tuple[int, ...],
    text: str | None,
    tokenizer: Location | None,
    table: str | None,
    edits: tuple[Location, ...],
    as_json: bool,
) -> None:
    """Show the rows of TOKEN_IDs: norm and first values of each layer, or all with --json.

    With --text, rows shows one line for each token of the text, in order: its slot and chunk, or
    that its row comes from edits, the bytes that a lookup of it reads, and the norm of its row,
    whole and by layer. Of a table of hashed n-grams it shows the numbers of the rows that the token
    touches; there, TOKEN_IDs are numbers of rows.

    \b
    tolpack rows model.tolpack 5 17
    tolpack rows model.tolpack 5 --json
    tolpack rows model.tolpack --text "The cat sat." --tokenizer tokenizer.json
    tolpack rows engram.tolpack --table layer.14 --text "The cat sat."
    """
    if bool(token_ids) == (text is not None):
        raise click.UsageError("give token ids, like 5 17, or a --text")
    encoder = _open_tokenizer(pack, text, tokenizer)
    with tolpack.open(pack, table=table, edits=edits) as opened:
        if opened.ngrams is not None:
            if encoder is not None and text is not None:
                _show_row_ids(opened, encoder, text, as_json=as_json)
                return
            encoder = None  # numbers of rows are not token ids
        ids = list(token_ids)
        if encoder is not None and text is not None:
            ids = encoder.encode_for(text, opened.vocab_size).tolist()
        values, names = _rows_by_field(opened, ids), _field_names(opened)
        stats = opened.stats()
        locations = [] if text is None else locate(opened, ids)
    texts = None if encoder is None else encoder.texts(ids)
    if as_json:
        tokens = {} if texts is None else {"tokens": texts}
        listed = [[field.tolist() for field in row] for row in values]
        print_json({"token_ids": ids, **tokens, "rows": listed, "stats": stats})
        return
    if text is None or texts is None:
        echo(row_tables.rows_table(ids, values, names, texts))
    else:
        echo(row_tables.text_table(ids, texts, locations, values, names, opened.kept_layers))
    echo(f"\n{_reads_line(stats)}")


def _reads_line(stats: Mapping[str, Any]) -> str:
    """Write what a lookup read, from `Pack.stats`."""
    line = f"{counted(stats['block_reads'], 'read')} of records, {stats['block_bytes']:,} bytes"
    if stats["edited_rows"]:
        line += f", and {stats['edited_rows']} of {counted(stats['rows'], 'row')} from edits"
    opening = f"{counted(stats['open_reads'], 'read')}, {stats['open_bytes']:,} bytes"
    return f"{line}; opening: {opening}"


def _rows_by_field(pack: tolpack.Pack, ids: list[int]) -> list[list[NDArray[np.float32]]]:
    """Rows as lists of their fields, which may differ in width: by id, then by field."""
    if len(set(pack.widths)) == 1:
        return [list(row) for row in pack.rows(ids)]
    fields = [pack.rows(ids, [number])[:, 0] for number in range(pack.num_layers)]
    return [list(row) for row in zip(*fields)]


def _field_names(pack: tolpack.Pack) -> list[str]:
    """What fields are called: numbers, unless their layers are others."""
    numbered = all(field.layer == number for number, field in enumerate(pack.fields))
    return [str(field.layer) if numbered else field.name for field in pack.fields]


def _show_row_ids(pack: tolpack.Pack, encoder: TextTokenizer, text: str, *, as_json: bool) -> None:
    """Show which rows of a table of n-grams a text touches."""
    ids = encoder.encode_for(text, MAX_ID + 1).tolist()
    numbers, texts = pack.row_ids(ids), encoder.texts(ids)
    if as_json:
        print_json({"token_ids": ids, "tokens": texts, "row_ids": numbers.tolist()})
        return
    echo(row_tables.row_ids_table(ids, texts, numbers))
    extents = np.unique(pack.extents(np.unique(numbers)), axis=0)
    size = f"{counted(len(extents), 'extent')}, {int(extents[:, 1].sum()):,} bytes"
    rows = f"{counted(numbers.size, 'row')} of {counted(len(ids), 'token')}"
    echo(f"\n{rows}: a lookup of all reads {size}")


def _open_tokenizer(
    pack: Location, text: str | None, given: Location | None
) -> TextTokenizer | None:
    path = given if text is None else find_tokenizer(input_path(pack), given)
    if path is None and text is not None:
        raise ConfigError(
            f"--text needs the model's tokenizer, and there is none beside {pack}: give "
            "--tokenizer tokenizer.json"
        )
    return None if path is None else TextTokenizer(path)
