"""Write ``formats/v1/golden/``: a small pack of every kind, with the rows that it must decode to.

    python tests/make_golden.py [NAME …]

Packs come from the recipes in `packs` with a fixed seed; rows come from `packs.reference_rows`,
which decodes one value at a time and uses nothing of tolpack, and those of a text from
`packs.reference_row_ids`, likewise. A golden pack that is there already
is left alone: once the format is frozen, what was written must always be readable as it is. Only
those of a version that is not released yet may be written again, by their names.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from packs import (
    GOLDEN_ONLY,
    RECIPES,
    SHAPES,
    frame_forms,
    plain_compress,
    reference_row_ids,
    reference_rows,
    split,
    write,
)

import tolpack
from tolpack.edits.write_edits import write_edits

# Edits, and a pack with edits in it, with the golden pack that each of them is made of.
EDITED = {"edits": "int8", "edits-merged": "everything"}
# A text with ids that the map makes alike, and with an end of a text inside.
TEXT = (3, 6, 4, 0, 1, 8, 8, 1, 1, 7, 2, 5)
FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "golden"


def expected(data: bytes, base: bytes | None = None) -> dict[str, np.ndarray]:
    """Return what stands beside a pack, by suffix: rows of each table, and rows of a text.

    Of edits in `data`, those of the pack `base`.
    """
    every = split(data)[1]["tables"]
    tables = [one for one in (every if base is None else split(base)[1]["tables"])
              if "edits" not in one]  # fmt: skip
    edits = {one["edits"]["table"]: n for n, one in enumerate(every) if "edits" in one}
    found = {}
    for number, table in enumerate(tables):
        place = f".{number}" if len(tables) > 1 else ""
        rows = reference_rows(data if base is None else base, number).astype(np.float32)
        if table["name"] in edits:
            own = edits[table["name"]]
            rows[token_ids(data, own)] = reference_rows(data, own)
        found[f"{place}.npy"] = rows
        if "ngrams" in table:
            rows = reference_row_ids(data, TEXT, number)
            found[f"{place}.text.npy"] = np.concatenate([np.array(TEXT)[:, None], rows], axis=1)
    return found


def token_ids(data: bytes, table: int) -> np.ndarray:
    """Return the tokens of a table of edits, from the file's bytes."""
    header = split(data)[1]
    section = header["sections"][header["tables"][table]["edits"]["token_ids"]]
    start = section["offset_bytes"]
    return np.frombuffer(data[start : start + section["length_bytes"]], "<u4")


def write_edited(folder: Path, name: str) -> tuple[Path, Path | None]:
    """Write the edits or the merged pack of that name; returns the path, and the pack of edits."""
    base = folder / f"{EDITED[name]}.tolpack"
    path = folder / f"{name}.tolpack"
    rng = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as temporary, tolpack.open(base) as pack:
        edits = path if name == "edits" else Path(temporary) / "edits"
        ids = [0, 3, 4, 8]
        shape = len(ids), pack.num_layers, pack.hidden_size
        rows = rng.normal(size=shape).astype(np.float32)
        rows[1] = 0
        write_edits(pack, edits, ids, {pack.table: rows}, force=True)
        if name == "edits":
            return path, base
        write_edits(pack, edits.with_name("half"), [3, 11], {pack.table: rows[2:]}, bits=16)
        tolpack.merge(base, [edits, edits.with_name("half")], path, force=True)
    return path, None


def main(again: list[str]) -> None:
    """Write what is missing, and the packs named in `again`."""
    FOLDER.mkdir(exist_ok=True)
    for name, recipe in (RECIPES | GOLDEN_ONLY | SHAPES).items():
        path = FOLDER / f"{name}.tolpack"
        if path.exists() and name not in again:
            continue
        compress = frame_forms() if name == "frame-forms" else plain_compress
        sample = write(path, recipe, compress=compress)
        for suffix, array in expected(sample.data).items():
            np.save(path.with_suffix(suffix), array)
        print(f"{name}: {path.stat().st_size} bytes")
    for name in EDITED:
        if (FOLDER / f"{name}.tolpack").exists() and name not in again:
            continue
        path, base = write_edited(FOLDER, name)
        own = None if base is None else base.read_bytes()
        for suffix, array in expected(path.read_bytes(), own).items():
            np.save(path.with_suffix(suffix), array)
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
