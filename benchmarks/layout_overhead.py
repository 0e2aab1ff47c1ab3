"""Count the bytes of a pack by use: preamble, header, padding, arrays, codes, checksums, indexes.

    python benchmarks/layout_overhead.py --add before a.tolpack b.tolpack --json result.json

adds the packs, by name, under ``before`` to what ``result.json`` already holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import described

from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.header import Header, parse_header
from tolpack.container.preamble import PREAMBLE_BYTES, parse_preamble

CHECKSUM_BYTES = 4
OVERHEAD = ("preamble", "header", "header spare", "padding", "block checksums", "index")


def main() -> None:
    """Account for packs, print, and add them to a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--add", default="packs", help="what the packs are listed under")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {path.stem: account(path.read_bytes()) for path in arguments.packs}
    for name, parts in found.items():
        print(f"{name}: {parts['file']:,} bytes, layout {layout_pct(parts):.2f} %")
        for part, size in parts.items():
            print(f"  {part:<16} {size:>12,} {100 * size / parts['file']:6.2f} %")
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        known[arguments.add] = {
            **described("numpy", "zstandard"),
            "packs": {
                name: {**parts, "layout_pct": round(layout_pct(parts), 3)}
                for name, parts in found.items()
            },
        }
        arguments.json.write_text(json.dumps(known, indent=1) + "\n")


def layout_pct(parts: dict[str, int]) -> float:
    """Per cent of a file that header and padding take."""
    layout = sum(parts.get(name, 0) for name in OVERHEAD[:4])
    return 100 * layout / parts["file"]


def account(data: bytes) -> dict[str, int]:
    """Return the bytes of every part of a pack; they add up to the file's."""
    length = parse_preamble(data, len(data)).header_length
    text = data[PREAMBLE_BYTES : PREAMBLE_BYTES + length]
    header = parse_header(text)
    used = len(text.rstrip())
    parts = {"file": len(data), "preamble": PREAMBLE_BYTES, "header": used}
    parts["header spare"] = header.sections[0].offset_bytes - PREAMBLE_BYTES - used
    end = header.sections[0].offset_bytes
    parts["padding"] = 0
    for section in header.sections:
        parts["padding"] += section.offset_bytes - end
        parts[section.kind] = parts.get(section.kind, 0) + section.length_bytes
        end = section.end_bytes
    for kind, size in _within_blocks(header).items():
        parts[kind] = size
        parts["blocks"] -= size
    if sum(parts.values()) != 2 * len(data):
        raise ValueError(f"{sum(parts.values()) - len(data)} bytes of {len(data)} accounted for")
    return parts


def _within_blocks(header: Header) -> dict[str, int]:
    """Checksums of all blocks, and the padding of raw ones."""
    table, checksums, padding = header.tables[0], 0, 0
    for chunk in table.chunks:
        encoding = header.encodings[chunk.encoding]
        blocks = -(-chunk.rows // encoding.rows_per_block)
        checksums += CHECKSUM_BYTES * blocks
        if encoding.frame == "raw":
            record = table.record_bytes(encoding)
            whole = blocks * raw_block_bytes(record, encoding.rows_per_block)
            padding += whole - CHECKSUM_BYTES * blocks - record * chunk.rows
    return {"block checksums": checksums, "block padding": padding}


if __name__ == "__main__":
    main()
