"""Write ``formats/v1/malformed/``: packs for each error code of SPEC.md, section 10.

    python tests/make_malformed.py

Each file is a valid pack with one thing wrong and every checksum that covers it made again, so that
a reader meets the check itself, and no other rule is broken but where `INSEPARABLE` says so.
``codes.json`` says when a reader must refuse it: at ``open``, at the first lookup (``rows``), or
only in a check of the whole file (``verify``). A name is the code, and where a code has several
files what is special about this one, behind a ``+``.
"""

import json
import struct
import tempfile
import zlib
from functools import partial
from pathlib import Path

import malformed_coding
import malformed_edits
import numpy as np
from edits import (
    FIELD0,
    FIELD2,
    change_array,
    change_index,
    change_raw_block,
    drop_section,
    frame_lengths,
    rebuilt,
    remove,
    set_value,
)
from packs import (
    GOLDEN_ONLY,
    RECIPES,
    TARGET,
    Layer,
    Recipe,
    Run,
    Sample,
    forge,
    from_scratch,
    hand_framed,
    int8,
    plain_compress,
    plain_header,
    split,
    write,
)

from tolpack.codecs.encodings import Part
from tolpack.ngrams import NGramHash

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "malformed"
_ONE_LAYER = (Layer((int8(8, 8),)),)
_E8M0 = Recipe(8, (Layer((Part("f8e4m3-e8m0", 8, 4),)),), (Run(3, "raw", 2),))
_Q8_0 = Recipe(8, (Layer((Part("q8_0", 8, 4),)),), (Run(3, "raw", 2),))
_PLANES = Recipe(8, (Layer((Part("bf16", 8),)),), (Run(5, "zstd-planes", 2),))
FRAMED = Recipe(8, _ONE_LAYER, (Run(5, "zstd", 2),))
TWO_CHUNKS = Recipe(8, _ONE_LAYER, (Run(3, "raw", 2), Run(3, "raw", 2)))
# Two tables of one kind: each with rows of its own, and compressed ids in the first.
_HASH = NGramHash(
    "sum", orders=(1, 2), sizes=(2, 3), offsets=(0, 2), multipliers=(1, 7), pad=0, boundary=1,
    compressed_ids=np.array([0, 1, 2, 2], np.uint32),
)  # fmt: skip
TWO_TABLES = Recipe(
    8,
    _ONE_LAYER,
    (Run(5, "raw", 2),),
    ngrams=_HASH,
    name="first",
    more=(Recipe(8, _ONE_LAYER, (Run(5, "raw", 2),), name="second"),),
)
RANK4 = Recipe(8, (Layer((int8(4, 2),), rank=4),), (Run(3), Run(1)))
# Codes that no file shows: `changed` is about a file that changes while it is open.
NOT_FILES = {"changed"}
# What else is wrong, where one thing cannot be wrong alone: bytes that are not there have no right
# checksum, a block lies at one place only, an encoding has one field at least, and a payload of the
# frame ``ans`` that is too long for its rows has words that they do not need.
INSEPARABLE = {
    "truncated": "index-checksum",
    "extent-past-end": "frame-extent",
    "shared-section": "block-checksum",
    "no-data": "encoding-fields",
    "frame-extent+ans": "frame",
    "frame-extent+short-index": "frame",
}


def cases(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return (when it shows, bytes) by name."""
    samples = {
        "target": write(folder / "target", TARGET),
        "framed": write(folder / "framed", FRAMED),
        "two": write(folder / "two", TWO_CHUNKS),
        "tables": write(folder / "tables", TWO_TABLES),
    }
    target, framed, two, tables = (sample.data for sample in samples.values())
    smallest = write(folder / "smallest", RECIPES["smallest"]).data
    opening = preambles(target) | headers(target, smallest) | arrays(target) | fields(target)
    opening |= chunks(two, framed) | large() | shapes(tables)
    opening |= malformed_coding.opening(folder, framed) | malformed_edits.opening(folder)
    opening |= alignments(write(folder / "alignment", RECIPES["alignment"]).data)
    by_chunk = write(folder / "token-chunks", RECIPES["token-chunks"]).data
    opening |= token_chunks(by_chunk)
    opening["no-data"] = forge(smallest, set_value(f"{FIELD0}.dropped", True))
    opening["rank"] = rebuilt(write(folder / "rank", RANK4).data, _one_row_less)
    found = {name: ("open", content) for name, content in opening.items()}
    contents = damaged(samples["target"], samples["framed"])
    contents["block-checksum+table"] = _block_of_another_table(samples["tables"])
    contents["token-map+chunks"] = change_array(by_chunk, 0, _in_another_chunk)
    contents["token-map+bits"] = change_array(
        by_chunk, 0, lambda old: old[:-1] + bytes([old[-1] | 1 << 7])
    )
    contents |= written_wrongly(folder) | malformed_coding.contents(folder)
    contents |= malformed_edits.contents(folder)
    found |= {name: ("rows", content) for name, content in contents.items()}
    found |= {name: ("verify", content) for name, content in hidden(samples).items()}
    return found


def preambles(data: bytes) -> dict[str, bytes]:
    """Files that are refused for their first 64 bytes, or for their length."""
    features = split(data)[0]["required_features"]
    return {
        "bad-magic": forge(data, magic=b"TOLPACK\x89"),
        "unsupported-version": forge(data, major=2),
        "unsupported-feature": forge(data, required_features=features | 1 << 63),
        "preamble-checksum": forge(data, crc32=0),
        "reserved-not-zero": forge(data, reserved=1),
        "header-checksum": forge(data, header_crc32=0),
        "truncated": data[:-1],
        "trailing-bytes": data + b"\0",
        "feature-mismatch": forge(data, required_features=0),
        "feature-mismatch+unused": forge(data, required_features=features | 1 << 2),
    }


def headers(data: bytes, smallest: bytes) -> dict[str, bytes]:
    """Headers that are too long, no JSON of the allowed kind, or of a wrong type or range."""
    text = data[64 : 64 + split(data)[0]["header_length"]].rstrip()
    producer = b'"producer":"tests",'
    return {
        "header-length": rebuilt(smallest, lambda *_: None, room=2**20 + 1),
        "header-json": forge(data, text=text.replace(producer, producer * 2)),
        "header-field": forge(data, set_value(f"{FIELD0}.dtype", "float64")),
        "header-field+file": forge(data, set_value("file", {"index": 1, "count": 1})),
    }


def arrays(data: bytes) -> dict[str, bytes]:
    """Sections that are at another place, or other arrays than they should be."""
    last = split(data)[1]["sections"][5]["offset_bytes"]
    moved = data[:last] + bytes(4096) + data[last:]

    def longer(header: dict, contents: list) -> None:
        contents[2] += bytes(4)

    def wider(header: dict, contents: list) -> None:
        header["sections"][1]["dtype"] = "float32"
        contents[1] = np.frombuffer(contents[1], "<f2").astype("<f4").tobytes()

    without_map = split(data)[0]["required_features"] & ~(1 << 18)
    return {
        "section-offset": forge(moved, set_value("sections.5.offset_bytes", last + 4096)),
        "section-kind": forge(data, set_value("sections.0.kind", "mean")),
        "array-length": rebuilt(data, longer),
        "array-dtype": rebuilt(data, wider),
        "array-shape": forge(data, set_value("sections.0.shape", [3, 2])),
        "unused-section": forge(data, remove("tables.0.token_map"), required_features=without_map),
    }


def alignments(data: bytes) -> dict[str, bytes]:
    """Sections that are not where the header's alignment says."""
    features = split(data)[0]["required_features"]
    number = len(split(data)[1]["sections"]) - 1
    last = split(data)[1]["sections"][number]["offset_bytes"]
    moved = data[:last] + bytes(64) + data[last:]
    edit = set_value(f"sections.{number}.offset_bytes", last + 64)
    return {
        "section-offset+alignment": forge(moved, edit),
        "header-field+alignment": rebuilt(data, lambda header, _: header.update(alignment=32)),
        "feature-mismatch+alignment": forge(data, required_features=features & ~(1 << 56)),
    }


def token_chunks(data: bytes) -> dict[str, bytes]:
    """Token maps of chunks that are too long, or that no bit tells of."""
    features = split(data)[0]["required_features"]

    def longer(header: dict, contents: list) -> None:
        header["sections"][0]["shape"] = [9]
        contents[0] += b"\0"

    return {
        "array-shape+token-chunks": rebuilt(data, longer),
        "feature-mismatch+token-chunks": forge(data, required_features=features & ~(1 << 49)),
    }


def _in_another_chunk(old: bytes) -> bytes:
    """Give the first token to the next chunk."""
    return bytes([old[0] & 0xF0 | (old[0] + 1) % 5]) + old[1:]


def fields(data: bytes) -> dict[str, bytes]:
    """Fields that contradict themselves or an encoding, and an encoding too many."""

    def no_basis(header: dict, contents: list) -> None:
        del header["tables"][0]["fields"][2]["basis"]
        drop_section(header, contents, 1)

    without_basis = split(data)[0]["required_features"] & ~(1 << 16)
    encoding = split(data)[1]["encodings"][0]
    return {
        "field-layer": forge(data, set_value(f"{FIELD0}.layer", 1)),
        "field-name": forge(data, set_value(f"{FIELD2}.name", "layer 0")),
        "dropped-has-data": forge(data, set_value("tables.0.fields.1.mean", 2)),
        "rank-without-basis": rebuilt(data, no_basis, required_features=without_basis),
        "encoding-fields": forge(data, set_value("tables.0.fields.1.dropped", False)),
        "unused-encoding": forge(data, lambda header: header["encodings"].append(encoding)),
    }


def shapes(data: bytes) -> dict[str, bytes]:
    """Packs of two tables, and of n-grams, that contradict themselves; `data`: of `TWO_TABLES`."""
    features = split(data)[0]["required_features"]
    ngrams = "tables.0.ngrams"

    def other_encoding(header: dict) -> None:
        header["encodings"].append(json.loads(json.dumps(header["encodings"][0])))
        header["encodings"][1]["fields"] *= 2
        header["tables"][1]["chunks"][0]["encoding"] = 1

    return {
        "table-name": forge(data, set_value("tables.1.name", "first")),
        "row-count+table": forge(data, set_value("tables.1.rows", 4)),
        "encoding-fields+table": forge(data, other_encoding),
        "ngram-heads": forge(data, set_value(f"{ngrams}.offsets", [0, 3])),
        "ngram-heads+lengths": forge(data, set_value(f"{ngrams}.sizes", [2])),
        "ngram-heads+multipliers": forge(data, set_value(f"{ngrams}.multipliers", [1, 7, 1])),
        "header-field+ngrams": forge(data, set_value(f"{ngrams}.orders", [0, 2])),
        "section-kind+id-map": forge(
            data, set_value("sections.0.kind", "mean"), required_features=features & ~(1 << 22)
        ),
        "array-shape+id-map": forge(data, set_value("sections.0.shape", [2, 2])),
        "feature-mismatch+tables": forge(data, required_features=features & ~(1 << 25)),
        "feature-mismatch+layers": forge(data, required_features=features | 1 << 27),
    }


def _block_of_another_table(sample: Sample) -> bytes:
    """Put the first block of the second table in the place of that of the first."""
    first, second = (sample.header.sections[n].offset_bytes for n in (1, 2))
    data = sample.data
    return data[:first] + data[second : second + 64] + data[first + 64 :]


def _one_row_less(header: dict, contents: list) -> None:
    header["tables"][0]["rows"] -= 1
    del header["tables"][0]["chunks"][1]
    drop_section(header, contents, 2)


def chunks(two: bytes, framed: bytes) -> dict[str, bytes]:
    """Chunks that do not fit their sections, their encoding or the table."""

    def longer(number: int, size: int, header: dict, contents: list) -> None:
        contents[number] += bytes(size)

    def shared(header: dict, contents: list) -> None:
        header["tables"][0]["chunks"][1]["blocks"] = 0
        drop_section(header, contents, 1)

    def indexed(header: dict, contents: list) -> None:
        header["tables"][0]["chunks"][0]["index"] = 2
        header["sections"].append({"kind": "index"})
        contents.append(bytes(16))

    def not_indexed(header: dict, contents: list) -> None:
        del header["tables"][0]["chunks"][0]["index"]
        drop_section(header, contents, 1)

    def index_first(header: dict, contents: list) -> None:
        header["tables"][0]["chunks"][0] |= {"blocks": 1, "index": 0}
        header["sections"].reverse()
        contents.reverse()

    swapped = rebuilt(framed, index_first)
    length = split(swapped)[1]["sections"][1]["length_bytes"]
    return {
        "extent-past-end": forge(swapped, set_value("sections.1.length_bytes", length + 1)),
        "reference": forge(two, set_value("tables.0.chunks.1.encoding", 1)),
        "row-count": forge(two, set_value("tables.0.rows", 7)),
        "chunk-length": rebuilt(two, partial(longer, 0, 64)),
        "shared-section": rebuilt(two, shared),
        "raw-with-index": rebuilt(two, indexed),
        "index-length": rebuilt(framed, partial(longer, 1, 4)),
        "frames-without-index": rebuilt(framed, not_indexed),
    }


def large() -> dict[str, bytes]:
    """Blocks and rows beyond the limits: all else is right, and small."""
    block = plain_header(1, 1025, 4096, 0)  # 4,096 · 4,100 bytes, in a frame of one row
    row = plain_header(1, 65536, 1, 0)  # 257 fields of 65,536 values, all but one dropped
    part = {"codec": "int4", "values": 65536, "group_size": 65536}
    row["encodings"][0]["fields"] = [{"parts": [part]}]
    row["tables"][0]["fields"] = [
        {"name": str(n), "layer": n, "width": 65536, "dtype": "float32", "dropped": n > 0}
        for n in range(257)
    ]
    return {"block-size": _framed(block, 4100, 0), "row-size": _framed(row, 2 + 32768, 5)}


def _framed(header: dict, record: int, codec: int) -> bytes:
    """Fill in a frame of one record of zeros and its index; `codec`: the codec's bit."""

    def fill(empty: dict, contents: list[bytes]) -> None:
        empty["sections"] += [{"kind": "blocks"}, {"kind": "index"}]
        frame = sealed(0, plain_compress(bytes(record)))
        contents += [frame, sealed(2**63, struct.pack("<QI", 0, len(frame)))]

    header["encodings"][0]["frame"] = "zstd"
    header["tables"][0]["chunks"][0]["index"] = 1
    header["sections"].clear()
    return rebuilt(from_scratch(header, 0, 1 << codec | 1 << 8), fill)


def sealed(place: int, payload: bytes) -> bytes:
    """Return a payload with the checksum that it has in a pack of id 0."""
    return payload + struct.pack("<I", zlib.crc32(struct.pack("<QQ", 0, place) + payload))


def damaged(target, framed) -> dict[str, bytes]:
    """One bit is another, where no value depends on it; or one value is, with right checksums."""
    sections = target.header.sections
    return {
        "array-checksum": _flipped(target.data, sections[2].offset_bytes),
        "block-checksum": _flipped(target.data, sections[3].offset_bytes),
        "index-checksum": _flipped(framed.data, len(framed.data) - 1),
        "token-map": change_array(target.data, 0, lambda _: struct.pack("<6I", 0, 1, 2, 3, 4, 4)),
        "array-not-finite": change_array(target.data, 1, lambda old: old[:-2] + b"\x00\x7c"),
        "scale-not-finite": change_raw_block(target, 0, lambda old: b"\x80\x7f" + old[2:]),
    }


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def written_wrongly(folder: Path) -> dict[str, bytes]:
    """Frames and a basis that are right but for one rule of this format."""
    longer = write(folder / "longer", FRAMED, compress=partial(hand_framed, extra=60)).data
    window = write(folder / "window", FRAMED, compress=partial(hand_framed, window=11 << 3)).data
    coded = write(folder / "coded", GOLDEN_ONLY["coded-int8"]).data
    infinite = change_array(coded, 0, lambda old: b"\x80\x7f" + old[2:])
    more = write(folder / "more", _PLANES, compress=lambda data: plain_compress(data + b"a"))
    e8m0, q8_0 = write(folder / "e8m0", _E8M0), write(folder / "q8_0", _Q8_0)
    return {
        "frame-extent": longer,
        "frame": window,
        "frame+planes": more.data,
        "scale-not-finite+basis": infinite,
        "scale-not-finite+e8m0": change_raw_block(e8m0, 0, lambda old: b"\xff" + old[1:]),
        "scale-not-finite+q8_0": change_raw_block(q8_0, 0, lambda old: b"\x00\xfc" + old[2:]),
    }


def hidden(samples: dict) -> dict[str, bytes]:
    """Bytes that belong to nothing, where no lookup comes by."""

    def hole(header: dict, contents: list) -> None:
        contents[0] = bytes(4) + contents[0]

    target, framed = samples["target"], samples["framed"]
    gap = target.header.sections[1].offset_bytes - 1
    return {
        "padding": change_raw_block(target, 1, lambda old: old[:-1] + b"\1"),
        "padding+gap": _flipped(target.data, gap),
        "id-map": change_array(
            samples["tables"].data, 0, lambda old: old[:-4] + struct.pack("<I", 2**31)
        ),
        "frame-extent+hole": change_index(rebuilt(framed.data, hole), 4, frame_lengths(framed)),
    }


def main() -> None:
    """Write all of them, with their codes."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = cases(Path(folder))
    for name, (_, content) in sorted(found.items()):
        (FOLDER / f"{name}.tolpack").write_bytes(content)
    table = {name: when for name, (when, _) in sorted(found.items())}
    (FOLDER / "codes.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} packs")


if __name__ == "__main__":
    main()
