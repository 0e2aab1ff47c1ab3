"""Packs with edits for tests, and the rows that they must give, put together by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from packs import RECIPES, SHAPES, write

import tolpack
from tolpack.edits.write_edits import write_edits

ONE_TABLE = {name: one for name, one in (RECIPES | SHAPES).items() if not one.more}
NAMES = tuple(ONE_TABLE)


def new_rows(pack, ids, seed=0):
    """Return random rows of each field, float32 (ids, width)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(len(ids), width)).astype(np.float32) for width in pack.widths]


def some_ids(pack, seed=0, most=5):
    """Return up to a half of a pack's token ids, ascending."""
    rng = np.random.default_rng(seed)
    count = min(most, -(-pack.vocab_size // 2))
    return np.sort(rng.choice(pack.vocab_size, count, replace=False))


def edit(pack, output, seed=0, *, ids=None, bits=32):
    """Write edits of an open pack's table; returns the file, ids, and the new rows by field."""
    ids = some_ids(pack, seed) if ids is None else np.asarray(ids)
    rows = new_rows(pack, ids, seed)
    write_edits(pack, output, ids, {pack.table: rows}, bits=bits, force=True)
    return Path(output), ids, rows


def fields_of(pack, ids):
    """Return the rows of each field, float32 (ids, width): widths may differ."""
    return [pack.rows(ids, [field])[:, 0] for field in range(pack.num_layers)]


def expected(pack, ids, *edits):
    """Return the rows of each field of a pack without edits, with those of `edits` put in, each of
    them ids and rows by field; later ones win.
    """
    found = fields_of(pack, ids)
    for edited, rows in edits:
        for number, token in enumerate(edited):
            for field, new in enumerate(rows):
                if not pack.fields[field].dropped:
                    found[field][ids == token] = new[number]
    return found


def equal(found, wanted, exact=True):
    """Whether rows by field are bit for bit the same, but for the sign of zeros; or, if not
    `exact`, within what products of other numbers of rows may differ by.
    """
    pairs = zip(found, wanted, strict=True)
    if exact:
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True) for a, b in pairs)


def sample_pack(folder, name="int8", seed=0):
    """Write the pack of a recipe and open it."""
    return tolpack.open(write(Path(folder) / f"{name}.tolpack", ONE_TABLE[name], seed=seed).path)
