"""Write ``formats/v1/golden/``: a small pack of every kind, with the rows that it must decode to.

    python tests/make_golden.py [NAME …]

Packs come from the recipes in `packs` with a fixed seed; rows come from `packs.reference_rows`,
which decodes one value at a time and uses nothing of tolpack, and those of a text from
`packs.reference_row_ids`, likewise. A golden pack that is there already
is left alone: once the format is frozen, what was written must always be readable as it is. Only
those of a version that is not released yet may be written anew, by their names.
"""

import sys
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

# A text with ids that the map makes alike, and with an end of a text inside.
TEXT = (3, 6, 4, 0, 1, 8, 8, 1, 1, 7, 2, 5)
FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "golden"


def expected(data: bytes) -> dict[str, np.ndarray]:
    """Return what stands beside a pack, by suffix: rows of each table, and rows of a text."""
    tables, found = split(data)[1]["tables"], {}
    for number, table in enumerate(tables):
        place = f".{number}" if len(tables) > 1 else ""
        found[f"{place}.npy"] = reference_rows(data, number).astype(np.float32)
        if "ngrams" in table:
            rows = reference_row_ids(data, TEXT, number)
            found[f"{place}.text.npy"] = np.concatenate([np.array(TEXT)[:, None], rows], axis=1)
    return found


def main(anew: list[str]) -> None:
    """Write what is missing, and the packs named in `anew`."""
    FOLDER.mkdir(exist_ok=True)
    for name, recipe in (RECIPES | GOLDEN_ONLY | SHAPES).items():
        path = FOLDER / f"{name}.tolpack"
        if path.exists() and name not in anew:
            continue
        compress = frame_forms() if name == "frame-forms" else plain_compress
        sample = write(path, recipe, compress=compress)
        for suffix, array in expected(sample.data).items():
            np.save(path.with_suffix(suffix), array)
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
