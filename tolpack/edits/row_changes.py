"""What the new rows of tokens are: zeros, scaled rows, rows of another table, rows without keys.

A *row change* maps the rows of one field to new ones. Rows are those that `Pack.rows` gives, and so
are the new ones. Suppressing keys subtracts from the pack's row what the checkpoint's keys
contribute; whatever else the row holds stays, such as what a layer of a ``--bits auto`` pack has to
make up for in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from tolpack.errors import ConfigError
from tolpack.keys.layer_keys import LayerKeys
from tolpack.pack import Pack
from tolpack.runtime.array_types import Floats, Ints
from tolpack.sources.protocol import TableSource

# (field number, int64 ids (n,) ascending, rows float32 (n, width)) → new rows float32 (n, width).
RowChange = Callable[[int, Ints, Floats], Floats]
# Tokens whose coefficients are held at once: 22 MB of them for 5,464 keys.
_BLOCK_TOKENS = 1024
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def zero_rows() -> RowChange:
    """Return the change of every row to zeros."""
    return lambda field, ids, rows: np.zeros_like(rows)


def scale_rows(factor: float) -> RowChange:
    """Return the change of every row to `factor` times itself.

    Raises
    ------
    ConfigError
        The factor is NaN, or infinite in float32.
    """
    if not abs(factor) <= _LARGEST_FLOAT32:
        raise ConfigError(
            f"scale is {factor}, expected a finite number of float32: at most {_LARGEST_FLOAT32:g}"
        )

    def change(field: int, ids: Ints, rows: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # such rows are refused by their token
            return np.asarray(rows * np.float32(factor))

    return change


def rows_of_table(values: Floats, token_ids: Ints) -> RowChange:
    """Return the change to given rows.

    Parameters
    ----------
    values : ndarray
        float32 (tokens, fields, width).
    token_ids : ndarray
        int64 (tokens,): row i of `values` is for token ``token_ids[i]``.

    Raises
    ------
    ConfigError
        The numbers of rows and of tokens differ, or a token is named twice.
    """
    if len(values) != len(token_ids):
        raise ConfigError(
            f"the table has {len(values)} rows, and there are {len(token_ids)} tokens: give one "
            "row for each token, in the order of the tokens"
        )
    distinct, order = np.unique(token_ids, return_index=True)
    if len(distinct) != len(token_ids):
        twice = np.delete(token_ids, order)[0]
        raise ConfigError(f"token {twice} is named twice: with a table, name each token once")

    def change(field: int, ids: Ints, rows: Floats) -> Floats:
        return np.asarray(values[order[np.searchsorted(distinct, ids)], field], np.float32)

    return change


def rows_of_source(source: TableSource) -> RowChange:
    """Return the change to the rows of a checkpoint or a plain table."""

    def change(field: int, ids: Ints, rows: Floats) -> Floats:
        return source.field_rows(field)(ids) * np.float32(source.fields[field].multiplier)

    return change


def rows_of_pack(pack: Pack) -> RowChange:
    """Return the change to the rows of another pack, which stays open while it is used."""
    return lambda field, ids, rows: pack.rows(ids, [field])[:, 0]


def suppress_keys(keys: Mapping[int, Sequence[int]], load: Callable[[int], LayerKeys]) -> RowChange:
    """Return the change of a row by ``- Σ_k c_k · W_down[:, k]`` over chosen keys.

    Parameters
    ----------
    keys : mapping
        Numbers of keys by layer. Rows of other layers stay as they are.
    load : callable
        Loads the keys of a layer of the checkpoint, as `load_layer_keys`.

    Raises
    ------
    ConfigError
        When it is applied: a layer has no such key.
    """

    def change(field: int, ids: Ints, rows: Floats) -> Floats:
        if field not in keys:
            return rows
        layer = load(field)
        return rows - contributions(layer, check_keys(layer, keys[field]), ids)

    return change


def check_keys(layer: LayerKeys, keys: Sequence[int]) -> Ints:
    """Return numbers of keys, ascending and each once: int64 (keys,).

    Raises
    ------
    ConfigError
        The layer has no such key.
    """
    found = np.unique(np.asarray(keys, np.int64))
    wrong = found[(found < 0) | (found >= layer.count)]
    if len(wrong):
        raise ConfigError(
            f"layer {layer.layer} has no key {wrong[0]}: its keys are 0 … {layer.count - 1}"
        )
    return found


@torch.inference_mode()
def contributions(layer: LayerKeys, keys: Ints, token_ids: Ints) -> Floats:
    """Return what `keys` contribute to the layer's rows: float32 (tokens, hidden).

    It is ``Σ_k c_k · W_down[:, k]`` over the keys, computed in float32 (arXiv 2602.00398 §3).
    """
    chosen = torch.from_numpy(keys)
    values = layer.values[chosen].float()
    blocks = [
        layer.coefficients(token_ids[start : start + _BLOCK_TOKENS])[:, chosen].float() @ values
        for start in range(0, len(token_ids), _BLOCK_TOKENS)
    ]
    return np.asarray(torch.cat(blocks).numpy())


@torch.inference_mode()
def strongest_keys(layer: LayerKeys, token_ids: Ints, sample: Ints, count: int) -> Ints:
    """Return the keys that tokens use more than others do: int64 (count,), the strongest first.

    A key's strength for a token is the length of what it adds to the row, ``|c_k|·‖W_down[:, k]‖``.
    The keys returned have the largest mean strength over `token_ids` less that over `sample`, so
    that keys which every token uses do not count.

    Parameters
    ----------
    layer : LayerKeys
        The keys of a layer.
    token_ids, sample : ndarray
        int64 (n,): the tokens, and those that stand for the vocabulary.
    count : int
        Number of keys to return; all, if the layer has fewer.
    """
    more_used = _mean_strength(layer, token_ids) - _mean_strength(layer, sample)
    order = torch.argsort(more_used, descending=True, stable=True)
    return np.asarray(order[:count].numpy())


def _mean_strength(layer: LayerKeys, token_ids: Ints) -> torch.Tensor:
    """Return the mean strength of each key over tokens: float64 (keys,)."""
    total = torch.zeros(layer.count, dtype=torch.float64)
    lengths = layer.values.double().norm(dim=1)
    for start in range(0, len(token_ids), _BLOCK_TOKENS):
        total += layer.coefficients(token_ids[start : start + _BLOCK_TOKENS]).double().abs().sum(0)
    return torch.mul(total, lengths) / len(token_ids)
