"""Files of safetensors: their header is checked before the library sees them.

Of two tensors of one name the library takes the last, and other readers the first. So a name that
stands twice is refused here, and so is a header that does not follow the format. The library checks
shapes and offsets itself. The header is matched tensor by tensor, because decoding its JSON takes
some twenty times its length in memory.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tolpack.errors import CheckpointError, printable
from tolpack.runtime.files import open_stream, regular_size
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.checkpoint.tensors import MAX_NAME, TensorInfo

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
# Torch's names of dtypes by the format's; other dtypes keep the format's name.
_DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32",
    "U8": "uint8", "I8": "int8",
}  # fmt: skip


class SafetensorsFile:
    """A ``.safetensors``, or `CheckpointError` if it is none."""

    config: object = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._extents: dict[str, tuple[int, int]] | None = None
        self._open("np")

    def infos(self) -> dict[str, TensorInfo]:
        """See `TensorFile.infos`."""
        handle, found = self._open("np"), {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            part = handle.get_slice(name)
            dtype = str(part.get_dtype())
            found[name] = TensorInfo(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), self.path)
        return found

    def metadata(self) -> dict[str, str]:
        """Return the texts that stand in the header beside the tensors."""
        return dict(self._open("np").metadata() or {})

    def load(self, name: str) -> torch.Tensor:
        """See `TensorFile.load`."""
        try:
            handle = self._handle
            if handle is None:
                handle = self._handle = self._open("pt")
            tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error}"
            ) from error
        return tensor

    def extent(self, name: str) -> tuple[int, int] | None:
        """See `TensorFile.extent`."""
        return (self._extents or {}).get(name)

    def release(self) -> None:
        """See `TensorFile.release`."""
        self._handle = None

    def _open(self, framework: str) -> Any:
        """Open the file: torch maps all of it, as if it would write to it.

        Linux refuses that for files larger than the machine's memory, so only `load` asks for it.
        """
        try:
            if self._extents is None:
                self._extents = _check_header(self.path)
            regular_size(self.path)
            return safe_open(str(self.path), framework=framework)
        except (SafetensorError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{self.path} is not a readable .safetensors file: {reason}{lfs_hint(self.path)}"
            ) from error


def _check_header(path: Path) -> dict[str, tuple[int, int]]:
    """Read the header of a file, check it, and return the extent of each tensor.

    Raises
    ------
    OSError
        The file cannot be read, or is no regular one.
    ValueError
        The header is damaged, or a name stands twice, or is over 512 bytes long; or the file is
        shorter or longer than the header says.
    """
    with open_stream(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise ValueError(
                f"its header would have {length:,} bytes, expected at most {_MAX_HEADER:,} in a "
                f"file of {size:,}: it is cut off, or no .safetensors file"
            )
        offsets = _check(file.read(length))
    first = 8 + length
    end = first + max((stop for _, stop in offsets.values()), default=size - first)
    if end != size:
        raise ValueError(
            f"the file has {size:,} bytes, but its header asks for {end:,}: it is "
            f"{abs(end - size):,} bytes too {'short' if size < end else 'long'}; copy it anew"
        )
    return {name: (first + start, stop - start) for name, (start, stop) in offsets.items()}


def _check(header: bytes) -> dict[str, tuple[int, int]]:
    """Check a header, and return first and last offset of each tensor's data."""
    if header[:1] != b"{":
        raise ValueError("its header is no JSON object: it is no .safetensors file")
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
            raise ValueError(f"its header names tensor {printable(name)} twice: save it anew")
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
