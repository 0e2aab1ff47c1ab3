"""The header of a GGUF file: what it says is compared with the file before it is believed.

A header has a magic and a version, two counts, metadata, and the tensors' names, shapes, types and
offsets. Every count is compared with the bytes that are left, and every extent with the file's
length. Long arrays of the metadata, such as the tokens, are passed over.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from tolpack.errors import CheckpointError
from tolpack.runtime.files import open_stream
from tolpack.sources.checkpoint.tensors import MAX_NAME
from tolpack.sources.gguf.package import GGMLType, ggml_type

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Headers have some 20 MB, most of it tokens and merges, and some 50 keys. The largest models have
# some thousand tensors. GGML has four dimensions.
_MAX_HEADER = 128 << 20
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 17
# Read at once of an array of strings.
_PIECE_BYTES = 1 << 20
# Longer strings of the metadata, such as chat templates, are passed over.
_MAX_KEPT_STRING = 4096
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_STRING, _ARRAY = 8, 9
# Scalars of the metadata, as struct names them, by the format's numbers.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip

# Integers among them, and how many an array may have that is kept.
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_MAX_KEPT_ARRAY = 64

Metadata = dict[str, int | float | bool | str | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor as the header declares it.

    Parameters
    ----------
    name : str
        Its name.
    shape : tuple of int
        Slowest axis first, as in numpy; GGML writes it the other way round.
    kind : GGMLType
        Its type.
    path : Path
        The file that holds it.
    offset_bytes : int
        Where its bytes begin in that file.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLType
    path: Path
    offset_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis, or of the whole vector."""
        values = math.prod(self.shape[1:]) if len(self.shape) > 1 else self.shape[0]
        blocks = values // self.kind.block_values if self.kind.block_values else 0
        return blocks * self.kind.block_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.row_bytes * (self.shape[0] if len(self.shape) > 1 else 1)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata without its long arrays, and the tensors by name."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, GGUFTensor]


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of one file.

    Raises
    ------
    CheckpointError
        It cannot be read, is damaged or cut off, or is of a version or byte order that is not
        read.
    """
    try:
        with open_stream(path) as file:
            return _Parser(path, file).header()
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} is not a readable GGUF file: {reason}") from error


class _Parser:
    """Reads one header from front to back; every method may raise `ValueError`."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._place = 0

    def header(self) -> GGUFHeader:
        """Return the whole header."""
        if self._take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._check_version(self._number("<I"))
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
            raise ValueError(
                f"it declares {tensor_count:,} tensors and {pair_count:,} keys, expected at most "
                f"{_MAX_TENSORS:,} and {_MAX_PAIRS:,}: it is damaged"
            )
        metadata = self._metadata(pair_count)
        tensors = [self._tensor() for _ in range(tensor_count)]
        return GGUFHeader(self._path, metadata, self._placed(tensors, _alignment(metadata)))

    def _check_version(self, version: int) -> None:
        if version in _VERSIONS:
            return
        if version & 0xFFFF == 0 and version:
            raise ValueError(
                "it is big-endian, expected little-endian: convert it with the gguf package's "
                "gguf-convert-endian"
            )
        raise ValueError(f"its version is {version}, expected 2 or 3: convert the model again")

    def _metadata(self, count: int) -> Metadata:
        found: Metadata = {}
        seen: set[str] = set()
        for _ in range(count):
            key = self._name("a key of the metadata")
            if key in seen:
                raise ValueError(f"its metadata has the key {key!r} twice")
            seen.add(key)
            kind = self._number("<I")
            if kind in _SCALARS:
                found[key] = self._scalar(_SCALARS[kind])
            elif kind == _STRING:
                length = self._number("<Q")
                if length <= _MAX_KEPT_STRING:
                    found[key] = self._text(length)
                else:
                    self._pass(length, f"the value of {key!r}")
            elif kind == _ARRAY:
                integers = self._array(key)
                if integers is not None:
                    found[key] = integers
            else:
                raise ValueError(f"the value of {key!r} has the unknown type {kind}")
        return found

    def _array(self, key: str) -> tuple[int, ...] | None:
        """Return a short array of integers, or pass over another one."""
        kind, count = self._number("<I"), self._number("<Q")
        what = f"the array {key!r}"
        if kind in _INTEGERS and count <= _MAX_KEPT_ARRAY:
            return tuple(self._number(_SCALARS[kind]) for _ in range(count))
        if kind in _SCALARS:
            self._pass(count * struct.calcsize(_SCALARS[kind]), what)
        elif kind == _STRING:
            self._expect(8 * count, what)
            self._pass_strings(count, what)
        else:
            raise ValueError(f"{what} holds values of the type {kind}, which none may")
        return None

    def _pass_strings(self, count: int, what: str) -> None:
        """Pass over strings, of which there may be a million, a piece of the file at a time."""
        while count:
            piece, end = self._file.read(_PIECE_BYTES), 0
            while count and end + 8 <= len(piece):
                end += 8 + int.from_bytes(piece[end : end + 8], "little")
                count -= 1
            self._pass(end or 8, what)

    def _tensor(self) -> GGUFTensor:
        """Read what the header says of a tensor; its offset counts from the data's start."""
        name = self._name("a tensor's name")
        count = self._number("<I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {count} dimensions, expected 1 to 4")
        shape = tuple(self._number("<Q") for _ in range(count))[::-1]
        kind, offset = ggml_type(self._number("<I")), self._number("<Q")
        if kind.block_values and shape[-1] % kind.block_values:
            raise ValueError(
                f"tensor {name!r} has rows of {shape[-1]} values, which blocks of "
                f"{kind.block_values} ({kind.name}) do not fill"
            )
        return GGUFTensor(name, shape, kind, self._path, offset)

    def _placed(self, tensors: list[GGUFTensor], alignment: int) -> dict[str, GGUFTensor]:
        """Check where tensors lie, and return them with offsets from the file's start."""
        start = -(-self._place // alignment) * alignment
        found: dict[str, GGUFTensor] = {}
        end = start
        for tensor in sorted(tensors, key=lambda one: (one.offset_bytes, one.nbytes)):
            name, offset = tensor.name, start + tensor.offset_bytes
            if tensor.name in found:
                raise ValueError(f"it names tensor {name!r} twice")
            if offset % alignment or offset < end:
                raise ValueError(
                    f"tensor {name!r} begins at byte {offset:,}, expected a multiple of "
                    f"{alignment} from {end:,} on"
                )
            end = offset + tensor.nbytes
            if end > self._size:
                raise ValueError(
                    f"tensor {name!r} of shape {list(tensor.shape)} and type {tensor.kind.name} "
                    f"ends at byte {end:,}, but the file has {self._size:,}: it is cut off; copy "
                    "it again"
                )
            found[tensor.name] = replace(tensor, offset_bytes=offset)
        return found

    def _name(self, what: str) -> str:
        length = self._number("<Q")
        if length > MAX_NAME:
            raise ValueError(f"{what} has {length:,} bytes, expected at most {MAX_NAME}")
        return self._text(length)

    def _text(self, length: int) -> str:
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        return int(self._scalar(form))

    def _scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _take(self, length: int) -> bytes:
        self._expect(length, "its header")
        data = self._file.read(length)
        if len(data) != length:
            raise ValueError("it was cut off while it was read")
        self._place += length
        return data

    def _pass(self, length: int, what: str) -> None:
        self._expect(length, what)
        self._place += length
        self._file.seek(self._place)

    def _expect(self, length: int, what: str) -> None:
        """Raise if `length` bytes more would not fit into the file, or into any header."""
        left = min(self._size, _MAX_HEADER) - self._place
        if length > left:
            raise ValueError(
                f"{what} would take {length:,} bytes at byte {self._place:,}, but at most "
                f"{max(left, 0):,} are there: it is cut off or damaged"
            )


def _alignment(metadata: Metadata) -> int:
    found = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if type(found) is not int or not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
        raise ValueError(
            f"{_ALIGNMENT_KEY} is {repr(found)[:40]}, expected a power of two up to 2^20"
        )
    return found
