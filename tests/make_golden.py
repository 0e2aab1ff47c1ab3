"""Write ``formats/v1/golden/``: a small pack of every kind, with the rows that it must decode to.

    python tests/make_golden.py

Packs come from the recipes in `packs` with a fixed seed; rows come from `packs.reference_rows`,
which decodes one value at a time and uses nothing of tolpack. A golden pack that is there already
is left alone: once the format is frozen, what was written must always be readable as it is.
"""

from pathlib import Path

import numpy as np
from packs import GOLDEN_ONLY, RECIPES, frame_forms, plain_compress, reference_rows, write

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "golden"


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(exist_ok=True)
    for name, recipe in (RECIPES | GOLDEN_ONLY).items():
        path = FOLDER / f"{name}.tolpack"
        if path.exists():
            continue
        compress = frame_forms() if name == "frame-forms" else plain_compress
        sample = write(path, recipe, compress=compress)
        np.save(path.with_suffix(".npy"), reference_rows(sample.data).astype(np.float32))
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
