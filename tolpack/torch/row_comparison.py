"""Whether the rows of a pack are those of a model: some of them are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.pack import Pack
from tolpack.torch.embedding import PackEmbedding

# Rows that are compared, and their least correlation. Two models have one of nearly 0. Rows of
# MemoryLLM at auto bits make up for one another: 0.72 at 8 % of FP16, 0.43 at 3.5 %.
_COMPARED_ROWS = 64
_LEAST_CORRELATION = 0.2


def compared_ids(pack: Pack) -> NDArray[np.int64]:
    """Return the numbers of some rows of a pack that no edits have: int64 (n,), ascending."""
    edited = pack.edited_tokens
    count = pack.vocab_size - len(edited)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _COMPARED_ROWS)).astype(np.int64))
    # Before the k-th row without edits are those edited ones that have at most k such before them.
    before: NDArray[np.int64] = edited - np.arange(len(edited))
    return chosen + before.searchsorted(chosen, side="right")


def compare_rows(pack: Pack, expected: NDArray[Any], name: str) -> None:
    """Refuse a pack whose rows have nothing to do with those of a table.

    Parameters
    ----------
    pack : Pack
        The open pack.
    expected : ndarray
        float32: the table's rows of `compared_ids`, of any scale.
    name : str
        How messages call the table.

    Raises
    ------
    ConfigError
        They have nothing to do with each other.
    FileAccessError, FormatError
        The pack cannot be read.
    """
    found = PackEmbedding(pack, scale=1.0)(torch.from_numpy(compared_ids(pack))).numpy()
    known = np.isfinite(expected).all(1) & np.isfinite(found).all(1)
    if not known.any():
        return
    found, expected = (rows[known] - rows[known].mean(0) for rows in (found, expected))
    norms = float(np.linalg.norm(found) * np.linalg.norm(expected))
    # Rows that are all the same say nothing, such as those of a pack that dropped all fields.
    correlation = float((found * expected).sum()) / norms if norms else 1.0
    if correlation < _LEAST_CORRELATION:
        raise ConfigError(
            f"rows of {pack.path} and of {name} have a correlation of {correlation:.2f}: the pack "
            "is of another model of the same shape; build one from this model"
        )
