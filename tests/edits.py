"""What can be wrong with a pack behind its checksums: edits of the header, arrays and blocks.

Each edit of `RANGES` and `MEANINGS` changes the decoded header of a pack of `packs.TARGET` in place
and stands beside the error code that it must end in.
"""

import json
import struct
import zlib

from packs import PREAMBLE, forge, reseal_block, split


def set_value(path, value):
    """Make an edit that sets what a path such as ``tables.0.rows`` leads to."""

    def edit(header):
        *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
        for key in keys:
            header = header[key]
        header[last] = value

    edit.__name__ = f"{path}={value!r}"[:60]
    return edit


def remove(path):
    def edit(header):
        *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
        for key in keys:
            header = header[key]
        del header[last]

    edit.__name__ = f"no {path}"
    return edit


def many(*edits):
    def edit(header):
        for one in edits:
            one(header)

    edit.__name__ = ", ".join(one.__name__ for one in edits)[:80]
    return edit


FIELD0, FIELD2 = "tables.0.fields.0", "tables.0.fields.2"
PART0 = "encodings.0.fields.0.parts.0"
RANGES = [
    (
        set_value(path, value),
        "header-json" if type(value) is int and value >= 2**63 else "header-field",
    )
    for path, values in {
        "tables": ([], {}, None, "x"),
        "sections": ([], 7),
        "encodings": ([], None),
        "file": ({"index": 1, "count": 1}, {"index": 0, "count": 0}, {"index": -1, "count": 1}),
        "alignment": (0, 32, 63, 65, 128, 4096, "64", 64.5, True, [64]),
        "tables.0.fields": ([], [[]], [None], [{}] * 4097),
        "tables.0.chunks": ([], [{}], [7]),
        "tables.0.name": (
            "",
            "\0",
            "a\nb",
            "\u202etxt",
            "\u2066x\u2069",
            "\ud800",
            "x" * 129,
            "é",
            "表",
            "a\u00a0b",
        ),
        "tables.0.token_map": (-1, 6, 2**63, "0", 0.0, True),
        "tables.0.multiplier": (0, 0.0, "2", True, [], {}),
        "tables.0.chunks.0.rows": (0, -1, 2**48 + 1),
        "tables.0.chunks.0.encoding": (-1, 65536, 2**17, None, 0.5),
        "tables.0.chunks.0.blocks": (-1, 6, 2**64 - 1),
        "tables.0.chunks.1.index": (-1, 6),
        f"{FIELD0}.width": (0, -8, 65537, 8.0),
        f"{FIELD0}.layer": (-1, 4096, 2**31),
        f"{FIELD0}.dtype": ("complex64", "", None, "float64", 16),
        f"{FIELD0}.dropped": (1, 0, "true", []),
        f"{FIELD2}.rank": (0, -1, 9, 2**62, True),
        f"{FIELD2}.basis": (-1, 6, "1"),
        f"{FIELD2}.mean": (-1, 6, [2]),
        "encodings.0.frame": ("lz4", "", "RAW", None),
        "encodings.0.rows_per_block": (0, -1, 4097, 2**31, 13.5),
        "encodings.0.fields": ([], None),
        "encodings.0.fields.0": ({}, {"parts": []}, {"parts": [{}] * 17}, []),
        f"{PART0}.codec": ("int3", "int2", "INT4", "", 4, None, "f16"),
        f"{PART0}.values": (0, -8, 65537),
        f"{PART0}.group_size": (0, 1, 3, 13, -2, 65538, 2**31, None, 4.0),
        "sections.0.kind": ("code", "", None),
        "sections.0.offset_bytes": (-1, -4096, 2**63, 2**64 - 1, 4096.0),
        "sections.0.length_bytes": (0, -1, 2**63, 2**64),
        "sections.0.crc32": (-1, 2**32, None, "0"),
        "sections.0.dtype": ("object", "float64", "O", "V8", None),
        "sections.0.shape": ([], [0], [6, 1, 1], [-6], [2**48 + 1], [0, 2**48], 6, [6.0], [True]),
        "sections.1.shape": ([0, 2**62], [2**62, 2**62]),
    }.items()
    for value in values
]
RANGES += [
    (remove(path), "header-field")
    for path in (
        "producer", "tables", "encodings", "sections", "tables.0.name",
        "tables.0.rows", f"{FIELD0}.width", f"{FIELD0}.dtype", f"{FIELD0}.name", f"{FIELD0}.layer",
        f"{PART0}.codec", f"{PART0}.values", f"{PART0}.group_size", "sections.0.offset_bytes",
        "sections.0.length_bytes", "sections.0.crc32", "sections.0.dtype", "sections.0.shape",
        "tables.0.chunks.0.blocks", "tables.0.chunks.0.encoding", "encodings.0.frame",
    )
]  # fmt: skip


def swap(path, a, b):
    def edit(header):
        for key in [int(k) if k.isdigit() else k for k in path.split(".")]:
            header = header[key]
        header[a], header[b] = header[b], header[a]

    edit.__name__ = f"{path} {a} and {b} swapped"
    return edit


def _same_chunk_twice(header):
    header["tables"][0]["chunks"][1] = dict(header["tables"][0]["chunks"][0])


def _second_table(header):
    header["tables"].append(json.loads(json.dumps(header["tables"][0])))


def _drop_all(header):
    for spec in header["tables"][0]["fields"]:
        for key in ("rank", "basis", "mean"):
            spec.pop(key, None)
        spec["dropped"] = True


def _unused_encoding(header):
    header["encodings"].append(json.loads(json.dumps(header["encodings"][0])))


def _unused_section(header):
    del header["tables"][0]["token_map"]


MEANINGS = [
    # extents
    (set_value("sections.0.offset_bytes", 0), "section-offset"),  # inside the preamble
    (set_value("sections.0.offset_bytes", 4095), "section-offset"),  # unaligned
    (set_value("sections.0.offset_bytes", 8192), "section-offset"),  # a hole
    (set_value("sections.3.offset_bytes", 4096), "section-offset"),  # an overlap
    (set_value("sections.5.offset_bytes", 2**63 - 1), "section-offset"),  # wraps if added
    (set_value("sections.0.length_bytes", 2**63 - 1), "extent-past-end"),
    (set_value("sections.5.length_bytes", 21), "extent-past-end"),
    (set_value("sections.5.length_bytes", 1), "trailing-bytes"),
    (set_value("sections.0.length_bytes", 20), "array-length"),
    (set_value("sections.0.length_bytes", 8000), "array-length"),
    (swap("sections", 3, 4), "section-offset"),
    (remove("sections.5"), "header-field"),
    # arrays
    (set_value("sections.0.shape", [5]), "array-length"),
    (set_value("sections.0.shape", [2**33, 2**31]), "array-length"),  # the product is 2^64
    (set_value("sections.0.shape", [2**48, 2**48]), "array-length"),
    (set_value("sections.0.shape", [3, 2]), "array-shape"),
    (set_value("sections.0.dtype", "float32"), "array-dtype"),
    (set_value("sections.0.dtype", "float16"), "array-length"),
    (set_value("sections.1.shape", [8, 3]), "array-shape"),
    (set_value("sections.2.shape", [4, 2]), "array-shape"),
    (set_value("sections.0.kind", "mean"), "section-kind"),
    (set_value("sections.1.kind", "mean"), "section-kind"),
    # fields
    (set_value(f"{FIELD2}.rank", 2), "array-shape"),
    (set_value(f"{FIELD2}.rank", 7), "rank"),  # above the number of rows
    (remove(f"{FIELD2}.rank"), "rank-without-basis"),
    (remove(f"{FIELD2}.basis"), "rank-without-basis"),
    (set_value("tables.0.fields.1.rank", 3), "dropped-has-data"),
    (set_value("tables.0.fields.1.mean", 2), "dropped-has-data"),
    (set_value("tables.0.fields.1.basis", 1), "dropped-has-data"),
    (set_value(f"{FIELD2}.dropped", True), "dropped-has-data"),
    (set_value("tables.0.fields.1.dropped", False), "encoding-fields"),  # kept, but has no data
    (set_value(f"{FIELD0}.dropped", True), "encoding-fields"),
    (set_value(f"{FIELD0}.width", 9), "encoding-fields"),
    (set_value(f"{FIELD2}.width", 9), "array-shape"),
    (_drop_all, "no-data"),
    (set_value(f"{FIELD2}.basis", 0), "section-kind"),
    (set_value(f"{FIELD2}.mean", 1), "section-kind"),
    (set_value("tables.0.token_map", 2), "section-kind"),
    # chunks and encodings
    (set_value("tables.0.rows", 5), "row-count"),
    (set_value("tables.0.rows", 2**48), "row-count"),
    (many(set_value("tables.0.rows", 2**40 + 3), set_value("tables.0.chunks.0.rows", 2**40)),
     "chunk-length"),
    (many(set_value("tables.0.rows", 6 + 2**40), set_value("tables.0.chunks.1.rows", 3 + 2**40)),
     "index-length"),
    (many(set_value("tables.0.chunks.0.rows", 2), set_value("tables.0.chunks.1.rows", 4)),
     "chunk-length"),
    (many(set_value("tables.0.chunks.0.rows", 1), set_value("tables.0.chunks.1.rows", 5)),
     "chunk-length"),
    (set_value("tables.0.chunks.0.encoding", 2), "reference"),
    (set_value("tables.0.chunks.0.encoding", 65535), "reference"),
    (set_value("tables.0.chunks.0.encoding", 1), "frames-without-index"),
    (set_value("tables.0.chunks.1.encoding", 0), "chunk-length"),
    (set_value("tables.0.chunks.0.index", 5), "raw-with-index"),
    (remove("tables.0.chunks.1.index"), "frames-without-index"),
    (set_value("tables.0.chunks.1.index", 4), "section-kind"),
    (set_value("tables.0.chunks.0.blocks", 0), "section-kind"),
    (set_value("tables.0.chunks.0.blocks", 5), "section-kind"),
    (set_value("encodings.0.rows_per_block", 1), "chunk-length"),
    (set_value("encodings.1.rows_per_block", 1), "index-length"),
    (set_value("encodings.0.frame", "zstd"), "frames-without-index"),
    (set_value("encodings.1.frame", "raw"), "chunk-length"),
    (set_value(f"{PART0}.values", 9), "encoding-fields"),
    (set_value(f"{PART0}.codec", "f8e4m3"), "feature-mismatch"),
    (set_value(f"{PART0}.values", 7), "encoding-fields"),
    (swap("encodings.0.fields", 0, 1), "encoding-fields"),
    (remove("encodings.0.fields.1"), "encoding-fields"),
    (_same_chunk_twice, "shared-section"),
    (_second_table, "table-name"),
    (_unused_section, "unused-section"),
    (_unused_encoding, "unused-encoding"),
    (set_value("tables.0.fields.1.name", "layer 0"), "field-name"),
    (many(remove(f"{FIELD2}.mean")), "unused-section"),
    # features
    (set_value("tables.0.multiplier", 2.0), "feature-mismatch"),
    (set_value("file", {"index": 0, "count": 2}), "feature-mismatch"),
    (set_value("alignment", 64), "section-offset"),
]  # fmt: skip


# ---- whole files ---------------------------------------------------------------------------------


def rebuilt(data, change, *, room=None, **preamble):
    """Change a pack's header and the contents of its sections, and lay the file out again.

    `change` gets the header and a list of bytes, one for each section. Places, lengths and
    checksums of sections then follow from the contents; those of blocks do not. `room`: the
    header's length.
    """
    fields, header, _ = split(data)
    contents = [data[s["offset_bytes"] :][: s["length_bytes"]] for s in header["sections"]]
    change(header, contents)
    room, alignment = room or fields["header_length"], header.get("alignment", 4096)
    while len(text := _laid_out(header, contents, room)) > room:
        room = -(-(64 + len(text)) // alignment) * alignment - 64
    whole = PREAMBLE.pack(*(fields | {"header_length": room}).values()) + text.ljust(room)
    for section, content in zip(header["sections"], contents):
        whole = whole.ljust(section["offset_bytes"], b"\0") + content
    return forge(whole, **preamble)


def _laid_out(header, contents, room):
    end, alignment = 64 + room, header.get("alignment", 4096)
    for section, content in zip(header["sections"], contents):
        start = -(-end // alignment) * alignment
        section |= {"offset_bytes": start, "length_bytes": len(content)}
        if "crc32" in section:
            section["crc32"] = zlib.crc32(content)
        end = start + len(content)
    return json.dumps(header, separators=(",", ":")).encode()


def drop_section(header, contents, number):
    """Take a section out of header and contents; references to later ones follow."""
    del header["sections"][number], contents[number]
    table = header["tables"][0]
    for entry in (table, *table["fields"], *table["chunks"]):
        for key in entry.keys() & {"token_map", "basis", "mean", "blocks", "index"}:
            entry[key] -= entry[key] > number


# ---- behind the header --------------------------------------------------------------------------


def change_array(data, number, change):
    """Change an array section's bytes and its checksum in the header."""
    section = split(data)[1]["sections"][number]
    offset, length = section["offset_bytes"], section["length_bytes"]
    content = change(data[offset : offset + length])
    data = data[:offset] + content + data[offset + length :]
    return forge(data, set_value(f"sections.{number}.crc32", zlib.crc32(content)))


def change_raw_block(target, number, change):
    """Change a raw block of chunk 0 and reseal it."""
    section = next(one for one in target.header.sections if one.kind == "blocks")
    offset = section.offset_bytes + 64 * number
    payload = target.data[offset : offset + 60]
    return reseal_block(target.data, offset, 64, 2 * number, change(payload))


def change_index(data, start, lengths):
    """Replace the index of a `FRAMED` pack by one of other numbers, with a right checksum."""
    body = struct.pack(f"<Q{len(lengths)}I", start, *lengths)
    section = split(data)[1]["sections"][1]
    offset, length = section["offset_bytes"], section["length_bytes"]
    return reseal_block(data, offset, length, 2**63, body)


def frame_lengths(sample):
    section = sample.header.sections[1]
    return list(struct.unpack("<3I", sample.data[section.offset_bytes + 8 :][:12]))
