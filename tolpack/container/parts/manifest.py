"""The manifest: where each piece of each section of a pack lies (SPEC §15).

A manifest holds the preamble and the header of the pack, word for word, so a reader checks them as
it checks the first bytes of a file. Names of part files follow from their digests: nothing that a
manifest says is used as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.container.preamble import MAX_CHUNKS, MAX_FILES, MAX_ROWS, MAX_TABLES, PREAMBLE_BYTES
from tolpack.container.strict_json import parse
from tolpack.container.typed_json import Node
from tolpack.errors import FormatError

MANIFEST_NAME = "manifest.json"
PART_SUFFIX = ".part"
MAX_MANIFEST_BYTES = 1 << 24
MAX_PIECES = 1 << 18
_WORD = "parts"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREAMBLE = re.compile(rf"[0-9a-f]{{{2 * PREAMBLE_BYTES}}}")
_LAST_BYTE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of section ``section``, in a part file.

    Of a section of blocks it holds whole blocks: those of ``rows`` slots of table ``table``, from
    ``first_row`` on. If they are frames, the lengths of the blocks follow at
    ``lengths_offset_bytes``, uint32 each.
    """

    section: int
    offset_bytes: int
    length_bytes: int
    table: int | None = None
    first_row: int | None = None
    rows: int | None = None
    lengths_offset_bytes: int | None = None

    def to_json(self) -> dict[str, int]:
        """Return the keys that are there."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class PartFile:
    """One file of a pack: the SHA-256 of its bytes, its length, and its pieces by their offset."""

    sha256: str
    length_bytes: int
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """Name of the file, beside the manifest."""
        return self.sha256 + PART_SUFFIX

    @property
    def rows(self) -> int:
        """Rows that it holds, of all tables."""
        return sum(piece.rows or 0 for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        pieces = [piece.to_json() for piece in self.pieces]
        return {"sha256": self.sha256, "length_bytes": self.length_bytes, "pieces": pieces}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The preamble (64 bytes) and the header of a pack, as stored, and its part files."""

    preamble: bytes
    header: bytes
    files: tuple[PartFile, ...]

    @property
    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """All pieces in the order of the files, each with the number of its file."""
        return ((n, piece) for n, file in enumerate(self.files) for piece in file.pieces)

    def to_bytes(self) -> bytes:
        """Return the manifest as compact JSON with a line for each file."""
        head = {"tolpack": _WORD, "preamble": self.preamble.hex(), "header": self.header.decode()}
        files = [json.dumps(file.to_json(), separators=(",", ":")) for file in self.files]
        start = json.dumps(head, separators=(",", ":"))[:-1]
        lines = ",\n".join(files)
        return (start + ',\n"files":[\n' + lines + "\n]}\n").encode()


def parse_manifest(data: bytes) -> Manifest:
    """Decode a manifest, with every key's type and range checked; see also `check_pieces`.

    Raises
    ------
    FormatError
        Code ``manifest``, naming the place.
    """
    if not 2 <= len(data) <= MAX_MANIFEST_BYTES:
        expected = f"2 … {MAX_MANIFEST_BYTES} bytes"
        raise FormatError("manifest", "manifest", f"{len(data)} bytes", expected)
    try:
        return _manifest(Node(parse(data), "manifest"))
    except FormatError as error:
        place = (
            error.place.replace("header", "manifest", 1) if error.code == "header-json" else None
        )
        raise FormatError("manifest", place or error.place, error.found, error.expected) from error


def parse_piece(node: Node) -> Piece:
    """Decode one piece of a manifest, or of a part file's header.

    Raises
    ------
    FormatError
        ``header-field``, naming the place.
    """
    return Piece(
        node.integer("section", 0, 4 * MAX_CHUNKS - 1),
        node.integer("offset_bytes", 0, _LAST_BYTE),
        node.integer("length_bytes", 1, _LAST_BYTE),
        node.optional_integer("table", 0, MAX_TABLES - 1),
        node.optional_integer("first_row", 0, MAX_ROWS - 1),
        node.optional_integer("rows", 1, MAX_ROWS),
        node.optional_integer("lengths_offset_bytes", 0, _LAST_BYTE),
    )


def _manifest(root: Node) -> Manifest:
    word = root.value.get("tolpack")
    if word != _WORD:
        raise FormatError("manifest", "manifest.tolpack", word, f"{_WORD!r}")
    preamble = bytes.fromhex(_matching(root, "preamble", _PREAMBLE, "128 hex digits"))
    header = root.value.get("header")
    if not isinstance(header, str):
        raise FormatError("manifest", "manifest.header", header, "text")
    try:
        stored = header.encode()
    except UnicodeEncodeError as error:
        raise FormatError("manifest", "manifest.header", "half a surrogate", "UTF-8") from error
    files, pieces = [], 0
    for node in root.items("files", 1, MAX_FILES):
        files.append(_part_file(node))
        pieces += len(files[-1].pieces)
        if pieces > MAX_PIECES:
            raise FormatError("manifest", "manifest.files", pieces, f"at most {MAX_PIECES} pieces")
    if len({file.sha256 for file in files}) < len(files):
        raise FormatError("manifest", "manifest.files", "a digest twice", "different files")
    return Manifest(preamble, stored, tuple(files))


def _part_file(node: Node) -> PartFile:
    digest = _matching(node, "sha256", _DIGEST, "64 hex digits")
    length = node.integer("length_bytes", 1, _LAST_BYTE)
    pieces = tuple(parse_piece(one) for one in node.items("pieces", 1, MAX_PIECES))
    return PartFile(digest, length, pieces)


def _matching(node: Node, key: str, pattern: re.Pattern[str], expected: str) -> str:
    value = node.value.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise FormatError("manifest", f"{node.place}.{key}", value, f"{expected}, lower case")
    return value
