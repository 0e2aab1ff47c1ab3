"""The header of a ``.safetensors``, checked before anything else sees it.

Of two tensors of one name the library takes the last, and other readers the first. So a name that
stands twice is refused here, and so is a header that does not follow the format. The header is
matched tensor by tensor, because decoding its JSON takes some twenty times its length in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from tolpack.errors import printable
from tolpack.sources.checkpoint.tensors import MAX_NAME
from tolpack.storage.inputs import InputPath, open_stream, stream_size

# The library's own limit.
_MAX_HEADER = 100_000_000
_MAX_TENSORS = 1_000_000
_MAX_METADATA = 10_000
# All repetitions are possessive (+): a header that does not match fails in linear time.
_SPACE = r"[ \t\r\n]*+"
_STRING = r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*+"'
_SIZES = rf"\[(?:{_SPACE}[0-9]{{1,20}}+{_SPACE},)*+(?:{_SPACE}[0-9]{{1,20}}+)?+{_SPACE}\]"
_PAIR = rf"{_SPACE}{_STRING}{_SPACE}:{_SPACE}(?:{_STRING}|{_SIZES}){_SPACE}"
_ENTRY = re.compile(
    rf"{_SPACE}(?P<name>{_STRING}){_SPACE}:{_SPACE}"
    rf"\{{(?P<fields>(?:{_PAIR},)*+(?:{_PAIR})?+{_SPACE})\}}{_SPACE}(?P<end>[,}}])".encode()
)
_KEY = re.compile(rf"{_SPACE}({_STRING}){_SPACE}:{_SPACE}({_STRING}|{_SIZES}){_SPACE},?".encode())
_FIELDS = {"dtype", "shape", "data_offsets"}
# Bits of a value, by the format's names of dtypes.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16), **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64), "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

Extents = dict[str, tuple[int, int]]


def read_header(path: InputPath) -> tuple[bytes, Extents]:
    """Read the header of a file, check it, and return it with the extent of each tensor: its offset
    in the file, and its length in bytes.

    Raises
    ------
    OSError
        The file cannot be read, or is not a regular one.
    ValueError
        The header is damaged, or a name stands twice, or is over 512 bytes long; or the file is
        shorter or longer than the header says.
    """
    with open_stream(path) as file:
        size = stream_size(file)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise ValueError(
                f"its header would have {length:,} bytes, expected at most {_MAX_HEADER:,} in a "
                f"file of {size:,}: it is cut off, or no .safetensors file"
            )
        header = file.read(length)
    offsets = _check(header)
    first = 8 + length
    end = first + max((stop for _, stop in offsets.values()), default=size - first)
    if end != size:
        raise ValueError(
            f"the file has {size:,} bytes, but its header asks for {end:,}: it is "
            f"{abs(end - size):,} bytes too {'short' if size < end else 'long'}; copy it again"
        )
    extents = {name: (first + start, stop - start) for name, (start, stop) in offsets.items()}
    return header, extents


def tensor_fields(header: bytes, extents: Extents) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, dtype and shape of each tensor of a checked header, in the order of names.

    Raises
    ------
    ValueError
        A dtype is unknown, or takes another number of bytes, or two tensors overlap, or bytes
        between tensors belong to none: what the library checks when it opens a file.
    """
    _check_gapless(extents, 8 + len(header))
    found = {}
    for name, fields in _entries(header):
        if name != "__metadata__":
            keys = dict(fields)
            dtype = _string(keys["dtype"]) if keys["dtype"][:1] == b'"' else "?"
            shape = tuple(int(size) for size in re.findall(rb"[0-9]+", keys["shape"]))
            if math.prod(shape) * _BITS.get(dtype, -1) != 8 * extents[name][1]:
                raise ValueError(
                    f"tensor {printable(name)} of dtype {printable(dtype[:40])} and shape "
                    f"{list(shape)[:8]} has {extents[name][1]:,} bytes: its header is damaged"
                )
            found[name] = dtype, shape
    for name in sorted(found):
        yield name, *found[name]


def metadata(header: bytes) -> dict[str, str]:
    """Return the texts that stand in a checked header beside the tensors."""
    fields = next((fields for name, fields in _entries(header) if name == "__metadata__"), ())
    return {key: _string(value) for key, value in fields if value[:1] == b'"'}


def _check_gapless(extents: Extents, end: int) -> None:
    """Raise `ValueError` unless tensors lie one after the other, the first one at `end`."""
    for name, (offset, length) in sorted(extents.items(), key=lambda one: one[1]):
        if end != offset:
            raise ValueError(f"tensor {printable(name)} does not begin where another one ends")
        end = offset + length


def _entries(header: bytes) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield the names of a checked header, with their fields."""
    for found in _ENTRY.finditer(header, 1):
        pairs = _KEY.finditer(found["fields"])
        yield _string(found["name"]), [(_string(pair[1]), pair[2]) for pair in pairs]


def _check(header: bytes) -> dict[str, tuple[int, int]]:
    """Check a header, and return first and last offset of each tensor's data."""
    if header[:1] != b"{":
        raise ValueError("its header is not a JSON object: it is not a .safetensors file")
    if not header.strip(b"{} \t\r\n"):
        return {}  # no tensors: for whoever needs one
    names: dict[str, tuple[int, int]] = {}
    place, end = 1, b","
    while end == b",":
        found = _ENTRY.match(header, place)
        if found is None:
            raise ValueError(f"its header is damaged at byte {place}, behind {len(names)} tensors")
        name = _string(found["name"])
        if name in names:
            raise ValueError(f"its header names tensor {printable(name)} twice: save it again")
        if len(found["name"]) - 2 > MAX_NAME or len(names) > _MAX_TENSORS:
            raise ValueError(
                f"tensor {printable(name[:40])} has a name of {len(name)} characters, or is one of "
                f"over {_MAX_TENSORS:,}: expected at most {MAX_NAME} characters"
            )
        names[name] = _check_fields(name, found["fields"])
        place, end = found.end(), found["end"]
    if header[place:].strip(b" \t\r\n\0"):
        raise ValueError(f"its header goes on behind its end, at byte {place}")
    names.pop("__metadata__", None)
    return names


def _check_fields(name: str, fields: bytes) -> tuple[int, int]:
    """Check the fields of a tensor, and return its offsets; (0, 0) for metadata."""
    keys: dict[str, bytes] = {}
    for pair in _KEY.finditer(fields):
        key = _string(pair[1])
        known = len(keys) < _MAX_METADATA if name == "__metadata__" else key in _FIELDS
        if key in keys or not known:
            raise ValueError(
                f"field {printable(key[:40])} of {printable(name)} stands twice in its header, or "
                "belongs not there"
            )
        keys[key] = pair[2]
    if name == "__metadata__":
        return 0, 0
    if keys.keys() != _FIELDS:
        raise ValueError(f"tensor {printable(name)} lacks one of dtype, shape and data_offsets")
    offsets = [int(number) for number in re.findall(rb"[0-9]+", keys["data_offsets"])]
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {printable(name)} has no first and last data_offsets")
    return offsets[0], offsets[1]


def _string(quoted: bytes) -> str:
    return str(json.loads(quoted)) if b"\\" in quoted else quoted[1:-1].decode("utf-8")
