"""Packs of entropy-coded rows and bases with one thing wrong, for ``make_malformed.py``."""

import struct
import zlib
from pathlib import Path

import numpy as np
from coded_rows import code_models
from edits import change_array, rebuilt, remove, set_value
from packs import Layer, Recipe, Run, Sample, forge, split, step8, write

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder

_LAYER = (Layer((step8(6, 0.3),)),)
# Sections: models, classes, blocks of two rows, index.
ROWS = Recipe(6, _LAYER, (Run(5, "ans", 2, length_bytes=2),))
TRELLIS = Recipe(6, _LAYER, (Run(5, "ans", 2, trellis=True, length_bytes=2),))
# One value, so that its payload is one state.
ONE = Recipe(1, (Layer((step8(1, 0.3),)),), (Run(1, "ans", 1, length_bytes=2),))
# Sections: token map, classes, models, basis, blocks; the last one with a basis of 200 values.
_BASIS_LAYER = Layer((step8(2, 0.1),), rank=2, coded=("int8", 6), basis_lanes=1)
BASIS = Recipe(6, (_BASIS_LAYER,), (Run(3),), shuffled=True, map_dtype="uint16")
_WIDE_LAYER = Layer((step8(1, 0.1),), rank=1, coded=("int8", 200), basis_lanes=1)
WIDE = Recipe(200, (_WIDE_LAYER,), (Run(2),))
CODER = "encodings.0"


def opening(folder: Path, zstd: bytes) -> dict[str, bytes]:
    """Files that are refused when they are opened; `zstd`: a pack of one encoding, of zstd."""
    rows, trellis, basis = (
        write(folder / name, recipe).data
        for name, recipe in (("ans-rows", ROWS), ("ans-trellis", TRELLIS), ("ans-basis", BASIS))
    )
    own, bases = (split(data)[0]["required_features"] for data in (rows, basis))
    return {
        "header-field+ans": forge(rows, remove(f"{CODER}.lanes")),
        "header-field+ans-with-zstd": forge(zstd, set_value(f"{CODER}.lanes", 1)),
        "header-field+trellis": forge(trellis, set_value(f"{CODER}.trellis", 4)),
        "header-field+basis-frame": forge(basis, set_value("sections.3.frame", "zstd")),
        "header-field+basis-group": forge(basis, set_value("sections.3.group_size", 4)),
        "index-length+ans": rebuilt(rows, _longer_index),
        "array-length+basis": _huge_basis(write(folder / "wide", WIDE).data),
        "array-shape+models": rebuilt(rows, _wider_models),
        "array-shape+classes": rebuilt(rows, _more_classes),
        "array-dtype+models": forge(rows, set_value("sections.0.dtype", "float16")),
        "section-kind+models": forge(rows, set_value("sections.0.kind", "code_classes")),
        "reference+classes": forge(rows, set_value(f"{CODER}.class_row", 1)),
        "unused-section+models": rebuilt(rows, _models_twice),
        "feature-mismatch+ans": forge(rows, required_features=own & ~(1 << 11)),
        "feature-mismatch+basis": forge(basis, required_features=bases & ~(1 << 23)),
        "feature-mismatch+token-map": forge(basis, required_features=bases & ~(1 << 48)),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Files that are refused at the first lookup."""
    rows, one = write(folder / "ans-rows", ROWS), write(folder / "ans-one", ONE)
    trellis, basis = write(folder / "ans-trellis", TRELLIS), write(folder / "ans-basis", BASIS)
    first, *others = payloads(rows)
    (state,) = struct.unpack("<I", payloads(one)[0])
    found = {
        "frame+ans-odd": recoded(one, [struct.pack("<IB", state, 0)]),
        "frame+ans-words": recoded(one, [struct.pack("<IH", state + (1 << 30), 0)]),
        "frame+ans-few-words": recoded(rows, [first[:-2], *others]),
        "frame+ans-first-state": recoded(one, [struct.pack("<IH", 7, 1)]),
        "frame+ans-last-state": recoded(one, [struct.pack("<I", state + 16384)]),
        "frame+ans-code": recoded(one, [_of_16_bits(one)]),
        "frame-extent+ans": recoded(one, [struct.pack("<I", state) + bytes(8)]),
        "frame-extent+short-index": recoded(one, [struct.pack("<I", state) + bytes(8)], 1),
        "frame+ans-basis": rebuilt(basis.data, _words_in_basis),
        "scale-not-finite+ans-basis": change_array(
            basis.data, 3, lambda old: b"\x80\x7f" + old[2:]
        ),
        "code-models": change_array(rows.data, 0, lambda old: _last_model(old, escapes=1)),
        "code-models+shift": change_array(rows.data, 0, lambda old: _last_model(old, shift=9)),
        "code-models+group": change_array(rows.data, 0, lambda old: _last_model(old, size=5)),
        "code-models+group-shift": change_array(
            rows.data, 0, lambda old: _last_model(old, shift=1, size=2)
        ),
        "code-models+group-escape": change_array(rows.data, 0, _no_escape),
        "code-classes": change_array(rows.data, 1, lambda old: b"\x08" + old[1:]),
        "code-classes+trellis": change_array(trellis.data, 1, lambda old: b"\x07" + old[1:]),
    }
    end = rows.header.sections[2].offset_bytes + len(first)
    found["block-checksum+ans"] = _flipped(rows.data, end)
    return found


def payloads(sample: Sample) -> list[bytes]:
    """Return the payloads of a pack of one chunk of frame ``ans``, with an index of two bytes."""
    _, header, _ = split(sample.data)
    blocks, index = (header["sections"][n]["offset_bytes"] for n in (2, 3))
    count = (header["sections"][3]["length_bytes"] - 12) // 2
    found = []
    for length in struct.unpack_from(f"<{count}H", sample.data, index + 8):
        found.append(sample.data[blocks : blocks + length - 2])
        blocks += length
    return found


def recoded(sample: Sample, found: list[bytes], length_bytes: int = 2) -> bytes:
    """Give such a pack other payloads, with the right checksums and index; with lengths of one
    byte, all of one length.
    """
    preamble, header, _ = split(sample.data)
    rows = header["encodings"][0]["rows_per_block"]

    def sealed(place: int, payload: bytes, size: int) -> bytes:
        crc = zlib.crc32(struct.pack("<QQ", preamble["pack_id"], place) + payload)
        return payload + struct.pack("<I", crc)[:size]

    def change(_: dict, parts: list[bytes]) -> None:
        blocks = [sealed(n * rows, payload, 2) for n, payload in enumerate(found)]
        body = struct.pack(f"<Q{len(blocks)}H", 0, *map(len, blocks))
        if length_bytes == 1:
            body = struct.pack("<Q", len(blocks[0]) << 48) + bytes(len(blocks))
        parts[2:] = b"".join(blocks), sealed(2**63, body, 4)

    return rebuilt(sample.data, change)


def _of_16_bits(sample: Sample) -> bytes:
    """The payload of a code that needs more than the 8 bits of its codec."""
    models = CodeModels.of(code_models(), "models")
    classes = np.frombuffer(sample.data, np.uint8, 1, sample.header.sections[1].offset_bytes)
    coder = RowCoder((1,), classes, models, 1, False, 16)
    return coder.encode(np.array([[200]]), 1)[0]


def _last_model(old: bytes, shift: int = 0, escapes: int = 0, size: int = 1) -> bytes:
    """Change the last model, which no class has."""
    models = np.frombuffer(old, "<u2").reshape(8, -1).copy()
    models[-1, 0] += shift + 256 * (size - 1)
    models[-1, 1] += escapes
    return models.tobytes()


def _longer_index(_: dict, parts: list[bytes]) -> None:
    parts[3] += b"\0"


def _wider_models(header: dict, parts: list[bytes]) -> None:
    """Give models 259 numbers, of which those of the outer symbols are zero."""
    models = np.frombuffer(parts[0], "<u2").reshape(8, 15)
    parts[0] = np.insert(models, [2] * 122 + [15] * 122, 0, axis=1).astype("<u2").tobytes()
    header["sections"][0]["shape"] = [8, 259]


def _more_classes(header: dict, parts: list[bytes]) -> None:
    parts[1] += b"\0"
    header["sections"][1]["shape"] = [1, 7]


def _models_twice(header: dict, parts: list[bytes]) -> None:
    header["sections"].append(dict(header["sections"][0]))
    parts.append(parts[0])


def _no_escape(old: bytes) -> bytes:
    """Give the last model groups and a single symbol: nothing is left to the escape of groups."""
    models = np.frombuffer(old, "<u2").reshape(8, -1).copy()
    models[-1] = 0
    models[-1, 0], models[-1, 8] = 256, 16384
    return models.tobytes()


def _words_in_basis(_: dict, parts: list[bytes]) -> None:
    parts[3] += bytes(2)


def _huge_basis(data: bytes) -> bytes:
    """Code a basis of 200 zeros, which take no bits with a model that has nothing else."""

    def change(_: dict, parts: list[bytes]) -> None:
        models = np.frombuffer(parts[1], "<u2").reshape(8, 15).copy()
        models[0] = 0
        models[0, 8] = 16384
        parts[:3] = b"\0", models.tobytes(), b"\0\0" + struct.pack("<I", 1)

    return rebuilt(data, change)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
