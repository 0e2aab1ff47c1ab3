"""Check packs by SPEC.md alone: no import from tolpack, laid out like the document.

    python validate.py PACK …               # packs, manifests of sets, part files (*.part)

Says of each file that it is valid, or which rule it breaks first, by its code of section 10: a
valid one, `decode.py` may trust. Written to be read next to the specification, not to be fast:
`validate_header.py` and `validate_pack.py` have the rules of a pack, `validate_parts.py` those of
a set of part files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from validate_header import BadPack
from validate_pack import Check, validate
from validate_parts import PartCheck, SetCheck, validate_part, validate_set

__all__ = [
    "BadPack", "Check", "PartCheck", "SetCheck", "validate", "validate_file", "validate_part",
    "validate_set",
]  # fmt: skip


def validate_file(path: Path) -> None:
    """Raise `BadPack` unless a pack, a set by the path of its manifest, or a part file is valid."""
    data = path.read_bytes()
    if path.suffix == ".part":
        validate_part(data, path.stem)
    elif data[:1] == b"{":
        validate_set(data, path.parent)
    else:
        validate(data)


if __name__ == "__main__":
    status = 0
    for name in sys.argv[1:]:
        try:
            validate_file(Path(name))
            print(f"{name}: valid")
        except BadPack as error:
            print(f"{name}: {error}")
            status = 1
    sys.exit(status)
