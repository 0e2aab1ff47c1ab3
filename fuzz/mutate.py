"""Breaking packs behind their checksums.

Flipped bits end at the first checksum. So a pack is taken apart, one thing in it is changed, and
every checksum that covers it is made again: the checks behind are met. Now and then the checksums
stay wrong, as those have branches too.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

# What taking a pack apart ends in when an earlier change left none.
_NO_PACK = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error,
            RecursionError)  # fmt: skip
MAX_SIZE = 1 << 16
_PREAMBLE = struct.Struct("<8sHHIQQQQQI")
_INTEGERS = (0, 1, 2, 3, 7, 8, 63, 64, 255, 256, 4095, 4096, 4097, 65535, 65536, 2**20, 2**31,
             2**32, 2**40, 2**48, 2**48 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -1)  # fmt: skip
_VALUES: tuple[Any, ...] = (
           None, True, False, "", "a", "raw", "zstd", "zstd-planes", "ans", "f32", "f16", "bf16",
           "f8e4m3", "int8", "int4", "step8", "step16", "f8e4m3-e8m0", "f8e4m3-step", "q8_0",
           "q4_0", "basis", "coded_basis", "mean", "id_map", "xor", "sum",
           "token_map", "blocks", "index", "code_models", "code_classes", "float16", "float32",
           "uint8", "uint16", "uint32",
           1.0, 0.5, -2, [], {}, [1], [1, 1])  # fmt: skip
_WORDS = tuple(struct.pack("<I", n) for n in (0, 1, 4, 0x7F80, 0x7F800000, 2**31, 2**32 - 1))


def mutate(data: bytes, seed: int, max_size: int = MAX_SIZE) -> bytes:
    """Return `data` with one to four things changed; the same seed changes the same things."""
    source = random.Random(seed)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        kind = source.choices((_header, _section, _preamble, _whole), (6, 5, 1, 1))[0]
        try:
            data = kind(_Apart(data), source)
        except _NO_PACK:
            data = _bytes(data, source)
    return data[:max_size]


class _Apart:
    """A file as preamble fields, header and the bytes behind it."""

    def __init__(self, data: bytes) -> None:
        self.fields = list(_PREAMBLE.unpack_from(data))
        length = self.fields[3]
        self.header: Any = json.loads(data[64 : 64 + length])
        self.text: bytes | None = None
        self.room = length
        self.rest = bytearray(data[64 + length :])

    def section(self, number: int) -> slice:
        """Where section `number` lies in ``rest``."""
        entry = self.header["sections"][number]
        start = entry["offset_bytes"] - 64 - self.room
        return slice(start, start + entry["length_bytes"])

    def bytes(self, *, reseal: bool = True) -> bytes:
        """Put the file together, with right checksums if asked for."""
        if reseal:
            for change in (self._seal_arrays, self._seal_chunks):
                with contextlib.suppress(*_NO_PACK):
                    change()
        text = self.text or json.dumps(self.header, separators=(",", ":")).encode()
        text = text.ljust(min(self.room, 1 << 16))
        fields = list(self.fields)
        fields[3] = len(text) if fields[3] == self.room else fields[3]
        if fields[4] == 64 + self.room + len(self.rest) or reseal:
            fields[4] = 64 + len(text) + len(self.rest)
        fields[9] = zlib.crc32(text) if reseal else fields[9]
        head = _PREAMBLE.pack(
            *(field if n == 0 else field % 2**64 for n, field in enumerate(fields))
        )
        return head + struct.pack("<I", zlib.crc32(head)) + text + bytes(self.rest)

    def _seal_arrays(self) -> None:
        for number, entry in enumerate(self.header["sections"]):
            if "crc32" in entry:
                entry["crc32"] = zlib.crc32(self.rest[self.section(number)])

    def _seal_chunks(self) -> None:
        for number, table in enumerate(self.header["tables"][:64]):
            self._seal_table(table, number << 48)

    def _seal_table(self, table: dict[str, Any], slot: int) -> None:
        for chunk in table["chunks"]:
            encoding = self.header["encodings"][chunk["encoding"]]
            per_block = encoding["rows_per_block"]
            blocks = -(-chunk["rows"] // per_block)
            if blocks > 4096:
                return
            where, size = self.section(chunk["blocks"]), 2 if encoding["frame"] == "ans" else 4
            if encoding["frame"] == "raw":
                length = (where.stop - where.start) // blocks
                bounds = [(n * length, (n + 1) * length) for n in range(blocks)]
            else:
                bounds = self._seal_index(chunk, blocks, slot, per_block)
            for number, (start, stop) in enumerate(bounds):
                place = slot + number * per_block
                self._seal(where.start + start, where.start + stop, place, size)
            slot += chunk["rows"]

    def _seal_index(
        self, chunk: dict[str, Any], blocks: int, slot: int, per_block: int
    ) -> list[tuple[int, int]]:
        where, bounds, runs = self.section(chunk["index"]), [], -(-blocks // 512)
        size = min(4, (where.stop - where.start - 12 * runs) // blocks)
        for run in range(runs):
            count, at = min(512, blocks - run * 512), where.start + run * (12 + 512 * size)
            end = struct.unpack_from("<Q", self.rest, at)[0]
            end, shortest = (end % 2**48, end >> 48) if size == 1 else (end, 0)
            for length in struct.unpack_from(f"<{count}{' BH I'[size]}", self.rest, at + 8):
                bounds.append((end, end + length + shortest))
                end += length + shortest
            place = 2**63 + slot + run * 512 * per_block
            self._seal(at, at + 12 + size * count, place)
        return bounds

    def _seal(self, start: int, stop: int, place: int, size: int = 4) -> None:
        if 0 <= start < stop - size and stop <= len(self.rest):
            head = struct.pack("<QQ", self.fields[7], place % 2**64)
            crc = zlib.crc32(head + self.rest[start : stop - size])
            self.rest[stop - size : stop] = struct.pack("<I", crc)[:size]


def _header(pack: _Apart, source: random.Random) -> bytes:
    """Change something in the header; features mostly follow, or nothing else would fail."""
    spots = list(_spots(pack.header))
    holder, key = source.choice(spots)
    change = source.choice((_other_integer, _other_value, _removed, _doubled, _copied))
    change(holder, key, source, spots)
    if source.random() < 0.7:
        pack.fields[5] = _features(pack.header, pack.fields[5])
    if source.random() < 0.05:
        pack.text = _bytes(json.dumps(pack.header).encode(), source)
    return pack.bytes(reseal=source.random() < 0.95)


def _section(pack: _Apart, source: random.Random) -> bytes:
    """Change bytes of a section, of a gap, or the length of everything."""
    number = source.randrange(len(pack.header["sections"]))
    try:
        where = pack.section(number)
        content = bytes(pack.rest[where])  # shorter than declared, if the length was changed
        pack.rest[where] = _bytes(content, source).ljust(len(content), b"\0")[: len(content)]
    except (LookupError, TypeError, ValueError):
        pack.rest = bytearray(_bytes(bytes(pack.rest), source))
    return pack.bytes(reseal=source.random() < 0.9)


def _preamble(pack: _Apart, source: random.Random) -> bytes:
    """Change a field of the preamble."""
    number = source.randrange(1, 10)
    limit = 2 ** (16, 16, 32, 64, 64, 64, 64, 64, 32)[number - 1]
    bit = 1 << source.randrange(limit.bit_length() - 1)
    pack.fields[number] = source.choice((pack.fields[number] ^ bit, *_INTEGERS)) % limit
    return pack.bytes(reseal=False)


def _whole(pack: _Apart, source: random.Random) -> bytes:
    """Change bytes anywhere, checksums as they fall."""
    return _bytes(pack.bytes(reseal=False), source)


def _bytes(data: bytes, source: random.Random) -> bytes:
    """Flip, overwrite, insert, remove or repeat a few bytes."""
    if not data:
        return source.randbytes(8)
    at = source.randrange(len(data))
    size = source.choice((1, 1, 2, 4, 8, 64))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + source.randbytes(size) + data[at + size :],
        lambda: data[: at & ~3] + source.choice(_WORDS) + data[(at & ~3) + 4 :],
        lambda: data[:at] + source.randbytes(size) + data[at:],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + data[at : at + size] * 2 + data[at + size :],
        lambda: data[:at],
    )
    return source.choice(kinds)()


def _spots(value: Any) -> Any:
    """Yield (container, key) of everything inside a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _spots(value[key])


def _other_integer(holder: Any, key: Any, source: random.Random, spots: Any) -> None:
    now = holder[key]
    if type(now) is not int:
        holder[key] = source.choice(_INTEGERS)
        return
    near = (
        now + 1,
        now - 1,
        now * 2,
        now // 2,
        now + 4096,
        now - 4096,
        now ^ 1 << source.randrange(20),
    )
    holder[key] = source.choice((*near, source.choice(_INTEGERS)))


def _other_value(holder: Any, key: Any, source: random.Random, spots: Any) -> None:
    holder[key] = source.choice(_VALUES)


def _removed(holder: Any, key: Any, source: random.Random, spots: Any) -> None:
    del holder[key]


def _doubled(holder: Any, key: Any, source: random.Random, spots: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(holder[key])))
    else:
        name = source.choice(
            (
                "index",
                "mean",
                "basis",
                "rank",
                "token_map",
                "ngrams",
                "id_map",
                "boundary",
                "multiplier",
                "dropped",
                "step",
                "group_size",
                "class_row",
                "lanes",
                "frame",
            )
        )
        holder[name] = source.choice((0, 1, 2, 3, 1.5, True))


def _copied(holder: Any, key: Any, source: random.Random, spots: Any) -> None:
    other, place = source.choice(spots)
    if place in other if isinstance(other, dict) else place < len(other):
        holder[key] = json.loads(json.dumps(other[place]))


def _features(header: Any, known: int) -> int:
    """Bits of what a header uses (SPEC §9), or `known` where that cannot be told."""
    codecs = {"f32": 0, "f16": 1, "bf16": 2, "f8e4m3": 3, "int8": 4, "int4": 5,
              "step8": 6, "step16": 7, "f8e4m3-e8m0": 32, "f8e4m3-step": 33, "q8_0": 34,
              "q4_0": 35}  # fmt: skip
    try:
        bits = {
            codecs[p["codec"]] for e in header["encodings"] for f in e["fields"] for p in f["parts"]
        }
        frames = {"zstd": 8, "zstd-runs": 9, "zstd-planes": 10, "ans": 11}
        bits |= {frames[e["frame"]] for e in header["encodings"] if e["frame"] != "raw"}
        for table in header["tables"]:
            bits |= {16 for field in table["fields"] if field.get("basis") is not None}
            bits |= {17 for field in table["fields"] if field.get("mean") is not None}
            bits |= {18} if table.get("token_map") is not None else set()
            bits |= {19} if table.get("multiplier") not in (None, 1) else set()
            bits |= {26} if len({field["width"] for field in table["fields"]}) > 1 else set()
            bits |= {27 for n, field in enumerate(table["fields"]) if field["layer"] != n}
        bits |= {21 for section in header["sections"] if section["kind"] == "coded_basis"}
        bits |= {22 for section in header["sections"] if section["kind"] == "id_map"}
        bits |= {11 for section in header["sections"] if section["kind"].startswith("code_")}
        bits |= {23 for section in header["sections"] if section.get("frame") is not None}
        bits |= {48 for section in header["sections"]
                 if (section["kind"], section.get("dtype")) == ("token_map", "uint16")}  # fmt: skip
        bits |= {49 for section in header["sections"]
                 if (section["kind"], section.get("dtype")) == ("token_map", "uint8")}  # fmt: skip
        bits |= {56} if header.get("alignment") is not None else set()
        bits |= {25} if len(header["tables"]) > 1 else set()
    except (LookupError, TypeError, AttributeError):
        return known
    return sum(1 << bit for bit in bits)
