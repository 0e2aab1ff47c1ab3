"""Checks of a file of ``torch.save``, before torch reads it.

Torch inflates every entry that is deflated. It maps a tensor's bytes without comparing their number
with the entry's, so that a damaged archive gives bytes of the next tensor. Its unpickler makes some
70 bytes of one. So the archive's directory and its pickle are read here first, by an unpickler that
knows no class and calls nothing. Entries must have the sizes that the tensors ask for, and the
pickle must be small for the file.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

from tolpack.runtime.files import open_stream

_MAGIC = b"PK\3\4"
# The attribute of a folder, by MS-DOS.
_FOLDER = 0x10
# Largest pickle: so many bytes, and one more for so many of the file. A tensor takes some 300.
_PICKLE_BYTES, _FILE_SHARE = 768 << 10, 20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
# An entry may be followed by its checksum and sizes, once more.
_DESCRIPTOR, _MAX_DESCRIPTOR = b"PK\7\x08", 24
# The format before torch 1.6 begins with it.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_HASHING = ("set", "frozenset", "Counter", "OrderedDict", "dict")
_STORED_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1,
    "QUInt8Storage": 1, "QInt32Storage": 4, "UntypedStorage": 1,
}  # fmt: skip


def check_archive(path: Path) -> None:
    """Check the archive and the pickle of a ``.pt``.

    Raises
    ------
    OSError
        The file cannot be read, or is not a regular one.
    ValueError
        It is damaged, or was not written by torch.
    """
    with open_stream(path) as file:
        most = _PICKLE_BYTES + os.fstat(file.fileno()).st_size // _FILE_SHARE
        modern = file.read(len(_MAGIC)) == _MAGIC
        file.seek(0)
        try:
            if modern:
                _check_zip(file, most)
            else:
                _check_old(file, most)
        except OSError:
            raise
        except Exception as error:  # on damage, zipfile and pickle raise nearly everything
            raise ValueError(str(error) or type(error).__name__) from error


def _check_zip(file: BufferedReader, most: int) -> None:
    """Check that each entry stands once, uncompressed, and has the bytes of its tensor."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # Torch reads nothing for what is called a folder, and gives memory as it found it.
        stored = [
            entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr & _FOLDER
            for entry in entries.values()
        ]
        total = sum(entry.file_size for entry in entries.values())
        if len(entries) != len(archive.infolist()) or not all(stored) or total > size:
            raise ValueError(
                "entries of its archive are compressed, folders, overlap or stand twice, which "
                "torch.save never does: save it again"
            )
        pickled = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError("it has no data.pkl")
        if entries[pickled[0]].file_size > most:
            raise ValueError(
                f"its data.pkl takes {entries[pickled[0]].file_size:,} bytes, expected at most "
                f"{most:,} in a file of its size: convert it to .safetensors"
            )
        data = archive.read(pickled[0])
        directory: int = archive.start_dir
    _check_ends(file, list(entries.values()), directory)
    folder = pickled[0].removesuffix("data.pkl")
    reader = _Reader(io.BytesIO(data))
    reader.load()
    for key, (_, expected) in reader.storages.items():
        entry = entries.get(f"{folder}data/{key}")
        if entry is None or entry.file_size != expected:
            found = "no such entry" if entry is None else f"{entry.file_size:,} bytes"
            raise ValueError(f"data/{key} of its archive has {found}, expected {expected:,} bytes")


def _check_ends(file: BufferedReader, entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Check that each entry, by the header before it, ends where the next one begins.

    Torch finds an entry's values by that header, which a reader of the directory never looks at.
    """
    entries = sorted(entries, key=lambda entry: entry.header_offset)
    begins = [entry.header_offset for entry in entries[1:]]
    for entry, begin in zip(entries, [*begins, directory]):
        file.seek(entry.header_offset)
        magic, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        file.seek(start + entry.file_size)
        between = file.read(max(0, min(begin - file.tell(), _MAX_DESCRIPTOR + 1)))
        described = len(between) <= _MAX_DESCRIPTOR and between.startswith(_DESCRIPTOR)
        ends = start + entry.file_size == begin or described
        if magic != _MAGIC or not ends:
            raise ValueError(f"{entry.filename} of its archive ends not where the next begins")


def _check_old(file: BufferedReader, most: int) -> None:
    """Check that each storage that is asked for follows: else torch gives memory as it found it."""
    size = os.fstat(file.fileno()).st_size
    stream = io.BytesIO(file.read(most))
    if stream.getvalue()[:1] != pickle.PROTO:
        raise ValueError("it does not begin as files of torch do")
    if _Reader(stream).load() != _OLD_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    for _ in ("protocol version", "system"):
        _Reader(stream).load()
    reader = _Reader(stream)
    reader.load()
    keys = _Reader(stream).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(reader.storages):
        raise ValueError("the tensors that it lists are not those that it holds")
    at = stream.tell()
    for key in keys:
        count, expected = reader.storages[key]
        file.seek(at)
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"tensor {key} has not the {count:,} values that it should have")
        at += 8 + expected
    if at != size:
        raise ValueError(f"its tensors take {at:,} bytes, but the file has {size:,}")


class _Inert:
    """Stands for every class, function, dict and set in a pickle; does nothing.

    But it refuses keys that are not plain ones: tuples of tuples may take for ever to be hashed.
    """

    name = ""

    def __new__(cls, *arguments: object, **_: object) -> _Inert:
        for argument in arguments if cls.name in _HASHING else ():
            for item in argument if isinstance(argument, (list, tuple)) else ():
                _check_key(item[0] if isinstance(item, (list, tuple)) and item else item)
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        _check_key(key)

    def append(self, value: object) -> None:
        """Take an item, as a list would."""

    def extend(self, values: object) -> None:
        """Take items, as a list would."""

    def add(self, value: object) -> None:
        """Take an item, as a set would."""
        _check_key(value)

    def update(self, values: Iterable[object]) -> None:
        """Take items, as a set would."""
        for value in values:
            _check_key(value)


def _check_key(key: object) -> None:
    if not isinstance(key, (str, int, float, bytes, type(None), _Inert)):
        raise ValueError(f"it has a {type(key).__name__} as a key, expected a name or a number")


class _Reader(pickle._Unpickler):  # the one in C makes its memo as long as it is told
    """Collects the storages that a pickle asks for: number of values, and bytes, by key."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, tuple[int, int]] = {}
        self._classes: dict[str, type] = {}

    def load_hashed(self) -> None:
        """Put an inert object where a dict or a set with its items would be."""
        for item in self.pop_mark():  # type: ignore[attr-defined]
            _check_key(item)
        self.append(_Inert())  # type: ignore[attr-defined]

    def load_empty(self) -> None:
        """Put an inert object where an empty dict or set would be."""
        self.append(_Inert())  # type: ignore[attr-defined]

    dispatch[pickle.DICT[0]] = dispatch[pickle.FROZENSET[0]] = load_hashed  # DICT: torch has none
    dispatch[pickle.EMPTY_DICT[0]] = dispatch[pickle.EMPTY_SET[0]] = load_empty

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that does nothing, whatever is asked for."""
        if name not in self._classes:
            self._classes[name] = type("_Named", (_Inert,), {"name": name})
        return self._classes[name]

    def persistent_load(self, pid: Any) -> Any:
        """Note a storage: ``("storage", class, key, device, values, …)``."""
        kind, stored, key, _, values = pid[:5]
        if kind != "storage" or not isinstance(key, str) or not isinstance(values, int):
            raise ValueError("it asks for something that is not a storage")
        size = _STORED_BYTES.get(getattr(stored, "name", ""))
        if size is None:
            return _Inert()  # for torch to refuse
        found = (values, values * size)
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"two tensors share data/{key}, and disagree about its size")
        return _Inert()
