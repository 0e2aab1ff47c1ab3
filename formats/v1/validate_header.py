"""The rules of a header, by SPEC.md alone (sections 3 to 6 and 9): a part of `validate.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from math import prod
from typing import Any

import numpy as np

Entry = dict[str, Any]
Rule = Callable[[Any], bool]

_BITS = (*range(12), *range(16, 20), *range(21, 24), *range(25, 28), *range(32, 36), 48, 49, 50, 56)
SUPPORTED = sum(1 << bit for bit in _BITS)  # §9
CODECS = {  # §7, §9: feature bit, bits of a code, bytes of a scale
    "f32": (0, 32, 0), "f16": (1, 16, 0), "bf16": (2, 16, 0), "f8e4m3": (3, 8, 4),
    "int8": (4, 8, 2), "int4": (5, 4, 2), "step8": (6, 8, 0), "step16": (7, 16, 0),
    "f8e4m3-e8m0": (32, 8, 1), "f8e4m3-step": (33, 8, 0), "q8_0": (34, 8, 2), "q4_0": (35, 4, 2),
}  # fmt: skip
FRAMES = {"raw": -1, "zstd": 8, "zstd-runs": 9, "zstd-planes": 10, "ans": 11}  # §8, §9: bit
DTYPES = {"uint8": 1, "uint16": 2, "uint32": 4, "float16": 2, "float32": 4}
CODER_ARRAYS = ("code_models", "code_classes")  # §5
ARRAYS = ("token_map", "basis", "mean", "coded_basis", "id_map", "token_ids", *CODER_ARRAYS)


class BadPack(Exception):
    """The file breaks a rule of the specification; ``code`` is that of section 10."""

    def __init__(self, code: str, rule: str) -> None:
        super().__init__(f"{code}: {rule}")
        self.code = code


class HeaderRules:
    """The rules that a header alone can break; those with a code in `without` are left out."""

    header_end: int  # §2: where the header ends, how long the file is, and its mask
    file_length: int
    required: int
    syntax_code = "header-json"  # §10: what a breach of §4 is, and one of keys, types and ranges
    field_code = "header-field"

    def __init__(self, without: Collection[str] = ()) -> None:
        self.without = without

    def need(self, condition: bool, code: str, rule: str) -> None:
        """Refuse the file unless `condition` holds."""
        if not condition and code not in self.without:
            raise BadPack(code, rule)

    def check_header(self, text: bytes) -> None:
        self.header = self.syntax(text)
        self.keys()
        self.extents()
        names = {table["name"] for table in self.tables}
        self.need(len(names) == len(self.tables), "table-name", "§5: different names")
        for table in self.tables:
            self.fields(table)
            self.chunks(table)
            self.ngrams(table)
        self.edits()
        self.references()
        self.features()

    # §4

    def syntax(self, text: bytes) -> Entry:
        self.need(text[:1] == b"{", self.syntax_code, "§4: begins with {")
        try:
            header = json.loads(
                text.decode("utf-8"),
                object_pairs_hook=self.unique,
                parse_constant=lambda text: self.need(False, self.syntax_code, f"§4: no {text}"),
                parse_int=self.integer,
            )
        except (ValueError, RecursionError) as error:
            raise BadPack(self.syntax_code, f"§4: JSON in UTF-8: {error}") from error
        level = [header]
        for _ in range(16):
            inside = [i.values() if isinstance(i, dict) else i for i in level]
            level = [v for values in inside for v in values if isinstance(v, (dict, list))]
        self.need(not level, self.syntax_code, "§3: 16 levels of objects and lists")
        return dict(header)

    def unique(self, pairs: list[tuple[str, Any]]) -> Entry:
        self.need(len(dict(pairs)) == len(pairs), self.syntax_code, "§4: no two equal keys")
        return dict(pairs)

    def integer(self, text: str) -> int:
        fits = text != "-0" and len(text) <= 20 and abs(int(text)) < 2**63
        self.need(fits, self.syntax_code, "§4: integers up to 2^63 - 1, no -0")
        return int(text)

    # §5: what keys there are; limits of §3

    def keys(self) -> None:
        header = self.header
        self.entry("header", header, producer=is_name, tables=objects(4096),
                   encodings=objects(65536), sections=objects(262144),
                   file=optional(is_object), alignment=optional(integers(64, 64)))  # fmt: skip
        self.alignment = header.get("alignment") or 4096
        if header.get("file") is not None:
            self.file_keys(header["file"])
        self.tables, self.sections = header["tables"], header["sections"]
        self.encodings = header["encodings"]
        number = integers(0, len(self.sections) - 1)
        for section in self.sections:
            self.section_keys(section, number)
        for table in self.tables:
            self.table_keys(table, number)
        for encoding in self.encodings:
            self.encoding_keys(encoding, number)

    def entry(self, place: str, entry: Entry, **rules: Rule) -> None:
        """Hold an object's keys against the rules for each; others are ignored (§4)."""
        for key, fits in rules.items():
            self.need(fits(entry.get(key)), self.field_code, f"§5: {place}.{key}")

    def file_keys(self, file: Entry) -> None:
        self.entry("file", file, count=integers(1, 65536))
        self.entry("file", file, index=integers(0, file["count"] - 1))

    def section_keys(self, section: Entry, number: Rule) -> None:
        self.entry("section", section,
                   kind=one_of(*ARRAYS, "blocks", "index"),
                   offset_bytes=integers(0, 2**63 - 1),
                   length_bytes=integers(1, 2**63 - 1))  # fmt: skip
        if section["kind"] in ("blocks", "index"):
            return
        self.entry("section", section, crc32=integers(0, 2**32 - 1), shape=is_shape)
        if section["kind"] == "coded_basis":
            self.entry("section", section, codec=one_of("int8", "int4"), group_size=is_group_size,
                       frame=optional(one_of("ans")))  # fmt: skip
            if section.get("frame") is not None:
                self.entry("section", section, codec=one_of("int8"))
                self.coder_keys(section, number)
        else:
            self.entry("section", section, dtype=one_of(*DTYPES))

    def coder_keys(self, entry: Entry, number: Rule) -> None:
        self.entry("coder", entry, models=number, classes=number, class_row=integers(0, 262143),
                   lanes=integers(1, 32))  # fmt: skip

    def table_keys(self, table: Entry, number: Rule) -> None:
        self.entry("table", table, name=is_name, rows=integers(1, 2**48), fields=objects(4096),
                   chunks=objects(65536), token_map=optional(number),
                   multiplier=optional(is_normal), ngrams=optional(is_object),
                   edits=optional(is_object))  # fmt: skip
        if table.get("edits") is not None:
            self.entry("edits", table["edits"], table=is_name, rows=integers(1, 2**48),
                       token_ids=number, base=optional(is_digest))  # fmt: skip
        if table.get("ngrams") is not None:
            self.entry("ngrams", table["ngrams"], mixing=one_of("xor", "sum"),
                       orders=lists(4096, integers(1, 64)), sizes=lists(4096, integers(1, 2**48)),
                       offsets=lists(4096, integers(0, 2**48 - 1)),
                       multipliers=lists(64, integers(1 - 2**63, 2**63 - 1)),
                       pad=integers(0, 2**31 - 1), boundary=optional(integers(0, 2**31 - 1)),
                       id_map=optional(number))  # fmt: skip
        for field in table["fields"]:
            self.entry("field", field, name=is_name, layer=integers(0, 4095),
                       width=integers(1, 65536), dropped=optional(is_boolean),
                       dtype=one_of("float32", "float16", "bfloat16"),
                       basis=optional(number), mean=optional(number))  # fmt: skip
            self.entry("field", field, rank=optional(integers(1, field["width"])))
        for chunk in table["chunks"]:
            self.entry("chunk", chunk, rows=integers(1, 2**48), encoding=integers(0, 65535),
                       blocks=number, index=optional(number))  # fmt: skip

    def encoding_keys(self, encoding: Entry, number: Rule) -> None:
        self.entry("encoding", encoding, frame=one_of(*FRAMES), rows_per_block=integers(1, 4096),
                   fields=objects(4096))  # fmt: skip
        codecs = one_of(*CODECS)
        if encoding["frame"] == "ans":
            codecs = one_of("step8", "step16")
            self.coder_keys(encoding, number)
            self.entry("encoding", encoding, trellis=optional(integers(8, 8)))
        else:
            self.entry("encoding", encoding, models=is_absent, classes=is_absent,
                       class_row=is_absent, lanes=is_absent, trellis=is_absent)  # fmt: skip
        for field in encoding["fields"]:
            self.entry("field of an encoding", field, parts=objects(16))
            for part in field["parts"]:
                self.entry("part", part, codec=codecs, values=integers(1, 65536))
                has_scales, has_step = CODECS[part["codec"]][2], "step" in part["codec"]
                self.entry("part", part, group_size=is_group_size if has_scales else is_absent,
                           step=is_normal if has_step else is_absent)  # fmt: skip

    # §3, §5: the parts of the header against each other and the file

    def extents(self) -> None:
        end = self.header_end
        for section in self.sections:
            start, length = section["offset_bytes"], section["length_bytes"]
            self.need(start == aligned(end, self.alignment), "section-offset", "§3: back to back")
            end = start + length
            self.need(end <= self.file_length, "extent-past-end", "§1: inside the file")
            if section["kind"] not in ("blocks", "index"):
                size = array_bytes(section)
                if is_coded(section):
                    self.coded_basis(section)
                else:
                    self.need(length == size, "array-length", "§5: the shape's elements")
                self.need(size < 2**32, "array-length", "§3: 2^32 - 1 bytes")
        self.need(end >= self.file_length, "trailing-bytes", "§1: ends with its last section")

    def coded_basis(self, section: Entry) -> None:
        need, shape, length = self.need, section["shape"], section["length_bytes"]
        need(len(shape) == 2, "array-shape", "§5: rank and width")
        rank, width = shape
        need(section["group_size"] >= width, "header-field", "§5: one scale a row")
        least = 2 * rank + 4 * section["lanes"]
        most = least + 2 * ceil_div(38 * rank * width, 16)
        fits = least <= length <= most and rank * width <= 16 * length
        need(fits, "array-length", "§5: length of an entropy-coded basis")
        self.coder(section)
        classes = self.sections[section["classes"]]["shape"]
        need(classes[-1] >= rank, "array-shape", "§8: a class for each row")

    def coder(self, entry: Entry) -> None:
        models, classes = (self.sections[entry[key]] for key in ("models", "classes"))
        for section, kind, dtype in zip((models, classes), CODER_ARRAYS, ("uint16", "uint8")):
            self.need(section["kind"] == kind, "section-kind", f"§5: a {kind}")
            self.need(section.get("dtype") == dtype, "array-dtype", f"§5: {dtype}")
        shape = models["shape"]
        fits = len(shape) == 2 and shape[0] <= 256 and 5 <= shape[1] <= 257 and shape[1] % 2 == 1
        self.need(fits, "array-shape", "§5: shape of models")
        self.need(len(classes["shape"]) == 2, "array-shape", "§5: rows of classes")
        self.need(entry["class_row"] < classes["shape"][0], "reference", "§5: a row of classes")

    def fields(self, table: Entry) -> None:
        need, fields = self.need, table["fields"]
        need(bool(kept_fields(table)), "no-data", "§5: a field that is not dropped")
        need(sum(f["width"] for f in fields) <= 1 << 24, "row-size", "§3: values of a row")
        names = {field["name"] for field in fields}
        need(len(names) == len(fields), "field-name", "§5: different names")
        for number, field in enumerate(fields):
            fits = field["layer"] == number or self.required >> 27 & 1
            need(bool(fits), "field-layer", "§5: its number in the list, but for bit 27")
            basis, rank, mean = field.get("basis"), field.get("rank"), field.get("mean")
            has_data = not rank is basis is mean is None
            need(not (field.get("dropped") and has_data), "dropped-has-data", "§5: dropped")
            need((rank is None) == (basis is None), "rank-without-basis", "§5: both or none")
            if rank is not None:
                need(rank <= min(table["rows"], field["width"]), "rank", "§5: rank")
            if basis is not None and rank is not None:
                self.array_is(basis, "basis", "float16", [rank, field["width"]])
            if mean is not None:
                self.array_is(mean, "mean", "float32", [field["width"]])

    def array_is(self, number: int, kind: str, dtype: str, shape: list[int]) -> None:
        section = self.sections[number]
        coded = kind == "basis" and section["kind"] == "coded_basis"
        self.need(coded or section["kind"] == kind, "section-kind", f"§5: a {kind}")
        self.need(coded or section.get("dtype") == dtype, "array-dtype", f"§5: {dtype}")
        self.need(section.get("shape") == shape, "array-shape", f"§5: shape {shape}")

    def chunks(self, table: Entry) -> None:
        need, chunks = self.need, table["chunks"]
        need(sum(c["rows"] for c in chunks) == table["rows"], "row-count", "§5: rows add up")
        stored = [f["width"] if f.get("rank") is None else f["rank"] for f in kept_fields(table)]
        used = {chunk["encoding"] for chunk in chunks} & set(range(len(self.encodings)))
        for encoding in map(self.encodings.__getitem__, sorted(used)):
            values = [sum(part["values"] for part in f["parts"]) for f in encoding["fields"]]
            need(values == stored, "encoding-fields", "§5: parts add up to the stored values")
            whole = encoding["rows_per_block"] * record_bytes(encoding)
            need(whole <= 1 << 24, "block-size", "§3: rows_per_block · record length")
            if encoding["frame"] == "ans":
                self.coder(encoding)
                classes = self.sections[encoding["classes"]]["shape"]
                need(classes[-1] == sum(stored), "array-shape", "§5: a class for each value")
        for chunk in chunks:
            need(chunk["encoding"] < len(self.encodings), "reference", "§5: an encoding")
            if chunk["encoding"] < len(self.encodings):
                self.lengths(chunk, self.encodings[chunk["encoding"]])

    def lengths(self, chunk: Entry, encoding: Entry) -> None:  # §8
        need, index, blocks = self.need, chunk.get("index"), self.sections[chunk["blocks"]]
        count = ceil_div(chunk["rows"], encoding["rows_per_block"])
        need(blocks["kind"] == "blocks", "section-kind", "§5: blocks")
        if encoding["frame"] == "raw":
            size = count * raw_block_bytes(encoding)
            need(blocks["length_bytes"] == size, "chunk-length", "§8: blocks fill the section")
            need(index is None, "raw-with-index", "§5: no index")
            return
        need(index is not None, "frames-without-index", "§5: an index")
        if index is not None:
            section = self.sections[index]
            need(section["kind"] == "index", "section-kind", "§5: an index")
            fixed, each = divmod(section["length_bytes"] - 12 * ceil_div(count, 512), count)[::-1]
            fits = fixed == 0 and each in ((1, 2, 4) if encoding["frame"] == "ans" else (4,))
            need(fits, "index-length", "§8: length of an index")

    def ngrams(self, table: Entry) -> None:
        need, ngrams = self.need, table.get("ngrams")
        if ngrams is None:
            return
        orders, sizes, offsets = ngrams["orders"], ngrams["sizes"], ngrams["offsets"]
        heads = len(orders) == len(sizes) == len(offsets)
        heads = heads and len(ngrams["multipliers"]) == max(orders)
        heads = heads and all(a + b <= table["rows"] for a, b in zip(offsets, sizes))
        small = ngrams["mixing"] == "xor" or max(sizes) * max(orders) <= 1 << 32
        need(heads and small, "ngram-heads", "§5: heads that lie in the table")
        if ngrams.get("id_map") is not None:
            section = self.sections[ngrams["id_map"]]
            vocab = section["shape"][:1] if section["kind"] in ARRAYS else []
            self.array_is(ngrams["id_map"], "id_map", "uint32", vocab)

    def edits(self) -> None:
        found = [table["edits"] for table in self.tables if table.get("edits") is not None]
        if not found:
            return
        need, unedited = self.need, {t["name"]: t for t in self.tables if t.get("edits") is None}
        bases = {edits.get("base") for edits in found} | ({None} if unedited else set())
        need(len(bases) == 1, "edits", "§5: all tables are edits of one pack, or of this file")
        names = {edits["table"] for edits in found}
        need(len(names) == len(found), "edits", "§5: one table of edits for each table")
        for table in self.tables:
            if table.get("edits") is not None:
                self.edits_table(table, table["edits"], unedited.get(table["edits"]["table"]))

    def edits_table(self, table: Entry, edits: Entry, edited: Entry | None) -> None:
        need, fields = self.need, table["fields"]
        self.array_is(edits["token_ids"], "token_ids", "uint32", [table["rows"]])
        need(table["rows"] <= edits["rows"], "edits", "§5: no more rows than are edited")
        need(table.get("token_map") is table.get("ngrams") is None, "edits", "§5: no map, no hash")
        need(np.float32(table.get("multiplier") or 1) == 1, "edits", "§5: no multiplier")
        whole = all(field.get("basis") is field.get("mean") is None for field in fields)
        need(whole, "edits", "§5: rows that are stored whole")
        if edits.get("base") is None:
            need(edited is not None, "edits", "§5: a table of this file without edits")
        if edited is not None:
            need(edits["rows"] == edited["rows"], "edits", "§5: the edited table's rows")
            same = [shape_of(one) for one in fields] == [shape_of(one) for one in edited["fields"]]
            need(same, "edits", "§5: the edited table's fields")

    def token_map(self, number: int, rows: int, chunks: int) -> None:
        dtype, length = self.sections[number].get("dtype"), rows
        if dtype == "uint8" and rows <= 1 << 24 and chunks <= 256:
            length = ceil_div(rows * chunk_bits(chunks), 8)
        elif dtype != "uint16" or rows > 65536:
            dtype = "uint32"
        self.array_is(number, "token_map", dtype, [length])

    def references(self) -> None:
        uses: Counter[Any] = Counter()
        for table in self.tables:
            if table.get("token_map") is not None:
                self.token_map(table["token_map"], table["rows"], len(table["chunks"]))
            uses.update(c.get(key) for c in table["chunks"] for key in ("blocks", "index"))
            uses.update(f.get(key) for f in table["fields"] for key in ("basis", "mean"))
            uses.update([table.get("token_map"), (table.get("ngrams") or {}).get("id_map")])
            uses.update([(table.get("edits") or {}).get("token_ids")])
            uses.update(self.coder_references(table))
        for number, section in enumerate(self.sections):
            self.need(uses[number] > 0, "unused-section", "§5: referred to")
            single = section["kind"] in ("token_map", "blocks", "index")
            self.need(uses[number] <= 1 or not single, "shared-section", "§5: exactly once")
        encodings = {chunk["encoding"] for table in self.tables for chunk in table["chunks"]}
        for number in range(len(self.encodings)):
            self.need(number in encodings, "unused-encoding", "§5: referred to")

    def coder_references(self, table: Entry) -> list[Any]:
        """Numbers of the sections that the coders of a table refer to."""
        used = {chunk["encoding"] for chunk in table["chunks"]} & set(range(len(self.encodings)))
        coders = [self.encodings[n] for n in used if self.encodings[n]["frame"] == "ans"]
        bases = [self.sections[f["basis"]] for f in table["fields"] if f.get("basis") is not None]
        coders += filter(is_coded, bases)
        return [coder[key] for coder in coders for key in ("models", "classes")]

    # §9

    def features(self) -> None:
        tables, kinds = self.tables, {section["kind"] for section in self.sections}
        fields = [field for table in tables for field in table["fields"]]
        bits = {CODECS[part["codec"]][0] for e in self.encodings for part in parts_of(e)}
        bits |= {FRAMES[e["frame"]] for e in self.encodings if e["frame"] != "raw"}
        bits |= {16 for field in fields if field.get("basis") is not None}
        bits |= {17 for field in fields if field.get("mean") is not None}
        bits |= {18 for table in tables if table.get("token_map") is not None}
        bits |= {19 for table in tables if np.float32(table.get("multiplier") or 1) != 1}
        bits |= {21} if "coded_basis" in kinds else set()
        bits |= {22} if "id_map" in kinds else set()
        bits |= {11} if kinds & set(CODER_ARRAYS) else set()
        bits |= {23 for section in self.sections if is_coded(section)}
        dtypes = {s["dtype"] for s in self.sections if s["kind"] == "token_map"}
        bits |= {48} if "uint16" in dtypes else set()
        bits |= {49} if "uint8" in dtypes else set()
        bits |= {50} if "token_ids" in kinds else set()
        bits |= {50 for table in tables if table.get("edits") is not None}
        bits |= {56} if self.alignment != 4096 else set()
        bits |= {25} if len(tables) > 1 else set()
        bits |= {26 for table in tables if len({field["width"] for field in table["fields"]}) > 1}
        if self.required >> 27 & 1:  # without it, `fields` has seen to layers
            bits |= {
                27 for t in tables for n, field in enumerate(t["fields"]) if field["layer"] != n
            }
        bits |= {24} if (self.header.get("file") or {"count": 1})["count"] != 1 else set()
        exact = self.required & SUPPORTED == sum(1 << bit for bit in bits)
        self.need(exact, "feature-mismatch", "§9: exactly the bits of what the file uses")


# §4, §5: values of keys; an absent key has the value None


def is_absent(value: Any) -> bool:
    return value is None


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 128 and all(" " <= c <= "~" for c in value)


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_group_size(value: Any) -> bool:
    return integers(2, 65536)(value) and value % 2 == 0


def is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and all(map(integers(1, 2**48), value))


def is_normal(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    with np.errstate(all="ignore"):
        rounded = abs(np.float32(np.float64(value)))
    return bool(np.finfo(np.float32).tiny <= rounded < np.inf)


def integers(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def one_of(*words: str) -> Rule:
    return lambda value: isinstance(value, str) and value in words


def objects(most: int) -> Rule:
    return lists(most, is_object)


def lists(most: int, rule: Rule) -> Rule:
    return lambda value: (
        isinstance(value, list) and 1 <= len(value) <= most and all(map(rule, value))
    )


def optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


# §3, §6, §8: lengths


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def aligned(number: int, to: int) -> int:
    return ceil_div(number, to) * to


def kept_fields(table: Entry) -> list[Entry]:
    return [field for field in table["fields"] if not field.get("dropped")]


def shape_of(field: Entry) -> tuple[Any, ...]:
    """What a field and the one that it edits have in common."""
    return field["name"], field["layer"], field["width"], bool(field.get("dropped"))


def parts_of(encoding: Entry) -> list[Entry]:
    """Parts in the order of a record: the first ones of all fields, then the second ones."""
    fields = [field["parts"] for field in encoding["fields"]]
    depth = max(len(parts) for parts in fields)
    return [parts[n] for n in range(depth) for parts in fields if n < len(parts)]


def scale_bytes(part: Entry) -> int:
    size = CODECS[part["codec"]][2]
    return ceil_div(part["values"], part["group_size"]) * size if size else 0


def code_bytes(part: Entry) -> int:
    return ceil_div(part["values"] * CODECS[part["codec"]][1], 8)


def part_bytes(part: Entry) -> int:
    return scale_bytes(part) + code_bytes(part)


def record_bytes(encoding: Entry) -> int:
    return sum(map(part_bytes, parts_of(encoding)))


def raw_block_bytes(encoding: Entry) -> int:
    return aligned(record_bytes(encoding) * encoding["rows_per_block"] + 4, 64)


def longest_payload(encoding: Entry) -> int:
    values = sum(part["values"] for part in parts_of(encoding)) * encoding["rows_per_block"]
    return 4 * (encoding.get("lanes") or 1) + 2 * ceil_div(38 * values, 16)


def chunk_bits(chunks: int) -> int:
    """Bits of a chunk's number in a token map."""
    return next(bits for bits in (1, 2, 4, 8) if chunks <= 1 << bits)


def is_coded(section: Entry) -> bool:
    """Whether a section is an entropy-coded basis."""
    return section["kind"] == "coded_basis" and section.get("frame") is not None


def longest_content(encoding: Entry, rows: int) -> int:
    size = rows * record_bytes(encoding)
    return 4 + 2 * size + size // 16 if encoding["frame"] == "zstd-runs" else size


def coded_part(section: Entry) -> Entry:
    return {**section, "values": section["shape"][-1]}


def array_bytes(section: Entry) -> int:
    if section["kind"] == "coded_basis":
        return int(prod(section["shape"][:-1]) * part_bytes(coded_part(section)))
    return int(prod(section["shape"]) * DTYPES[section["dtype"]])
