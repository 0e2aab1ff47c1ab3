"""The rules of a file, by SPEC.md alone (sections 2, 3, 5, 7 and 8): a part of `validate.py`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import zstandard
from validate_ans import check_basis, check_payload, models_fit
from validate_header import (
    CODECS,
    DTYPES,
    SUPPORTED,
    BadPack,
    Entry,
    HeaderRules,
    array_bytes,
    ceil_div,
    chunk_bits,
    code_bytes,
    coded_part,
    is_coded,
    longest_content,
    longest_payload,
    parts_of,
    raw_block_bytes,
    record_bytes,
    scale_bytes,
)

Array = np.ndarray[Any, Any]

EXPONENTS = {
    "float16": ("<u2", 0x7C00), "bfloat16": ("<u2", 0x7F80), "float32": ("<u4", 255 << 23),
    "e8m0": ("u1", 255),
}  # fmt: skip
SCALES = {"f8e4m3": "float32", "f8e4m3-e8m0": "e8m0", "q8_0": "float16", "q4_0": "float16"}


class Check(HeaderRules):
    """All rules, held against a file in memory; those with a code in `without` are left out.

    `length`: the file's, where `data` is only its beginning.
    """

    known = SUPPORTED  # §9: bits that may be set

    def __init__(
        self, data: bytes, without: Collection[str] = (), length: int | None = None
    ) -> None:
        super().__init__(without)
        self.data = data
        self.length = len(data) if length is None else length

    def opening(self) -> None:
        """Hold against the file what is known when it is opened."""
        self.preamble()
        self.check_header(self.data[64 : self.header_end])

    def contents(self) -> None:
        """Hold against an opened file what is in its sections and between them."""
        self.padding()
        self.arrays()
        for number, table in enumerate(self.tables):
            first = number << 48  # §8: where the slots of a table begin
            for chunk in table["chunks"]:
                if chunk["encoding"] < len(self.encodings):
                    self.blocks(chunk, self.encodings[chunk["encoding"]], first)
                first += chunk["rows"]

    # §2

    def preamble(self) -> None:
        data, need = self.data, self.need
        need(len(data) >= 64, "truncated", "§2: 64 bytes")
        need(data[:8] == b"\x89TOLPACK", "bad-magic", "§2: magic")
        (major, _, length, self.file_length, self.required, _, self.pack_id, reserved, crc, own) = (
            struct.unpack("<HHIQQQQQII", data[8:64])
        )
        need(major == 1, "unsupported-version", "§2: major version")
        need(zlib.crc32(data[:60]) == own, "preamble-checksum", "§2: checksum")
        need(not self.required & ~self.known, "unsupported-feature", "§9: bits that are known")
        need(reserved == 0, "reserved-not-zero", "§2: reserved is 0")
        need(2 <= length <= 1 << 20, "header-length", "§3: 2 … 2^20 bytes")
        self.header_end = 64 + length
        need(self.length >= self.file_length, "truncated", "§2: as long as declared")
        need(self.length <= self.file_length, "trailing-bytes", "§2: no longer than declared")
        need(self.length >= self.header_end, "truncated", "§2: holds its header")
        need(zlib.crc32(data[64 : self.header_end]) == crc, "header-checksum", "§2: checksum")

    # §3, §5: bytes between sections, arrays

    def section(self, number: int) -> bytes:
        start = self.sections[number]["offset_bytes"]
        return self.data[start : start + self.sections[number]["length_bytes"]]

    def padding(self) -> None:
        end = self.header_end
        for section in self.sections:
            gap = self.data[end : section["offset_bytes"]]
            self.need(not any(gap), "padding", "§3: zeros in front of a section")
            end = section["offset_bytes"] + section["length_bytes"]

    def arrays(self) -> None:
        for number, section in enumerate(self.sections):
            if section["kind"] in ("blocks", "index"):
                continue
            data = self.section(number)
            self.need(zlib.crc32(data) == section["crc32"], "array-checksum", "§5: checksum")
            if is_coded(section):
                rank = section["shape"][0]
                self.need(finite(data[: 2 * rank], "bfloat16"), "scale-not-finite", "§5: scales")
                self.entropy_coded(data[2 * rank :], section)
                continue
            data = data[: array_bytes(section)]
            if section["kind"] == "coded_basis":
                part = coded_part(section)
                rows = np.frombuffer(data, np.uint8).reshape(section["shape"][0], -1)
                scales = rows[:, : scale_bytes(part)].tobytes()
                self.need(finite(scales, "bfloat16"), "scale-not-finite", "§5: finite scales")
            elif section["kind"] == "code_models" and section["dtype"] == "uint16":
                fits = models_fit(np.frombuffer(data, "<u2").reshape(section["shape"]))
                self.need(fits, "code-models", "§8: shifts and frequencies")
            elif section["dtype"].startswith("float"):
                self.need(finite(data, section["dtype"]), "array-not-finite", "§5: finite values")
            elif section["kind"] == "token_map" and section["dtype"] == "uint8":
                self.token_chunks(number, data)
            elif section["kind"] == "token_map":
                slots = np.sort(np.frombuffer(data, f"<u{DTYPES[section['dtype']]}"))
                order = bool((slots == np.arange(len(slots))).all())
                self.need(order, "token-map", "§5: a permutation")
            elif section["kind"] == "id_map":
                small = bool((np.frombuffer(data, "<u4") < 1 << 31).all())
                self.need(small, "id-map", "§5: ids below 2^31")
        for table in self.tables:
            if table.get("edits") is not None:
                self.token_ids(table["edits"])

    def token_ids(self, edits: Entry) -> None:
        """Hold the edited tokens against the rows of the edited table."""
        ids = np.frombuffer(self.section(edits["token_ids"]), "<u4").astype(np.int64)
        rising = len(ids) < 2 or int(np.diff(ids).min()) > 0
        self.need(rising, "token-ids", "§5: strictly ascending")
        self.need(int(ids[-1]) < edits["rows"], "token-ids", "§5: below the rows that are edited")

    def token_chunks(self, number: int, data: bytes) -> None:
        """Hold a map of chunks against their rows."""
        table = next(one for one in self.tables if one.get("token_map") == number)
        rows = [chunk["rows"] for chunk in table["chunks"]]
        bits = chunk_bits(len(rows))
        shifted = np.frombuffer(data, np.uint8)[:, None] >> np.arange(0, 8, bits)
        found = (shifted % (1 << bits)).reshape(-1)
        fits = np.bincount(found[: sum(rows)]).tolist() == rows and not found[sum(rows) :].any()
        self.need(fits, "token-map", "§5: as many tokens as a chunk has rows, then zeros")

    # §8

    def entropy_coded(self, payload: bytes, entry: Entry, rows: int = 0) -> None:
        """Hold a payload against its encoding and its `rows` rows, or against its basis."""
        models, classes = (self.sections[entry[key]] for key in ("models", "classes"))
        if entry["class_row"] >= classes["shape"][0]:
            return
        frequencies = np.frombuffer(self.section(entry["models"]), "<u2").reshape(models["shape"])
        used = np.frombuffer(self.section(entry["classes"]), np.uint8).reshape(classes["shape"])
        used = used[entry["class_row"], : None if rows else entry["shape"][0]]
        most = len(frequencies) - (entry.get("trellis") is not None)
        self.need(int(used.max()) < most, "code-classes", "§8: a model for each class")
        if "frame" in self.without or int(used.max()) >= most:
            return
        if rows:
            check_payload(payload, rows, entry, frequencies.tolist(), used.tolist())
        else:
            check_basis(payload, entry, frequencies.tolist(), used.tolist())

    def blocks(self, chunk: Entry, encoding: Entry, first: int) -> None:
        per_block, data = encoding["rows_per_block"], self.section(chunk["blocks"])
        for number, (start, end) in enumerate(self.block_extents(chunk, encoding, first)):
            rows = min(per_block, chunk["rows"] - number * per_block)
            slot, size = first + number * per_block, rows * record_bytes(encoding)
            bytes_of_checksum = 2 if encoding["frame"] == "ans" else 4
            payload = self.checked(data[start:end], slot, "block-checksum", bytes_of_checksum)
            if encoding["frame"] == "ans":
                self.entropy_coded(payload, {"lanes": 1, **encoding}, rows)
            elif encoding["frame"] == "raw":
                self.need(not any(payload[size:]), "padding", "§8: zeros behind the records")
                self.scales(payload[:size], encoding, rows)
            elif encoding["frame"] == "zstd":
                self.scales(self.frame(payload, size, size), encoding, rows)
            elif encoding["frame"] == "zstd-planes":
                content = self.frame(payload, size, size)
                self.scales(joined(content, encoding, rows), encoding, rows)
            else:
                content = self.frame(payload, 4, longest_content(encoding, rows))
                self.scales(self.expanded(content, size, rows), encoding, rows)

    def block_extents(self, chunk: Entry, encoding: Entry, first: int) -> Iterator[tuple[int, int]]:
        per_block = encoding["rows_per_block"]
        count = ceil_div(chunk["rows"], per_block)
        if encoding["frame"] == "raw":
            length = raw_block_bytes(encoding)
            yield from ((n * length, n * length + length) for n in range(count))
        elif chunk.get("index") is not None:
            index = self.section(chunk["index"])
            limit = self.sections[chunk["blocks"]]["length_bytes"]
            (shortest, longest), end = block_lengths(encoding), 0
            coded = encoding["frame"] == "ans"
            size = (len(index) - 12 * ceil_div(count, 512)) // count if coded else 4
            for run in range(ceil_div(count, 512)):
                start = (12 + 512 * size) * run
                stored = index[start : start + 12 + size * min(512, count - 512 * run)]
                slot = first + 512 * run * per_block
                body = self.checked(stored, 2**63 + slot, "index-checksum")
                (start,), lengths = struct.unpack("<Q", body[:8]), numbers(body[8:], size)
                if size == 1:
                    lengths = [length + (start >> 48) for length in lengths]
                    start %= 1 << 48
                fits = all(shortest <= length <= longest for length in lengths)
                fits = fits and start + sum(lengths) <= limit
                self.need(fits, "frame-extent", "§8: lengths of blocks")
                self.need(start == end, "frame-extent", "§8: runs without holes")
                end = start
                for length in lengths:
                    yield end, end + length
                    end += length
            self.need(end == limit, "frame-extent", "§8: blocks fill the section")

    def checked(self, stored: bytes, place: int, code: str, size: int = 4) -> bytes:
        crc = zlib.crc32(struct.pack("<QQ", self.pack_id, place) + stored[:-size])
        self.need(crc.to_bytes(4, "little")[:size] == stored[-size:], code, "§8: checksum")
        return stored[:-size]

    def frame(self, payload: bytes, least: int, most: int) -> bytes:
        """Decompress a frame whose content is of `least` to `most` bytes."""
        self.need(payload[:4] == b"\x28\xb5\x2f\xfd", "frame", "§8: magic")
        d, at = int.from_bytes(payload[4:5], "little"), 5
        single = d >> 5 & 1
        found = []
        for length in (1 - single, (0, 1, 2, 4)[d & 3], (single, 2, 4, 8)[d >> 6]):
            found.append(int.from_bytes(payload[at : at + length], "little"))
            at += length
        window, dictionary, size = found
        size += 256 if d >> 6 == 1 else 0
        power = 1 << 10 + (window >> 3)
        window = size if single else power + power // 8 * (window & 7)
        self.need(d >> 5 > 0 and least <= size <= most, "frame", "§8: declared content size")
        self.need(dictionary == 0, "frame", "§8: no dictionary")
        self.need(window <= max(size, 1024), "frame", "§8: window")
        try:
            content = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadPack("frame", f"§8: one frame as of RFC 8878: {error}") from error
        self.need(len(content) == size, "frame", "§8: as long as declared")
        return bytes(content)

    def expanded(self, content: bytes, size: int, rows: int) -> bytes:
        end, out = 4 + int.from_bytes(content[:4], "little"), bytearray()
        self.need(end <= len(content), "frame", "§8: symbols fit in the content")
        literals = iter(content[end:])
        for high, low in (divmod(symbol, 16) for symbol in content[4:end]):
            out += bytes(high if low else 16 << high)
            if low:
                value = next(literals, None) if low == 8 else low if low < 8 else 240 + low
                self.need(value is not None, "frame", "§8: a literal for each escape")
                out.append(value or 0)
            self.need(len(out) <= size, "frame", "§8: no more than the records")
        self.need(next(literals, None) is None, "frame", "§8: no literals left over")
        return np.frombuffer(out.ljust(size, b"\0"), np.uint8).reshape(-1, rows).T.tobytes()

    # §6, §7

    def scales(self, records: bytes, encoding: Entry, rows: int) -> None:
        array, at = np.frombuffer(records, np.uint8).reshape(rows, -1), 0
        for part in parts_of(encoding):
            size = scale_bytes(part)
            dtype = SCALES.get(part["codec"], "bfloat16")
            scales = array[:, at : at + size].tobytes()
            self.need(finite(scales, dtype), "scale-not-finite", "§7: finite scales")
            at += size


def block_lengths(encoding: Entry) -> tuple[int, int]:
    """The least and the most bytes of a block in a chunk with an index (§8)."""
    if encoding["frame"] == "ans":
        return 4 * (encoding.get("lanes") or 1) + 2, longest_payload(encoding) + 2
    longest = longest_content(encoding, encoding["rows_per_block"])
    return 5, longest + longest // 256 + 68


def numbers(data: bytes, size: int) -> list[int]:
    """Numbers of so many bytes each."""
    return [int(number) for number in np.frombuffer(data, f"<u{size}")]


def joined(content: bytes, encoding: Entry, rows: int) -> bytes:
    """Put together the records whose words were cut into planes (§8)."""
    records, at = np.empty((rows, record_bytes(encoding)), np.uint8), 0
    for size, places in words(encoding):
        length = rows * len(places) * size
        planes = np.frombuffer(content, np.uint8, length, at).reshape(size, rows, -1)
        for k in range(size):
            whole = planes[k] >> 1 | planes[(k + 1) % size] << 7 if size > 1 else planes[k]
            records[:, places + k] = whole
        at += length
    return records.tobytes()


def words(encoding: Entry) -> list[tuple[int, Array]]:
    """Sizes of words, in the order of their planes, and where in a record the words begin."""
    found: dict[tuple[int, int], list[int]] = {}
    end = 0
    for area, length in enumerate((scale_bytes, code_bytes)):
        for part in parts_of(encoding):
            _, bits, scale_size = CODECS[part["codec"]]
            size = max(1, bits // 8 if area else scale_size)
            found.setdefault((area, -size), []).extend(range(end, end + length(part), size))
            end += length(part)
    return [(-size, np.array(places, int)) for (_, size), places in sorted(found.items())]


def finite(data: bytes, dtype: str) -> bool:
    """Whether no number has an exponent of ones alone."""
    word, exponent = EXPONENTS[dtype]
    return bool((np.frombuffer(data, word) & exponent != exponent).all())


def validate(data: bytes, without: Collection[str] = ()) -> None:
    """Raise `BadPack` unless `data` is a valid pack."""
    check = Check(data, without)
    check.opening()
    check.contents()
