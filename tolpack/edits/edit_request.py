"""An edit as the command line asks for it: which tokens, and what their rows become.

Everything that can be refused without a model is refused before one is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.container.atomic_write import check_output
from tolpack.edits import DEFAULT_KEYS
from tolpack.edits.edit_pack import EditResult, chosen_layers, edit_pack
from tolpack.edits.open_changes import (
    Keys,
    KeySuppression,
    open_keys,
    open_rows,
    read_rows,
    suppress_chosen,
    suppress_like,
)
from tolpack.edits.row_changes import RowChange, scale_rows, zero_rows
from tolpack.edits.write_edits import ascending_ids
from tolpack.errors import ConfigError
from tolpack.keys.named_tokens import find_tokens, read_tokens
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.pack import Pack
from tolpack.reading.lookup import check_ids
from tolpack.runtime.array_types import Ints
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_kind import is_pack
from tolpack.storage.inputs import input_path
from tolpack.storage.locations import Location, local_path


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """Tokens to edit, and one of the ways to change their rows: the options of ``tolpack edit``.

    ``names`` and ``tokens`` name the tokens; exactly one of ``zero``, ``scale``, ``rows``,
    ``source``, ``keys`` and ``like`` is given. ``checkpoint`` has the keys of the last two.
    """

    names: Sequence[str] = ()
    tokens: Location | None = None
    zero: bool = False
    scale: float | None = None
    rows: Location | None = None
    source: Location | None = None
    keys: Keys | None = None
    like: Sequence[str] = ()
    keys_per_layer: int = DEFAULT_KEYS
    layers: Sequence[int] | None = None
    checkpoint: Location | None = None
    options: CheckpointOptions | None = None
    tokenizer: Location | None = None
    bits: int = 32

    @property
    def input_files(self) -> list[Path]:
        """The files of this machine that it reads. Of a folder with a checkpoint they are all but
        packs and edits, which people keep there too.
        """
        options = self.options or CheckpointOptions()
        given = (self.tokens, self.rows, self.source, self.checkpoint, self.tokenizer,
                 options.config, options.key_map)  # fmt: skip
        paths = [local_path(one) for one in given if one is not None]
        return [file for path in paths if path is not None for file in _files_of(path)]


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    whole = is_pack(path)
    return [file for file in path.iterdir() if file.is_file() and (whole or not is_pack(file))]


@dataclass(frozen=True, slots=True)
class MadeEdits:
    """A file of edits, the texts of its tokens if there is a tokenizer, and the suppressed keys."""

    result: EditResult
    texts: Sequence[str | None] | None
    keys: Keys | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        keys = None if self.keys is None else {str(n): list(ks) for n, ks in self.keys.items()}
        tokens = None if self.texts is None else list(self.texts)
        return {**self.result.to_json(), "tokens": tokens, "keys": keys}


def make_edits(
    pack: Pack, output: str | Path, request: EditRequest, *, force: bool = False
) -> MadeEdits:
    """Make the edits that `request` asks for.

    Parameters
    ----------
    pack : Pack
        The open pack, at the table to edit.
    output : str or Path
        The file of edits.
    request : EditRequest
        Tokens and change.
    force : bool
        Replace an existing file.

    Returns
    -------
    MadeEdits
        What was written.

    Raises
    ------
    ConfigError, TokenIdError, CheckpointError, FormatError, FileAccessError
        A setting does not fit the pack, or a file cannot be used.
    """
    check_output(Path(output), request.input_files)
    chosen_layers(pack, request.layers)
    tokenizer = _open_tokenizer(pack, request)
    ids = _token_ids(pack, request, tokenizer)
    with _open_change(pack, request, ids, tokenizer) as opened:
        change, keys, layers = opened
        result = edit_pack(pack, output, ids, change, layers=layers, bits=request.bits, force=force)
    texts = None if tokenizer is None else tokenizer.texts(result.token_ids)
    return MadeEdits(result, texts, keys)


def _open_tokenizer(pack: Pack, request: EditRequest) -> TextTokenizer | None:
    """Open the tokenizer that was given, or the one beside the pack or the checkpoint; texts of
    n-gram rows there are none.
    """
    if pack.ngrams is not None:
        return None
    beside = [pack.path, *(one for one in (request.checkpoint, request.source) if one is not None)]
    found = [find_tokenizer(input_path(one), request.tokenizer) for one in beside]
    path = next((one for one in found if one is not None), None)
    return None if path is None else TextTokenizer(path)


def _token_ids(pack: Pack, request: EditRequest, tokenizer: TextTokenizer | None) -> Ints:
    """Return the ids of the tokens to edit, in the order given."""
    named = find_tokens(request.names, tokenizer, pack.vocab_size)
    read = np.empty(0, np.int64) if request.tokens is None else read_tokens(request.tokens)
    ids = check_ids(np.concatenate([named, read]), pack.vocab_size)
    ascending_ids(np.unique(ids), pack.container.table)
    return ids


@contextmanager
def _open_change(
    pack: Pack, request: EditRequest, ids: Ints, tokenizer: TextTokenizer | None
) -> Iterator[tuple[RowChange, Keys | None, Sequence[int] | None]]:
    """Yield what rows become, the keys that are suppressed, and the layers that this is for."""
    if request.zero:
        yield zero_rows(), None, request.layers
    elif request.scale is not None:
        yield scale_rows(request.scale), None, request.layers
    elif request.rows is not None:
        yield read_rows(request.rows, pack, ids), None, request.layers
    elif request.source is not None:
        with open_rows(request.source, pack, request.options) as change:
            yield change, None, request.layers
    else:
        suppression = _suppression(pack, request, tokenizer)
        yield suppression.change, suppression.keys, tuple(suppression.keys)


def _suppression(
    pack: Pack, request: EditRequest, tokenizer: TextTokenizer | None
) -> KeySuppression:
    if request.checkpoint is None:
        raise ConfigError("keys are suppressed by their values in a checkpoint: give --checkpoint")
    if request.keys is not None:
        keys = _keys_of_layers(request.keys, request.layers)
        chosen_layers(pack, tuple(keys))
        checkpoint = open_keys(request.checkpoint, pack, request.options)
        return suppress_chosen(checkpoint, pack, keys)
    like = check_ids(find_tokens(request.like, tokenizer, pack.vocab_size), pack.vocab_size)
    checkpoint = open_keys(request.checkpoint, pack, request.options)
    return suppress_like(checkpoint, pack, like, request.keys_per_layer, request.layers)


def _keys_of_layers(keys: Keys, layers: Sequence[int] | None) -> Keys:
    """Return the keys, all of which must be of the layers to change."""
    outside = [layer for layer in keys if layers is not None and layer not in layers]
    if outside:
        raise ConfigError(
            f"--suppress-keys names keys of layer {outside[0]}, which --layers leaves out: name "
            "keys of the layers to change only"
        )
    return keys
