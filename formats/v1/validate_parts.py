"""The rules of a set of part files, by SPEC.md alone (section 15): a part of `validate.py`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from validate_header import (
    Entry,
    HeaderRules,
    Rule,
    aligned,
    ceil_div,
    integers,
    is_name,
    is_object,
    objects,
    one_of,
    optional,
    raw_block_bytes,
)
from validate_pack import Check

ROWS = ("table", "first_row", "rows")  # keys of pieces of `blocks` sections
PIECE = ("section", "offset_bytes", "length_bytes", *ROWS, "lengths_offset_bytes")


class PieceRules(HeaderRules):
    """Keys of a piece, which stand in a manifest and in a part file's header alike."""

    def piece_keys(self, piece: Entry) -> None:
        self.entry("piece", piece, section=integers(0, 262143),
                   offset_bytes=integers(0, 2**63 - 1), length_bytes=integers(1, 2**63 - 1),
                   table=optional(integers(0, 4095)), first_row=optional(integers(0, 2**48 - 1)),
                   rows=optional(integers(1, 2**48)),
                   lengths_offset_bytes=optional(integers(0, 2**63 - 1)))  # fmt: skip


class Manifest(PieceRules):
    """The rules that a manifest alone can break."""

    syntax_code = field_code = "manifest"

    def check(self, data: bytes) -> None:
        need = self.need
        need(2 <= len(data) <= 1 << 24, "manifest", "§3: 2 … 2^24 bytes")
        manifest = self.syntax(data)
        self.entry("manifest", manifest, tolpack=one_of("parts"), preamble=digits(128),
                   header=is_text, files=objects(65536))  # fmt: skip
        self.files: list[Entry] = manifest["files"]
        for file in self.files:
            self.entry("file", file, sha256=digits(64), length_bytes=integers(1, 2**63 - 1),
                       pieces=objects(262144))  # fmt: skip
        pieces = [piece for file in self.files for piece in file["pieces"]]
        need(len(pieces) <= 262144, "manifest", "§3: pieces of all part files")
        for piece in pieces:
            self.piece_keys(piece)
        different = len({file["sha256"] for file in self.files}) == len(self.files)
        need(different, "manifest", "§15: different digests")
        preamble, header = bytes.fromhex(manifest["preamble"]), manifest["header"].encode()
        fits = len(header) == int.from_bytes(preamble[12:16], "little")
        need(fits, "manifest", "§15: a header as long as the preamble says")
        self.head = preamble + header


class PartCheck(Check, PieceRules):
    """The rules of a part file, as far as they go without its manifest."""

    known = 1 << 24

    def opening(self) -> None:
        self.preamble()
        self.header = self.syntax(self.data[64 : self.header_end])
        self.entry("header", self.header, producer=is_name, file=is_object, pieces=objects(262144))
        self.file_keys(self.header["file"])
        self.pieces: list[Entry] = self.header["pieces"]
        for piece in self.pieces:
            self.piece_keys(piece)
        self.need(self.required == 1 << 24, "feature-mismatch", "§15: bit 24 alone")

    def contents(self) -> None:
        """Hold against the file where its pieces are, and find the lengths of their blocks."""
        self.block_lengths = [self.lengths_of(piece) for piece in self.pieces]
        end = self.header_end
        for piece, lengths in zip(self.pieces, self.block_lengths):
            end = self.next_run(end, piece["offset_bytes"]) + piece["length_bytes"]
            if lengths is not None:
                end = self.next_run(end, piece["lengths_offset_bytes"]) + 4 * len(lengths)
        self.need(end == len(self.data), "piece", "§15: ends with its last piece")

    def next_run(self, end: int, start: int) -> int:
        """Where the bytes after those that end at `end` start."""
        self.need(start == aligned(end, 4096), "piece", "§15: back to back")
        self.need(not any(self.data[end:start]), "padding", "§15: zeros up to the next bytes")
        return start

    def lengths_of(self, piece: Entry) -> list[int] | None:
        at, total = piece.get("lengths_offset_bytes"), 0
        if at is None:
            return None
        lengths = []
        while total < piece["length_bytes"] and at + 4 <= len(self.data):
            lengths.append(int.from_bytes(self.data[at : at + 4], "little"))
            total, at = total + lengths[-1], at + 4
        fits = total == piece["length_bytes"] and min(lengths) >= 5
        self.need(fits, "part-mismatch", "§15: lengths of blocks add up to the piece")
        return lengths


class SetCheck:
    """All rules, held against a manifest in memory and the part files of a folder."""

    def __init__(self, data: bytes, folder: Path, without: Collection[str] = ()) -> None:
        self.data, self.folder, self.without = data, folder, without

    def opening(self) -> None:
        """Hold against one another what is known when the set is opened: the manifest's content."""
        manifest = Manifest(self.without)
        manifest.check(self.data)
        self.files, self.need = manifest.files, manifest.need
        declared = int.from_bytes(manifest.head[16:24], "little")
        self.pack = Check(manifest.head, self.without, declared)
        self.pack.opening()
        self.all_pieces()

    def contents(self) -> None:
        """Hold against an opened set its part files, and then the pack that they are."""
        checks, sections = [], [b""] * len(self.pack.sections)
        for number, file in enumerate(self.files):
            data = self.part_file(file)
            checks.append(self.part(number, file, data))
            for piece in file["pieces"]:
                start = piece["offset_bytes"]
                sections[piece["section"]] += data[start : start + piece["length_bytes"]]
        whole = self.pack.data
        for section, content in zip(self.pack.sections, sections):
            content = content[: section["length_bytes"]].ljust(section["length_bytes"], b"\0")
            whole = whole.ljust(section["offset_bytes"], b"\0") + content
        self.pack.data = whole
        self.pack.contents()
        self.compare_lengths(checks)

    # pieces against sections and one another

    def all_pieces(self) -> None:
        self.owners: dict[int, Any] = {}  # of each `blocks` section: table, first row, chunk
        for number, table in enumerate(self.pack.tables):
            first = 0
            for chunk in table["chunks"]:
                self.owners[chunk["blocks"]] = number, first, chunk
                first += chunk["rows"]
        self.bytes_seen: Counter[int] = Counter()
        self.rows_seen: Counter[int] = Counter()
        for file in self.files:
            end = None
            for piece in file["pieces"]:
                known = piece["section"] < len(self.pack.sections)
                self.need(known, "piece", "§15: number of a section")
                self.rows_of(piece)
                end = self.place(piece, end)
                self.bytes_seen[piece["section"]] += piece["length_bytes"]
            self.need(end == file["length_bytes"], "piece", "§15: ends with its last piece")
        for number, section in enumerate(self.pack.sections):
            fits = self.bytes_seen[number] == section["length_bytes"]
            self.need(fits, "piece", "§15: pieces are the section's bytes")
            rows = self.owners[number][2]["rows"] if number in self.owners else 0
            self.need(self.rows_seen[number] == rows, "piece", "§15: pieces are the chunk's rows")

    def rows_of(self, piece: Entry) -> None:
        """Hold against a piece's section what the piece says of rows."""
        need, number, stored = self.need, piece["section"], [piece.get(key) for key in ROWS]
        table, first, chunk = self.owners.get(number, (None, None, {}))
        has_lengths = piece.get("lengths_offset_bytes") is not None
        need(has_lengths == (chunk.get("index") is not None), "piece", "§15: lengths of blocks")
        if not chunk or None in stored:
            need(not chunk and stored == [None] * 3, "piece", "§15: rows of `blocks` sections")
            return
        encoding = self.pack.encodings[chunk["encoding"]]
        begins = stored[:2] == [table, first + self.rows_seen[number]]
        need(begins, "piece", "§15: rows follow each other")
        self.rows_seen[number] += piece["rows"]
        last = self.rows_seen[number] == chunk["rows"]
        whole = last or piece["rows"] % encoding["rows_per_block"] == 0
        need(whole and self.rows_seen[number] <= chunk["rows"], "piece", "§15: whole blocks")
        if encoding["frame"] == "raw":
            size = self.block_count(piece) * raw_block_bytes(encoding)
            need(piece["length_bytes"] == size, "piece", "§15: as long as its blocks")

    def block_count(self, piece: Entry) -> int:
        encoding = self.pack.encodings[self.owners[piece["section"]][2]["encoding"]]
        return ceil_div(piece["rows"], encoding["rows_per_block"])

    def place(self, piece: Entry, end: int | None) -> int:
        """Hold a piece against the end of the one before in its file; return its own end."""
        start = piece["offset_bytes"]
        fits = start == aligned(start if end is None else end, 4096) and start >= 4096
        self.need(fits, "piece", "§15: back to back")
        end = int(start + piece["length_bytes"])
        if piece.get("lengths_offset_bytes") is None:
            return end
        fits = piece["lengths_offset_bytes"] == aligned(end, 4096)
        self.need(fits, "piece", "§15: lengths directly behind the blocks")
        return aligned(end, 4096) + 4 * self.block_count(piece)

    # part files

    def part_file(self, file: Entry) -> bytes:
        path = self.folder / f"{file['sha256']}.part"
        self.need(path.is_file(), "part-missing", "§15: a file of this name")
        data = path.read_bytes() if path.is_file() else b""
        self.need(len(data) >= file["length_bytes"], "truncated", "§15: as long as in the manifest")
        fits = len(data) <= file["length_bytes"]
        self.need(fits, "trailing-bytes", "§15: as long as in the manifest")
        digest = hashlib.sha256(data).hexdigest()
        self.need(digest == file["sha256"], "part-digest", "§15: the SHA-256 of its bytes")
        return data

    def part(self, number: int, file: Entry, data: bytes) -> PartCheck:
        """Hold a part file's preamble and header against the manifest."""
        check = PartCheck(data, self.without)
        check.opening()
        check.contents()
        same = check.pack_id == self.pack.pack_id
        self.need(same, "part-mismatch", "§15: pack id of the pack")
        stored = check.header["file"]
        same = (stored["index"], stored["count"]) == (number, len(self.files))
        self.need(same, "part-mismatch", "§15: its place among the part files")
        same = list(map(known_keys, check.pieces)) == list(map(known_keys, file["pieces"]))
        self.need(same, "part-mismatch", "§15: pieces of the manifest")
        return check

    def compare_lengths(self, checks: list[PartCheck]) -> None:
        """Hold lengths of blocks in part files against the indexes."""
        expected = {}
        for number, (table, first, chunk) in self.owners.items():
            encoding, slot = self.pack.encodings[chunk["encoding"]], (table << 48) + first
            extents = self.pack.block_extents(chunk, encoding, slot)
            expected[number] = iter([end - start for start, end in extents])
        for check in checks:
            for piece, lengths in zip(check.pieces, check.block_lengths):
                index = expected.get(piece["section"], iter(()))
                same = lengths is None or lengths == [next(index, None) for _ in lengths]
                self.need(same, "part-mismatch", "§15: lengths of the index")


def known_keys(piece: Entry) -> list[Any]:
    return [piece.get(key) for key in PIECE]


def is_text(value: Any) -> bool:
    """Whether a value is a string that has UTF-8: one without single surrogates."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def digits(count: int) -> Rule:
    return lambda value: (
        isinstance(value, str) and len(value) == count and set(value) <= set("0123456789abcdef")
    )


def validate_part(data: bytes, digest: str, without: Collection[str] = ()) -> None:
    """Raise `BadPack` unless `data` is a valid part file by the name of `digest`."""
    check = PartCheck(data, without)
    same = hashlib.sha256(data).hexdigest() == digest
    check.need(same, "part-digest", "§15: the SHA-256 of its bytes")
    check.opening()
    check.contents()


def validate_set(data: bytes, folder: Path, without: Collection[str] = ()) -> None:
    """Raise `BadPack` unless the manifest `data` and its part files in `folder` are valid."""
    check = SetCheck(data, folder, without)
    check.opening()
    check.contents()
