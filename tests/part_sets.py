"""Sets of part files for tests: cut from a pack's bytes by SPEC.md, section 15, alone.

`cut` plans the pieces, `lay_out` finds their places, `written` gives the files. A test may change
the plan in between: what a piece says of itself (`Piece.said`) and what it holds are apart.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packs import PREAMBLE, split

MANIFEST = "manifest.json"


@dataclass
class Piece:
    """What a piece says of itself, its bytes and the lengths of its blocks, and their places."""

    said: dict[str, Any]
    content: bytes
    lengths: list[int] | None = None
    start: int = 0
    lengths_start: int = 0


@dataclass
class PartFile:
    """A part file that is yet to be written; `keys`: further ones of its header.

    `mask`: its required features; `room`: least length of its header; `edit` changes its bytes.
    """

    pieces: list[Piece]
    pack_id: int
    keys: dict[str, Any] = field(default_factory=dict)
    mask: int = 1 << 24
    room: int = 0
    edit: Callable[[bytes], bytes] = bytes


def cut(data: bytes, cuts: list[list[tuple[int, int | None]]]) -> list[PartFile]:
    """Plan the part files of a pack: for each of them (section, rows or bytes; all if ``None``).

    The number counts rows in sections of blocks, and bytes in others.
    """
    preamble, header, _ = split(data)
    rest = [_Rest(data, header, number) for number in range(len(header["sections"]))]
    files = []
    for index, pieces in enumerate(cuts):
        keys = {"producer": "tests", "file": {"index": index, "count": len(cuts)}}
        found = [rest[number].take(amount) for number, amount in pieces]
        files.append(PartFile(found, preamble["pack_id"], keys))
    return lay_out(files)


class _Rest:
    """What is left of a section while pieces are taken off its front."""

    def __init__(self, data: bytes, header: dict, number: int) -> None:
        section = header["sections"][number]
        self.number = number
        self.content = data[section["offset_bytes"] :][: section["length_bytes"]]
        self.chunk = None
        for table, one in enumerate(header["tables"]):
            row = 0
            for chunk in one["chunks"]:
                if chunk["blocks"] == number:
                    self.table, self.row, self.chunk = table, row, chunk
                    self.rows = chunk["rows"]
                    self.per_block = header["encodings"][chunk["encoding"]]["rows_per_block"]
                    self.lengths = self._block_lengths(data, header)
                row += chunk["rows"]

    def _block_lengths(self, data: bytes, header: dict) -> list[int]:
        blocks = -(-self.rows // self.per_block)
        if "index" not in self.chunk:
            return [len(self.content) // blocks] * blocks
        start = header["sections"][self.chunk["index"]]["offset_bytes"]
        lengths: list[int] = []
        runs = -(-blocks // 512)
        size = (header["sections"][self.chunk["index"]]["length_bytes"] - 12 * runs) // blocks
        for run in range(runs):
            count, at = min(512, blocks - 512 * run), start + (12 + 512 * size) * run + 8
            shortest = int.from_bytes(data[at - 2 : at], "little") if size == 1 else 0
            stored = struct.unpack_from(f"<{count}{' BH I'[size]}", data, at)
            lengths += [shortest + length for length in stored]
        return lengths

    def take(self, amount: int | None) -> Piece:
        if self.chunk is None:
            return Piece({"section": self.number}, self._bytes(amount))
        rows = self.rows if amount is None else amount
        blocks = -(-rows // self.per_block)
        lengths, self.lengths = self.lengths[:blocks], self.lengths[blocks:]
        said = {"section": self.number, "table": self.table, "first_row": self.row, "rows": rows}
        self.row, self.rows = self.row + rows, self.rows - rows
        return Piece(said, self._bytes(sum(lengths)), lengths if "index" in self.chunk else None)

    def _bytes(self, count: int | None) -> bytes:
        found = self.content[:count]
        self.content = self.content[len(found) :]
        return found


def lay_out(files: list[PartFile]) -> list[PartFile]:
    """Set the places of all pieces and of the lengths of their blocks, and what pieces say."""
    for one in files:
        end = 64 + max(one.room, 1)
        for piece in one.pieces:
            piece.start = piece.said["offset_bytes"] = _aligned(end)
            end = piece.start + len(piece.content)
            piece.said["length_bytes"] = len(piece.content)
            if piece.lengths is not None:
                piece.lengths_start = piece.said["lengths_offset_bytes"] = _aligned(end)
                end = piece.lengths_start + 4 * len(piece.lengths)
    return files


def _aligned(number: int) -> int:
    return -(-number // 4096) * 4096


def part_bytes(one: PartFile) -> bytes:
    """Return a part file's bytes."""
    keys = one.keys | {"pieces": one.keys.get("pieces", [piece.said for piece in one.pieces])}
    text = json.dumps(keys, separators=(",", ":")).encode().ljust(one.room)
    whole = bytes(64) + text
    for piece in one.pieces:
        whole = whole.ljust(piece.start, b"\0") + piece.content
        if piece.lengths is not None:
            body = struct.pack(f"<{len(piece.lengths)}I", *piece.lengths)
            whole = whole.ljust(piece.lengths_start, b"\0") + body
    magic, size = b"\x89TOLPACK", len(whole)
    head = PREAMBLE.pack(magic, 1, 3, len(text), size, one.mask, 0, one.pack_id, 0, 0, 0)
    return one.edit(sealed(head + whole[64:]))


def sealed(data: bytes) -> bytes:
    """Make the checksums of a changed part file's header and preamble again."""
    text = data[64 : 64 + int.from_bytes(data[12:16], "little")]
    head = data[:56] + struct.pack("<I", zlib.crc32(text))
    return head + struct.pack("<I", zlib.crc32(head)) + data[64:]


def with_length(data: bytes) -> bytes:
    """Put the length of a changed part file into its preamble."""
    return sealed(data[:16] + struct.pack("<Q", len(data)) + data[24:])


def written(
    data: bytes,
    files: list[PartFile],
    change: Callable[[dict], None] = lambda _: None,
    indent: int | None = None,
) -> dict[str, bytes]:
    """Return the files of a set by name; `change` gets the manifest before it is written."""
    parts = [part_bytes(one) for one in files]
    header_length = int.from_bytes(data[12:16], "little")
    manifest = {
        "tolpack": "parts",
        "preamble": data[:64].hex(),
        "header": data[64 : 64 + header_length].decode(),
        "files": [
            {
                "sha256": hashlib.sha256(content).hexdigest(),
                "length_bytes": len(content),
                "pieces": [dict(piece.said) for piece in one.pieces],
            }
            for one, content in zip(files, parts)
        ],
    }
    change(manifest)
    found = {f"{hashlib.sha256(content).hexdigest()}.part": content for content in parts}
    return {MANIFEST: json.dumps(manifest, indent=indent).encode()} | found


def save(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a set into a folder that is made for it; return the manifest's path."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / MANIFEST
