"""Write ``formats/v1/malformed/``: a pack for each error code of SPEC.md, section 10.

    python tests/make_malformed.py

Each file is a valid pack with one thing wrong and every checksum that covers it made anew, so that
a reader meets the check itself. ``codes.json`` says what a reader must answer, and when: at
``open``, at the first lookup (``rows``), or only in a check of the whole file (``verify``).
"""

import json
import struct
import tempfile
from pathlib import Path

from edits import (
    FIELD0,
    MEANINGS,
    change_array,
    change_index,
    change_raw_block,
    frame_lengths,
    set_value,
)
from packs import TARGET, Layer, Recipe, Run, forge, from_scratch, plain_header, write

from tolpack.container.encodings import Part

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "malformed"
FRAMED = Recipe(8, (Layer((Part("int8", 8, 8),)),), (Run(5, "zstd", 2),))
# Codes that no file shows: `changed` is about a file that changes while it is open.
NOT_FILES = {"changed"}


def cases(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return (when it shows, bytes) by code."""
    target = write(folder / "target", TARGET)
    framed = write(folder / "framed", FRAMED)
    data, lengths = target.data, frame_lengths(framed)
    found = {code: ("open", forge(data, edit)) for edit, code in reversed(MEANINGS)}
    found |= {code: ("open", at_opening) for code, at_opening in preambles(data).items()}
    found |= {code: ("open", content) for code, content in large().items()}
    found["header-field"] = ("open", forge(data, set_value("tables.0.rows", -1)))
    found["header-json"] = ("open", forge(data, text=b'{"producer":"a","producer":"a"}'))
    found["field-layer"] = ("open", forge(data, set_value(f"{FIELD0}.layer", 1)))
    damaged = bytearray(data)
    damaged[target.header.sections[0].offset_bytes] ^= 1
    found["array-checksum"] = ("rows", bytes(damaged))
    slots = struct.pack("<6I", 0, 1, 2, 3, 4, 4)
    found["token-map"] = ("rows", change_array(data, 0, lambda _: slots))
    infinite = change_array(data, 1, lambda old: old[:-2] + b"\x00\x7c")
    found["array-not-finite"] = ("rows", infinite)
    nan = change_raw_block(target, 0, lambda old: b"\x80\x7f" + old[2:])
    found["scale-not-finite"] = ("rows", nan)
    damaged = bytearray(data)
    damaged[target.header.sections[3].offset_bytes] ^= 1
    found["block-checksum"] = ("rows", bytes(damaged))
    damaged = bytearray(framed.data)
    damaged[framed.header.sections[1].offset_bytes] ^= 1
    found["index-checksum"] = ("rows", bytes(damaged))
    longer = change_index(framed.data, 0, [lengths[0] + 2**31, *lengths[1:]])
    found["frame-extent"] = ("rows", longer)
    found["frame"] = ("rows", write(folder / "raw", FRAMED, compress=lambda plain: plain).data)
    hidden = change_raw_block(target, 1, lambda old: old[:-1] + b"\1")
    found["padding"] = ("verify", hidden)
    return found


def preambles(data: bytes) -> dict[str, bytes]:
    """Files that are refused for their first 64 bytes, or for their length."""
    return {
        "bad-magic": forge(data, magic=b"TOLPACK\x89"),
        "unsupported-version": forge(data, major=2),
        "unsupported-feature": forge(data, required_features=1 << 63),
        "preamble-checksum": forge(data, crc32=0),
        "reserved-not-zero": forge(data, reserved=1),
        "header-length": forge(data, header_length=1),
        "header-checksum": forge(data, header_crc32=0),
        "truncated": data[:-1],
        "trailing-bytes": data + b"\0",
        "feature-mismatch": forge(data, required_features=0),
    }


def large() -> dict[str, bytes]:
    """Headers that ask for rows and blocks beyond the limits."""
    block = plain_header(4096, 65536, 4096, 64)
    wide = plain_header(1, 65536, 1, 64)
    wide["tables"][0]["fields"] = [
        {"name": str(n), "layer": n, "width": 65536, "dtype": "float32"} for n in range(257)
    ]
    wide["encodings"][0]["fields"] *= 257
    start = (64 + len(json.dumps(wide, separators=(",", ":"))) + 4103) // 4096 * 4096
    wide["sections"][0]["offset_bytes"] = start
    return {
        "block-size": from_scratch(block, 4160, 1),
        "row-size": from_scratch(wide, start + 64, 1),
    }


def main() -> None:
    """Write all of them, with their codes."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = cases(Path(folder))
    for code, (_, content) in sorted(found.items()):
        (FOLDER / f"{code}.tolpack").write_bytes(content)
    table = {code: when for code, (when, _) in sorted(found.items())}
    (FOLDER / "codes.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} packs")


if __name__ == "__main__":
    main()
