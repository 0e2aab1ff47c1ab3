"""Write ``formats/v1/golden/parts/`` and ``formats/v1/malformed/parts/``: sets of part files.

    python tests/make_parts.py [NAME …]

A golden set is a golden pack in several files, cut by `CUTS`; one that is there already is left
alone unless it is named. A malformed set is a valid one with one thing wrong and every checksum and
digest that covers it made again, but where `INSEPARABLE` says so. ``codes.json`` says when a reader
must refuse it.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edits import many, set_value
from make_malformed import FRAMED, TWO_CHUNKS
from packs import forge, split, write
from part_sets import MANIFEST, PartFile, cut, lay_out, save, with_length, written

FORMAT = Path(__file__).parents[1] / "formats" / "v1"
GOLDEN, MALFORMED = FORMAT / "golden" / "parts", FORMAT / "malformed" / "parts"
CODES = MALFORMED / "codes.json"

# For each part file the pieces: (section, rows of blocks or bytes of others; None for all).
CUTS = {
    "smallest": [[(0, None)]],
    "int8": [[(1, 6)], [(1, 3)], [(1, None), (0, None)]],
    "everything": [
        [(4, 2), (4, None)],
        [(5, 2)],
        [(5, None), (7, 3)],
        [(7, None), (0, None), (1, None), (2, None), (3, None), (6, None)],
    ],
    "two-tables": [
        [(1, None), (2, 300)],
        [(2, None), (4, 2)],
        [(4, None), (5, None), (7, 1)],
        [(7, None), (0, None), (3, None), (6, None)],
    ],
    "ans-trellis": [
        [(6, 4)],
        [(6, None), (8, 3)],
        [(8, None), *[(number, None) for number in (0, 1, 2, 3, 4, 5, 7, 9)]],
    ],
    "basis": [[(6, None), (0, 17), (5, 4)], [(1, 100), (0, None), (4, 2)],
              [(5, None), (1, None), (4, None), (3, None), (2, None)]],
}  # fmt: skip
# What else is wrong in a malformed set, where one thing cannot be wrong alone; ``None``: what
# follows from it is anything.
INSEPARABLE = {
    "manifest+empty-part": "piece",
    "manifest+header": "padding",
    "manifest+path": "part-missing",
    "manifest+surrogate": None,
    "manifest+upper-case": "part-missing",
    "part-missing": "truncated",
    "piece+absent": "block-checksum",
    "piece+no-lengths": "part-mismatch",
    "piece+overlap": "block-checksum",
    "piece+section": None,
    "piece+two-chunks": "block-checksum",
    "trailing-bytes": "part-digest",
    "truncated": "part-digest",
    "unsupported-feature+part": "feature-mismatch",
}
Set = dict[str, bytes]


def golden(name: str) -> Set:
    """Return the files of a golden set; that of ``basis`` uses what the format leaves free."""
    data = (FORMAT / "golden" / f"{name}.tolpack").read_bytes()
    files = cut(data, CUTS[name])
    if name != "basis":
        return written(data, files)
    for one in files:
        one.room = 4100
        one.keys |= {"x-plan": "0123456789abcdef", "unknown": {"pieces": [-0.5e-3]}}
        for piece in one.pieces:
            piece.said |= {"x-note": "é", "unknown": None}
    lay_out(files)
    for piece in files[0].pieces[:2]:
        piece.said |= dict.fromkeys(("table", "first_row", "rows", "lengths_offset_bytes"))
    free = many(set_value("x-note", "é\ud800"), set_value("unknown", [{"files": "1e400"}]))
    found = written(data, files, free, indent=1)
    return found | {MANIFEST: found[MANIFEST].replace(b'"1e400"', b"1e400")}


def cases(folder: Path) -> dict[str, tuple[str, Set]]:
    """Return (when it shows, files) by name."""
    two = write(folder / "two", TWO_CHUNKS).data
    framed = write(folder / "framed", FRAMED).data
    other = write(folder / "other", TWO_CHUNKS, key=bytes(32)).data
    found = {name: ("open", files) for name, files in (manifests(two) | pieces(two)).items()}
    found |= {name: ("open", files) for name, files in pieces_of_frames(framed).items()}
    found |= {name: ("rows", files) for name, files in replaced(two, other).items()}
    hidden = part_files(two) | lengths(framed)
    return found | {name: ("verify", files) for name, files in hidden.items()}


_TWO = [[(0, 2)], [(0, None), (1, None)]]
_FRAMED = [[(0, 2)], [(0, None), (1, None)]]


def edited(
    data: bytes, change: Callable[[list[PartFile]], object], cuts: list = _TWO, moved: bool = False
) -> Set:
    """Write part files that were changed, and laid out again after the change if `moved`."""
    files = cut(data, cuts)
    change(files)
    return written(data, lay_out(files) if moved else files)


def manifests(data: bytes) -> dict[str, Set]:
    """Manifests that are none, whose header is another, or that name no part files."""

    def changed(change: Callable[[dict], None]) -> Set:
        return written(data, cut(data, _TWO), change)

    def digest(change: Callable[[str], str]) -> Callable[[dict], None]:
        def edit(manifest: dict) -> None:
            manifest["files"][0]["sha256"] = change(manifest["files"][0]["sha256"])

        return edit

    def header(change: Callable[[str], str]) -> Callable[[dict], None]:
        return lambda manifest: manifest.update(header=change(manifest["header"]))

    whole = written(data, cut(data, _TWO))
    word = b'"tolpack": "parts", '
    features = split(data)[0]["required_features"] | 1 << 24
    return {
        "manifest": whole | {MANIFEST: whole[MANIFEST].replace(word, word * 2)},
        "manifest+word": changed(set_value("tolpack", "files")),
        "manifest+path": changed(digest(lambda old: "../" + old[3:])),
        "manifest+upper-case": changed(digest(str.upper)),
        "manifest+header": changed(header(lambda old: old + " ")),
        "manifest+surrogate": changed(header(lambda old: old[:-1] + "\ud800")),
        "manifest+empty-part": written(data, cut(data, [*_TWO, []])),
        "header-checksum": changed(header(lambda old: old.replace('"tests"', '"testt"'))),
        "unsupported-feature": written(forge(data, required_features=features), cut(data, _TWO)),
    }


def pieces(data: bytes) -> dict[str, Set]:
    """Pieces that are not where they should be, or not the rows of their sections."""

    def said(file: int, piece: int, **values: object) -> Callable[[list[PartFile]], object]:
        return lambda files: files[file].pieces[piece].said.update(values)

    def shifted(files: list[PartFile], by: int) -> None:
        piece = files[1].pieces[1]
        piece.start = piece.said["offset_bytes"] = piece.start + by

    def no_rows(files: list[PartFile]) -> None:
        del files[1].pieces[1].said["first_row"]

    def half_a_block(files: list[PartFile]) -> None:
        files[0].pieces[0].said["rows"] = 1
        files[1].pieces[0].said |= {"first_row": 1, "rows": 2}

    def over_two_chunks(files: list[PartFile]) -> None:
        first, second = files[1].pieces
        first.content += second.content
        first.said["rows"] = 4
        files[1].pieces = [first]

    def longer(files: list[PartFile]) -> None:
        files[1].edit = lambda data: with_length(data + bytes(64))

    return {
        "piece+absent": edited(data, lambda files: files[1].pieces.pop(0), moved=True),
        "piece+overlap": edited(data, said(1, 1, offset_bytes=4096)),
        "piece+first-row": edited(data, said(1, 1, first_row=1)),
        "piece+table": edited(data, said(1, 1, table=1)),
        "piece+section": edited(data, said(1, 1, section=2)),
        "piece+no-rows": edited(data, no_rows),
        "piece+half-a-block": edited(data, half_a_block),
        "piece+two-chunks": edited(data, over_two_chunks, moved=True),
        "piece+hole": edited(data, lambda files: shifted(files, 4096)),
        "piece+unaligned": edited(data, lambda files: shifted(files, 64 - 4096)),
        "piece+end": edited(data, longer),
    }


def pieces_of_frames(data: bytes) -> dict[str, Set]:
    """Pieces of frames and of an index that say too little or too much."""

    def no_lengths(files: list[PartFile]) -> None:
        files[0].pieces[0].lengths = None

    def late_lengths(files: list[PartFile]) -> None:
        piece = files[0].pieces[0]
        piece.lengths_start = piece.said["lengths_offset_bytes"] = piece.lengths_start + 4096

    def rows_of_an_index(files: list[PartFile]) -> None:
        files[1].pieces[1].said |= {"table": 0, "first_row": 0, "rows": 5}

    return {
        "piece+no-lengths": edited(data, no_lengths, _FRAMED, moved=True),
        "piece+late-lengths": edited(data, late_lengths, _FRAMED),
        "piece+rows-of-an-index": edited(data, rows_of_an_index, _FRAMED),
    }


def replaced(data: bytes, other: bytes) -> dict[str, Set]:
    """Part files that are not there, of another length, or with blocks of another pack."""
    whole = written(data, cut(data, _TWO))
    name = sorted(whole)[0]

    def blocks_of_another(files: list[PartFile]) -> None:
        for one, foreign in zip(files, cut(other, _TWO)):
            for piece, source in zip(one.pieces, foreign.pieces):
                piece.content = source.content

    return {
        "part-missing": {key: value for key, value in whole.items() if key != name},
        "truncated": whole | {name: whole[name][:-1]},
        "trailing-bytes": whole | {name: whole[name] + b"\0"},
        "block-checksum": edited(data, blocks_of_another),
    }


def part_files(data: bytes) -> dict[str, Set]:
    """Part files whose preamble, header or zeros are wrong, which no lookup comes by."""

    def first(**values: object) -> Set:
        """Change attributes of the first part file."""
        return edited(data, lambda files: [setattr(files[0], *item) for item in values.items()])

    def keys(**values: object) -> Set:
        """Change keys of its header."""
        return edited(data, lambda files: files[0].keys.update(values))

    def exchanged(files: list[PartFile]) -> None:
        files[0].keys["file"], files[1].keys["file"] = files[1].keys["file"], files[0].keys["file"]

    def late(files: list[PartFile]) -> None:
        piece = files[0].pieces[0]
        piece.start = piece.said["offset_bytes"] = 8192

    whole, other = written(data, cut(data, _TWO)), keys(producer="testt")
    pieces = [piece.said | {"first_row": 2} for piece in cut(data, _TWO)[0].pieces]
    return {
        "part-digest": {MANIFEST: whole[MANIFEST]} | dict(zip(parts(whole), parts(other).values())),
        "part-mismatch+pack-id": first(pack_id=1),
        "part-mismatch+index": edited(data, exchanged),
        "part-mismatch+count": keys(file={"index": 0, "count": 3}),
        "part-mismatch+pieces": keys(pieces=pieces),
        "feature-mismatch": first(mask=0),
        "unsupported-feature+part": first(mask=1 << 24 | 1 << 5),
        "header-field": keys(producer=None),
        "header-checksum+part": first(edit=lambda old: old.replace(b'"tests"', b'"testt"')),
        "padding": first(edit=lambda old: old[:4095] + b"\1" + old[4096:]),
        "piece+late-start": edited(data, late),
    }


def lengths(data: bytes) -> dict[str, Set]:
    """Lengths of blocks that are not those of the index, and a byte in front of them."""

    def exchanged(files: list[PartFile]) -> None:
        files[1].pieces[0].lengths.reverse()

    def before(files: list[PartFile]) -> None:
        files[0].edit = lambda old: old[:8191] + b"\1" + old[8192:]

    return {
        "part-mismatch+lengths": edited(data, exchanged, _FRAMED),
        "padding+lengths": edited(data, before, _FRAMED),
    }


def parts(files: Set) -> Set:
    """Return the part files of a set, without its manifest."""
    return {name: content for name, content in files.items() if name != MANIFEST}


def main(again: list[str]) -> None:
    """Write what is missing of the golden sets, those named in `again`, and all malformed ones with
    their codes.
    """
    for name in CUTS:
        if name in again:
            shutil.rmtree(GOLDEN / name, ignore_errors=True)
        if not (GOLDEN / name).exists():
            save(GOLDEN / name, golden(name))
    with tempfile.TemporaryDirectory() as folder:
        found = cases(Path(folder))
    shutil.rmtree(MALFORMED, ignore_errors=True)
    for name, (_, files) in found.items():
        save(MALFORMED / name, files)
    table = {name: when for name, (when, _) in sorted(found.items())}
    CODES.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(CUTS)} golden and {len(table)} malformed sets")


if __name__ == "__main__":
    main(sys.argv[1:])
