"""Edits, and packs with edits in them, that break one rule each: a part of `make_malformed`."""

from pathlib import Path

import numpy as np
from edits import change_array, many, set_value
from packs import TARGET, Layer, Recipe, Run, forge, int8, split, write

import tolpack
from tolpack.edits.write_edits import write_edits

_ONE_LAYER = (Layer((int8(8, 8),)),)
_TWO = Recipe(8, _ONE_LAYER, (Run(5, "raw", 2),), name="first",
              more=(Recipe(8, _ONE_LAYER, (Run(5, "raw", 2),), name="second"),))  # fmt: skip
_IDS = (1, 4)


def _alone(folder: Path) -> bytes:
    """Edits of two tables."""
    path = write(folder / "two-edited", _TWO).path
    with tolpack.open(path, table="first") as pack:
        rows = np.ones((len(_IDS), 1, 8), np.float32)
        write_edits(pack, folder / "two-edits", _IDS, {"first": rows, "second": rows}, force=True)
    return (folder / "two-edits").read_bytes()


def _merged(folder: Path, recipe: Recipe) -> bytes:
    """A pack with edits in it."""
    path = write(folder / "edited", recipe).path
    with tolpack.open(path) as pack:
        rows = np.ones((len(_IDS), pack.num_layers, 8), np.float32)
        write_edits(pack, folder / "edits", _IDS, {"tols": rows}, force=True)
    tolpack.merge(path, [folder / "edits"], folder / "merged", force=True)
    return (folder / "merged").read_bytes()


def _two_merged(folder: Path) -> bytes:
    """A pack of two tables with edits of both in it; `_alone` was written there before."""
    tolpack.merge(folder / "two-edited", [folder / "two-edits"], folder / "merged", force=True)
    return (folder / "merged").read_bytes()


def opening(folder: Path) -> dict[str, bytes]:
    """Files that are refused when they are opened."""
    alone, merged = _alone(folder), _merged(folder, TARGET)
    both, own = _two_merged(folder), "tables.1.edits"
    features = split(merged)[0]["required_features"]
    mean = next(n for n, one in enumerate(split(merged)[1]["sections"]) if one["kind"] == "mean")
    ids = split(merged)[1]["tables"][1]["edits"]["token_ids"]
    capitals = [set_value(f"tables.{n}.edits.base", "A" * 64) for n in (0, 1)]
    return {
        "edits": forge(merged, set_value(f"{own}.table", "tole")),
        "edits+itself": forge(merged, set_value(f"{own}.table", "tols edits")),
        "edits+twice": forge(both, set_value("tables.3.edits.table", "first")),
        "edits+base": forge(alone, set_value(f"{own}.base", "0" * 64)),
        "edits+base-in-pack": forge(merged, set_value(f"{own}.base", "0" * 64)),
        "edits+rows": forge(merged, set_value(f"{own}.rows", 7)),
        "edits+field": forge(merged, set_value("tables.1.fields.0.name", "layer 9")),
        "edits+multiplier": forge(
            merged, set_value("tables.1.multiplier", 2.0), required_features=features | 1 << 19
        ),
        "edits+mean": forge(merged, set_value("tables.1.fields.2.mean", mean)),
        "header-field+edits": forge(alone, many(*capitals)),
        "feature-mismatch+edits": forge(merged, required_features=features & ~(1 << 50)),
        "section-kind+token-ids": forge(merged, set_value(f"sections.{ids}.kind", "mean")),
        "array-shape+token-ids": forge(merged, set_value(f"sections.{ids}.shape", [2, 1])),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Packs whose edited tokens are not ascending ids of the edited table."""
    merged = _merged(folder, TARGET)
    ids = split(merged)[1]["tables"][1]["edits"]["token_ids"]
    return {
        name: change_array(merged, ids, lambda _, new=new: np.array(new, "<u4").tobytes())
        for name, new in {"token-ids": (4, 4), "token-ids+range": (4, 6)}.items()
    }
