"""Files of safetensors written again without some of their tensors, byte for byte otherwise."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from tolpack.errors import CheckpointError
from tolpack.runtime.files import open_stream
from tolpack.sources.json_file import read_json

INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20
# A header takes some twenty times its length once it is decoded.
_MAX_HEADER_BYTES = 32 << 20
_COPY_BYTES = 8 << 20


def write_without(source: Path, target: BinaryIO, dropped: Collection[str]) -> None:
    """Write the tensors of a ``.safetensors`` that are not `dropped`, in their order.

    Parameters
    ----------
    source : Path
        A file whose header was checked.
    target : BinaryIO
        An empty file.
    dropped : collection of str
        Names of tensors.

    Raises
    ------
    CheckpointError
        The header is longer than 32 MiB, or the file has changed.
    FileAccessError
        It cannot be read.
    """
    with open_stream(source) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{source} has a header of {length:,} bytes, expected at most "
                f"{_MAX_HEADER_BYTES:,}: save it in more shards"
            )
        header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None)
        kept = sorted(
            (entry["data_offsets"][0], name)
            for name, entry in header.items()
            if name not in dropped
        )
        entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        spans, end = [], 0
        for start, name in kept:
            size = header[name]["data_offsets"][1] - start
            entries[name] = header[name] | {"data_offsets": [end, end + size]}
            spans.append((8 + length + start, size))
            end += size
        encoded = json.dumps(entries, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # values stay aligned
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for offset, size in spans:
            file.seek(offset)
            _copy(file, target, size, source)


def index_without(path: Path, dropped: Collection[str], nbytes: int, values: int) -> dict[str, Any]:
    """Return the content of an index file without some tensors.

    Parameters
    ----------
    path : Path
        The index.
    dropped : collection of str
        Names of tensors.
    nbytes, values : int
        What they take.

    Raises
    ------
    CheckpointError
        It is not an index.
    """
    try:
        index = read_json(path, _MAX_INDEX_BYTES)
        weight_map, metadata = dict(index["weight_map"]), dict(index.get("metadata") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {error}") from error
    for name, less in (("total_size", nbytes), ("total_parameters", values)):
        if isinstance(metadata.get(name), (int, float)):
            metadata[name] = int(metadata[name]) - less
    kept = {name: file for name, file in weight_map.items() if name not in dropped}
    return {**index, "metadata": metadata, "weight_map": kept}


def _copy(source: BinaryIO, target: BinaryIO, size: int, path: Path) -> None:
    while size:
        data = source.read(min(size, _COPY_BYTES))
        if not data:
            raise CheckpointError(f"{path} is shorter than when it was opened: copy it again")
        target.write(data)
        size -= len(data)
