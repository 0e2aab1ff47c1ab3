"""Read rows of a pack from SPEC.md alone: no import from tolpack, laid out like the document.

    python decode.py PACK TOKEN_ID …

Written to be read next to the specification, not to be fast.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from math import ceil, prod
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]

SUPPORTED = sum(1 << bit for bit in (*range(10), 16, 17, 18, 19, 21))  # §9
CODECS = {  # §7: bits of a code, bytes of a scale
    "f32": (32, 0), "f16": (16, 0), "bf16": (16, 0), "f8e4m3": (8, 4),
    "int8": (8, 2), "int4": (4, 2), "step8": (8, 0), "step16": (16, 0),
}  # fmt: skip


class BadPack(Exception):
    """The file breaks a rule of the specification."""


def need(condition: bool, rule: str) -> None:
    """Refuse the file unless `condition` holds."""
    if not condition:
        raise BadPack(rule)


class Pack:
    """A pack in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read_preamble()
        self.read_header()

    def read_preamble(self) -> None:  # §2
        need(len(self.data) >= 64, "§2: 64 bytes")
        need(self.data[:8] == b"\x89TOLPACK", "§2: magic")
        (major, _, header_length, file_length, required, _, self.pack_id, reserved, crc, own) = (
            struct.unpack("<HHIQQQQQII", self.data[8:64])
        )
        need(major == 1, "§2: major version")
        need(zlib.crc32(self.data[:60]) == own, "§2: preamble checksum")
        need(not required & ~SUPPORTED, "§9: unknown required feature")
        need(reserved == 0 and 2 <= header_length <= 1 << 20, "§2: reserved, header length")
        need(file_length == len(self.data), "§2: file length")
        self.header_bytes = self.data[64 : 64 + header_length]
        need(zlib.crc32(self.header_bytes) == crc, "§2: header checksum")

    def read_header(self) -> None:  # §4, §5
        header = json.loads(self.header_bytes)
        self.sections, self.encodings = header["sections"], header["encodings"]
        need(len(header["tables"]) == 1, "§5: one table")
        self.table = header["tables"][0]
        end = 64 + len(self.header_bytes)
        for section in self.sections:  # §3
            need(section["offset_bytes"] == ceil(end / 4096) * 4096, "§3: sections back to back")
            end = section["offset_bytes"] + section["length_bytes"]
        need(end == len(self.data), "§1: the file ends with its last section")
        self.fields = self.table["fields"]
        self.kept = [field for field in self.fields if not field.get("dropped")]
        need(sum(c["rows"] for c in self.table["chunks"]) == self.table["rows"], "§5: rows")

    def section(self, number: int) -> bytes:
        start = self.sections[number]["offset_bytes"]
        return self.data[start : start + self.sections[number]["length_bytes"]]

    def array(self, number: int) -> Array:  # §5
        entry, data = self.sections[number], self.section(number)
        need(zlib.crc32(data) == entry["crc32"], "§5: array checksum")
        if entry["kind"] == "coded_basis":
            part = {**entry, "values": entry["shape"][1]}
            rows = np.frombuffer(data, np.uint8).reshape(entry["shape"][0], -1)
            at = scale_bytes(part)
            return np.stack([decode(row[:at], row[at:], part) for row in rows])
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        need(len(data) == prod(entry["shape"]) * dtype.itemsize, "§5: array length")
        array = np.frombuffer(data, dtype).reshape(entry["shape"])
        need(bool(np.isfinite(array).all()), "§5: finite values")
        return array

    def slot(self, token_id: int) -> int:  # §5
        need(0 <= token_id < self.table["rows"], "token id out of range")
        if self.table.get("token_map") is None:
            return token_id
        slots = self.array(self.table["token_map"])
        need(bool((np.sort(slots) == np.arange(len(slots))).all()), "§5: a permutation")
        return int(slots[token_id])

    def row(self, token_id: int) -> Array:
        """One token: float32 (fields, width)."""
        slot, first = self.slot(token_id), 0
        for chunk in self.table["chunks"]:
            if slot < first + chunk["rows"]:
                break
            first += chunk["rows"]
        record = self.record(chunk, first, slot - first)
        values = iter(self.decode_record(record, self.encodings[chunk["encoding"]]))
        multiplier = np.float32(self.table.get("multiplier") or 1)
        nothing = np.zeros(self.fields[0]["width"], np.float32)
        return np.stack([
            nothing if field.get("dropped") else self.expand(field, next(values)) * multiplier
            for field in self.fields
        ])  # fmt: skip

    def expand(self, field: dict[str, Any], stored: Array) -> Array:  # §5
        if field.get("basis") is not None:
            stored = stored @ self.array(field["basis"]).astype(np.float32)
        if field.get("mean") is not None:
            stored = stored + self.array(field["mean"])
        return stored

    def record(self, chunk: dict[str, Any], first: int, row: int) -> bytes:  # §8
        encoding = self.encodings[chunk["encoding"]]
        per_block = encoding["rows_per_block"]
        block, size = row // per_block, record_bytes(encoding)
        rows = min(per_block, chunk["rows"] - block * per_block)
        length = ceil((size * per_block + 4) / 64) * 64
        start = block * length
        if encoding["frame"] != "raw":
            start, length = self.frame_extent(chunk, first, block)
        stored = self.section(chunk["blocks"])[start : start + length]
        payload = self.checked(stored, first + block * per_block)
        if encoding["frame"] != "raw":
            runs, whole = encoding["frame"] == "zstd-runs", rows * size
            declared = zstandard.get_frame_parameters(payload)
            known, most = declared.content_size, 4 + 2 * whole + whole // 16
            need(known <= most if runs else known == whole, "§8: content size")
            need(declared.window_size <= max(known, 1024), "§8: window")
            payload = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
            payload = expanded(payload, whole, rows) if runs else payload
        at = row % per_block * size
        return payload[at : at + size]

    def frame_extent(self, chunk: dict[str, Any], first: int, block: int) -> tuple[int, int]:
        run, encoding = block // 512, self.encodings[chunk["encoding"]]
        blocks = ceil(chunk["rows"] / encoding["rows_per_block"])
        count = min(512, blocks - run * 512)
        stored = self.section(chunk["index"])[run * 2060 : run * 2060 + 12 + 4 * count]
        body = self.checked(stored, 2**63 + first + run * 512 * encoding["rows_per_block"])
        lengths = np.frombuffer(body[8:], "<u4").astype(int)
        offset = int.from_bytes(body[:8], "little") + int(lengths[: block % 512].sum())
        return offset, int(lengths[block % 512])

    def checked(self, stored: bytes, place: int) -> bytes:
        crc = zlib.crc32(struct.pack("<QQ", self.pack_id, place) + stored[:-4])
        need(crc == int.from_bytes(stored[-4:], "little"), "§8: checksum")
        return stored[:-4]

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


def expanded(content: bytes, size: int, rows: int) -> bytes:  # §8
    end, out = 4 + int.from_bytes(content[:4], "little"), bytearray()
    literals = list(content[end:])
    need(end <= len(content), "§8: symbols")
    for high, low in (divmod(symbol, 16) for symbol in content[4:end]):
        need(low != 8 or bool(literals), "§8: literals")
        out += bytes(high if low else 16 << high)
        if low:
            out.append(literals.pop(0) if low == 8 else low if low < 8 else 240 + low)
        need(len(out) <= size, "§8: records end")
    need(not literals, "§8: literals")
    return np.frombuffer(out.ljust(size, b"\0"), np.uint8).reshape(-1, rows).T.tobytes()


def ordered_parts(encoding: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:  # §6
    fields = [field["parts"] for field in encoding["fields"]]
    depth = max(len(parts) for parts in fields)
    return [(f, p[n]) for n in range(depth) for f, p in enumerate(fields) if n < len(p)]


def scale_bytes(part: dict[str, Any]) -> int:
    groups = ceil(part["values"] / part["group_size"]) if part.get("group_size") else 0
    return int(groups * CODECS[part["codec"]][1])


def code_bytes(part: dict[str, Any]) -> int:
    return int(ceil(part["values"] * CODECS[part["codec"]][0] / 8))


def record_bytes(encoding: dict[str, Any]) -> int:
    return sum(scale_bytes(part) + code_bytes(part) for _, part in ordered_parts(encoding))


def decode(scales: Array, codes: Array, part: dict[str, Any]) -> Array:  # §7
    codec, values = part["codec"], part["values"]
    plain = {"f32": "<f4", "f16": "<f2", "step8": "i1", "step16": "<i2"}.get(codec)
    if plain:
        return codes.view(plain).astype(np.float32) * np.float32(part.get("step") or 1)
    if codec == "bf16":
        return bfloat16(codes)
    scale = scales.view("<f4") if codec == "f8e4m3" else bfloat16(scales)
    need(bool(np.isfinite(scale).all()), "§7: finite scales")
    pieces, at = [], 0
    for group, start in enumerate(range(0, values, part["group_size"])):
        size = min(part["group_size"], values - start)
        length = ceil(size / 2) if codec == "int4" else size
        pieces.append(unpack(codec, codes[at : at + length], size) * scale[group])
        at += length
    return np.concatenate(pieces)


def unpack(codec: str, codes: Array, size: int) -> Array:
    if codec == "int8":
        return codes.view(np.int8).astype(np.float32)
    if codec == "int4":
        return np.concatenate([codes & 15, codes >> 4])[:size].astype(np.float32) - np.float32(8)
    return np.array([e4m3(int(code)) for code in codes], np.float32)


def e4m3(code: int) -> float:
    sign, exponent, mantissa = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa / 8 * 2**-6)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def bfloat16(data: Array) -> Array:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        pack = Pack(file.read())
    for argument in sys.argv[2:]:
        print(argument, pack.row(int(argument)))
