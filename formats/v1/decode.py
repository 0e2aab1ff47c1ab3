"""Read rows of a pack from SPEC.md alone: no import from tolpack, laid out like the document.

    python decode.py PACK TOKEN_ID …               # PACK may be the manifest of a set of part files
    python decode.py PACK --table NUMBER TOKEN_ID …
    python decode.py PACK --edits FILE TOKEN_ID …   # edits of PACK; also several times

It trusts the file: whether it may is what `validate.py` beside it tells. Written to be read next to
the specification, not to be fast.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from decode_ans import decoded_basis, decoded_records
from decode_values import (
    CODECS,
    Array,
    code_bytes,
    decode,
    ordered_parts,
    record_bytes,
    scale_bytes,
)


class Pack:
    """Table number `number` of a valid pack in memory; `edits`: files of edits of it, in order."""

    def __init__(self, data: bytes, number: int = 0, edits: Sequence[bytes] = ()) -> None:
        self.data = data
        header_length = int.from_bytes(data[12:16], "little")  # §2
        header = json.loads(data[64 : 64 + header_length])  # §4
        self.sections, self.encodings = header["sections"], header["encodings"]  # §5
        self.table = header["tables"][number]
        self.fields = self.table["fields"]
        self.kept = [field for field in self.fields if not field.get("dropped")]
        self.edits = []  # §5: the last one of a token counts
        digest = sha256(data[: 64 + header_length]).hexdigest()
        files = [(data, None), *((file, digest) for file in edits)]
        for file, base in () if "edits" in self.table else files:
            tables = json.loads(file[64 : 64 + int.from_bytes(file[12:16], "little")])["tables"]
            for at, table in enumerate(tables):
                found = table.get("edits", {})
                if found.get("base") != base:
                    raise ValueError("edits of another pack, or none")
                if found.get("table") == self.table["name"]:
                    self.edits.append(Pack(file, at))

    def section(self, number: int) -> bytes:
        start = self.sections[number]["offset_bytes"]
        return self.data[start : start + self.sections[number]["length_bytes"]]

    def array(self, number: int) -> Array:  # §5
        entry, data = self.sections[number], self.section(number)
        if entry["kind"] == "coded_basis":
            part = {**entry, "values": entry["shape"][1]}
            if entry.get("frame") is not None:
                data = decoded_basis(data, entry["shape"], *self.coder(entry)[:3])
            rows = np.frombuffer(data, np.uint8).reshape(entry["shape"][0], -1)
            at = scale_bytes(part)
            return np.stack([decode(row[:at], row[at:], part) for row in rows])
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        return np.frombuffer(data, dtype).reshape(entry["shape"])

    def coder(self, entry: dict[str, Any]) -> tuple[list[list[int]], list[int], int, bool]:  # §8
        """Models, classes, lanes, and whether there is a trellis, of an encoding or a basis."""
        classes = self.array(entry["classes"])[entry["class_row"]].tolist()
        trellis = entry.get("trellis") is not None
        return self.array(entry["models"]).tolist(), classes, entry["lanes"], trellis

    def slot(self, token_id: int) -> int:  # §5
        if self.table.get("token_map") is None:
            return token_id
        found, chunks = self.array(self.table["token_map"]), self.table["chunks"]
        if found.dtype != np.uint8:
            return int(found[token_id])
        bits = next(n for n in (1, 2, 4, 8) if len(chunks) <= 1 << n)
        numbers = (found[:, None] >> np.arange(0, 8, bits)).reshape(-1) % (1 << bits)
        order = np.argsort(numbers[: self.table["rows"]], kind="stable")
        return int(np.flatnonzero(order == token_id)[0])

    def row(self, token_id: int) -> Array:
        """One token: float32 (fields, width); where widths differ, one field after the other."""
        for edits in reversed(self.edits):  # §5
            ids = edits.array(edits.table["edits"]["token_ids"])
            if token_id in ids:
                return edits.row(int(np.flatnonzero(ids == token_id)[0]))
        slot, first = self.slot(token_id), 0
        for chunk in self.table["chunks"]:
            if slot < first + chunk["rows"]:
                break
            first += chunk["rows"]
        record = self.record(chunk, slot - first)
        values = iter(self.decode_record(record, self.encodings[chunk["encoding"]]))
        multiplier = np.float32(self.table.get("multiplier") or 1)
        parts = [
            np.zeros(field["width"], np.float32) if field.get("dropped")
            else self.expand(field, next(values)) * multiplier
            for field in self.fields
        ]  # fmt: skip
        return np.stack(parts) if len(set(map(len, parts))) == 1 else np.concatenate(parts)

    def row_ids(self, token_ids: list[int]) -> list[list[int]]:  # §5
        """The rows that each token of a text touches, by head."""
        ngrams = self.table["ngrams"]
        ids = token_ids
        if ngrams.get("id_map") is not None:
            ids = self.array(ngrams["id_map"])[token_ids].tolist()
        heads = list(zip(ngrams["orders"], ngrams["sizes"], ngrams["offsets"]))
        found = []
        for at in range(len(ids)):
            products = [
                one * multiplier
                for one, multiplier in zip(context(ids, at, ngrams), ngrams["multipliers"])
            ]
            mixed = [mix(products[:order], ngrams["mixing"]) for order, _, _ in heads]
            found.append([o + m % size for m, (_, size, o) in zip(mixed, heads)])
        return found

    def expand(self, field: dict[str, Any], stored: Array) -> Array:  # §5
        if field.get("basis") is not None:
            stored = stored @ self.array(field["basis"]).astype(np.float32)
        if field.get("mean") is not None:
            stored = stored + self.array(field["mean"])
        return stored

    def record(self, chunk: dict[str, Any], row: int) -> bytes:  # §8
        encoding = self.encodings[chunk["encoding"]]
        per_block = encoding["rows_per_block"]
        block, size = row // per_block, record_bytes(encoding)
        rows = min(per_block, chunk["rows"] - block * per_block)
        length = ceil((size * per_block + 4) / 64) * 64
        start, checksum = block * length, 4
        if encoding["frame"] != "raw":
            start, length = self.frame_extent(chunk, block, encoding)
        if encoding["frame"] == "ans":
            checksum = 2
        payload = self.section(chunk["blocks"])[start : start + length - checksum]
        if encoding["frame"].startswith("zstd"):
            payload = zstandard.ZstdDecompressor().decompress(payload)
        if encoding["frame"] == "zstd-runs":
            payload = expanded(payload, rows * size, rows)
        if encoding["frame"] == "zstd-planes":
            payload = joined(payload, encoding, rows)
        if encoding["frame"] == "ans":
            payload = decoded_records(payload, rows, encoding, *self.coder(encoding))
        at = row % per_block * size
        return payload[at : at + size]

    def frame_extent(
        self, chunk: dict[str, Any], block: int, encoding: dict[str, Any]
    ) -> tuple[int, int]:
        (run, number), index = divmod(block, 512), self.section(chunk["index"])
        count, shortest = ceil(chunk["rows"] / encoding["rows_per_block"]), 0
        size = (len(index) - 12 * ceil(count / 512)) // count
        index = index[run * (12 + 512 * size) :]
        offset, *lengths = struct.unpack_from(f"<Q{number + 1}{' BH I'[size]}", index)
        if size == 1:
            offset, shortest = offset % 2**48, offset >> 48
        lengths = [length + shortest for length in lengths]
        return offset + sum(lengths[:-1]), lengths[-1]

    def decode_record(self, record: bytes, encoding: dict[str, Any]) -> list[Array]:  # §6
        data = np.frombuffer(record, np.uint8)
        parts = ordered_parts(encoding)
        code_at = sum(scale_bytes(part) for _, part in parts)
        scale_at = 0
        found: list[list[Array]] = [[] for _ in encoding["fields"]]
        for field, part in parts:
            scale_end, code_end = scale_at + scale_bytes(part), code_at + code_bytes(part)
            found[field].append(decode(data[scale_at:scale_end], data[code_at:code_end], part))
            scale_at, code_at = scale_end, code_end
        return [np.concatenate(pieces) for pieces in found]


def context(ids: list[int], at: int, ngrams: dict[str, Any]) -> list[int]:  # §5
    """The token at `at` and those before it, nearest first."""
    found = [ids[at]]
    while len(found) < max(ngrams["orders"]):
        one = ids[at - len(found)] if at >= len(found) else ngrams["pad"]
        ended = one == ngrams.get("boundary")
        missing = max(ngrams["orders"]) - len(found)
        found += [ngrams["pad"]] * missing if ended else [one]
    return found


def mix(products: list[int], mixing: str) -> int:
    if mixing == "sum":
        return sum(products)
    mixed = 0
    for product in products:
        mixed ^= product
    return (mixed + 2**63) % 2**64 - 2**63


def expanded(content: bytes, size: int, rows: int) -> bytes:  # §8
    end, out = 4 + int.from_bytes(content[:4], "little"), bytearray()
    literals = iter(content[end:])
    for high, low in (divmod(symbol, 16) for symbol in content[4:end]):
        out += bytes(high if low else 16 << high)
        if low:
            out.append(next(literals) if low == 8 else low if low < 8 else 240 + low)
    return np.frombuffer(out.ljust(size, b"\0"), np.uint8).reshape(-1, rows).T.tobytes()


def joined(content: bytes, encoding: dict[str, Any], rows: int) -> bytes:  # §8
    records, at = np.empty((rows, record_bytes(encoding)), np.uint8), 0
    for size, places in words(encoding):
        length = rows * len(places) * size
        planes = np.frombuffer(content, np.uint8, length, at).reshape(size, rows, -1)
        for k in range(size):
            whole = planes[k] >> 1 | planes[(k + 1) % size] << 7 if size > 1 else planes[k]
            records[:, places + k] = whole
        at += length
    return records.tobytes()


def words(encoding: dict[str, Any]) -> list[tuple[int, Array]]:
    """Sizes of words, in the order of their planes, and where in a record the words begin."""
    found: dict[tuple[int, int], list[int]] = {}
    end = 0
    for area, length in enumerate((scale_bytes, code_bytes)):
        for _, part in ordered_parts(encoding):
            bits, scale_size = CODECS[part["codec"]]
            size = max(1, bits // 8 if area else scale_size)
            found.setdefault((area, -size), []).extend(range(end, end + length(part), size))
            end += length(part)
    return [(-size, np.array(places, int)) for (_, size), places in sorted(found.items())]


def pack_bytes(path: Path) -> bytes:
    """Return the bytes of a pack: of its one file, or of a set by the path of its manifest."""
    data = path.read_bytes()
    return joined_parts(json.loads(data), path.parent) if data[:1] == b"{" else data


def joined_parts(manifest: dict[str, Any], folder: Path) -> bytes:  # §15
    header = json.loads(manifest["header"])
    sections: list[bytes] = [b"" for _ in header["sections"]]
    alignment = header.get("alignment") or 4096  # §3
    for file in manifest["files"]:
        part = (folder / f"{file['sha256']}.part").read_bytes()
        for piece in file["pieces"]:
            start = piece["offset_bytes"]
            sections[piece["section"]] += part[start : start + piece["length_bytes"]]
    whole: bytes = bytes.fromhex(manifest["preamble"]) + manifest["header"].encode()
    for content in sections:
        whole = whole.ljust(ceil(len(whole) / alignment) * alignment, b"\0") + content
    return whole


if __name__ == "__main__":
    arguments, number, edits = sys.argv[2:], 0, list[bytes]()
    while arguments[:1] in (["--table"], ["--edits"]):
        option, value, *arguments = arguments
        if option == "--table":
            number = int(value)
        else:
            edits.append(pack_bytes(Path(value)))
    pack = Pack(pack_bytes(Path(sys.argv[1])), number, edits)
    for argument in arguments:
        print(argument, pack.row(int(argument)))
