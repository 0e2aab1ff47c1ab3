"""Opening what a row change takes its rows or keys from: tables, packs, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from tolpack.edits.edit_pack import chosen_layers
from tolpack.edits.row_changes import (
    RowChange,
    check_keys,
    rows_of_pack,
    rows_of_source,
    rows_of_table,
    strongest_keys,
    suppress_keys,
)
from tolpack.errors import CheckpointError, ConfigError
from tolpack.keys.layer_keys import load_layer_keys
from tolpack.pack import Pack
from tolpack.runtime.array_types import Ints
from tolpack.sources.arrays.npy import read_npy
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_kind import is_pack
from tolpack.sources.open_source import open_source, open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.locations import Location
from tolpack.torch.row_comparison import compare_rows, compared_ids

# Tokens that stand for the vocabulary where keys are compared with what all tokens use.
SAMPLE_TOKENS = 1024
Keys = Mapping[int, Sequence[int]]


def read_rows(path: Location, pack: Pack, token_ids: Ints) -> RowChange:
    """Read new rows of `token_ids`, in their order, from a ``.npy`` of floats.

    Its shape is [tokens, layers, hidden] or [tokens, layers·hidden].

    Raises
    ------
    ConfigError
        It cannot be read, or does not fit the pack or the tokens.
    """
    values = read_npy(path, "rows")
    shape = (len(token_ids), pack.num_layers, pack.hidden_size)
    fits = values.shape in (shape, (shape[0], shape[1] * shape[2]))
    if not fits or values.dtype.kind != "f":
        raise ConfigError(
            f"rows {path} are {values.dtype} {list(values.shape)}, expected floats {list(shape)}: "
            "[tokens, layers, hidden]"
        )
    return rows_of_table(values.reshape(shape), token_ids)


@contextmanager
def open_rows(
    path: Location, pack: Pack, options: CheckpointOptions | None = None
) -> Iterator[RowChange]:
    """Open the change to the rows of a checkpoint, a plain table or another pack.

    Raises
    ------
    ConfigError
        Its shape is not that of `pack`.
    CheckpointError, FormatError, FileAccessError
        It cannot be used.
    """
    if is_pack(path):
        with Pack(path, table=pack.table if len(pack.tables) > 1 else None) as other:
            _check_shape(path, (other.vocab_size, other.widths), pack)
            yield rows_of_pack(other)
        return
    source = _same_table(path, pack, options)
    _check_shape(path, (source.rows, tuple(one.width for one in source.fields)), pack)
    yield rows_of_source(source)


def _same_table(path: Location, pack: Pack, options: CheckpointOptions | None) -> TableSource:
    """Return the only table of `path`, or of several the one of the same name as the pack's."""
    tables = open_tables(path, options, None)
    named = [one for one in tables if one.name == pack.table]
    if len(tables) > 1 and not named:
        names = ", ".join(one.name for one in tables)
        raise ConfigError(f"{path} has no table {pack.table!r}: it has {names}")
    return named[0] if len(tables) > 1 else tables[0]


def _check_shape(path: Location, found: tuple[int, tuple[int, ...]], pack: Pack) -> None:
    expected = (pack.vocab_size, pack.widths)
    if found != expected:
        raise ConfigError(
            f"{path} holds {found[0]} tokens × {len(found[1])} layers of {_widths(found[1])} "
            f"values, and the pack {expected[0]} × {len(expected[1])} of {_widths(expected[1])}: "
            "they do not belong together"
        )


def _widths(widths: Sequence[int]) -> str:
    return "/".join(map(str, dict.fromkeys(widths)))


def open_keys(path: Location, pack: Pack, options: CheckpointOptions | None = None) -> Checkpoint:
    """Open the checkpoint whose keys a pack's rows are made of.

    Raises
    ------
    ConfigError
        Its table has not the shape of `pack`, or its rows have nothing to do with the pack's.
    CheckpointError
        It has no memory FFNs, and so no keys.
    """
    source = open_source(path, options)
    if source.checkpoint is None:
        raise CheckpointError(
            f"{path} has no memory FFNs, and so no keys: rows of its table can be changed by "
            "--zero, --scale, --rows or --from"
        )
    _check_shape(path, (source.rows, tuple(one.width for one in source.fields)), pack)
    _compare_rows(path, source, pack)
    return source.checkpoint


def _compare_rows(path: Location, source: TableSource, pack: Pack) -> None:
    """Refuse keys of another model: what they contribute is not part of the pack's rows."""
    ids = compared_ids(pack)
    rows = [
        source.field_rows(number)(ids)
        if number in pack.kept_layers
        else np.zeros((len(ids), field.width), np.float32)
        for number, field in enumerate(source.fields)
    ]
    compare_rows(pack, np.concatenate(rows, axis=1), str(path))


@dataclass(frozen=True, slots=True)
class KeySuppression:
    """Keys to suppress, by layer, and the change that does it."""

    keys: Keys
    change: RowChange


def suppress_chosen(checkpoint: Checkpoint, pack: Pack, keys: Keys) -> KeySuppression:
    """Return the change without given keys.

    Raises
    ------
    ConfigError
        A layer has no such key, or the pack dropped the layer.
    """
    load = partial(load_layer_keys, checkpoint)
    chosen_layers(pack, list(keys))
    found = {layer: check_keys(load(layer), ones).tolist() for layer, ones in keys.items()}
    return KeySuppression(found, suppress_keys(found, load))


def suppress_like(
    checkpoint: Checkpoint,
    pack: Pack,
    token_ids: Ints,
    count: int,
    layers: Sequence[int] | None = None,
) -> KeySuppression:
    """Return the change without the `count` keys of each layer that `token_ids` use more than
    others do, by `strongest_keys`; `SAMPLE_TOKENS` ids at equal distances stand for the others.

    Raises
    ------
    ConfigError
        A layer is unknown or dropped.
    """
    load = partial(load_layer_keys, checkpoint)
    others = np.unique(np.linspace(0, pack.vocab_size - 1, SAMPLE_TOKENS).astype(np.int64))
    keys = {
        layer: strongest_keys(load(layer), token_ids, others, count).tolist()
        for layer in sorted(chosen_layers(pack, layers))
    }
    return KeySuppression(keys, suppress_keys(keys, load))
