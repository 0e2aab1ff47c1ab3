"""A GGUF model in several files, ``NAME-00001-of-0000N.gguf``: all of them, each tensor once.

The keys ``split.no`` (from 0), ``split.count`` and ``split.tensors.count`` say what belongs
together; the names say where it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tolpack.errors import CheckpointError
from tolpack.sources.gguf.header import GGUFHeader, GGUFTensor, Metadata, read_header

_SPLIT = re.compile(r"(?P<before>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """All files of a model: the metadata of the first one, and the tensors of all by name."""

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: dict[str, GGUFTensor]


def read_model(path: Path) -> GGUFModel:
    """Read the headers of the file at `path`, and of all files of which it is one part.

    Raises
    ------
    CheckpointError
        A part is missing, or belongs to another model; or see `read_header`.
    """
    named = _SPLIT.fullmatch(path.name)
    if named is None or int(named["count"]) < 2:
        header = read_header(path)
        _refuse_lone_part(header)
        return _joined([header])
    paths = [
        path.with_name(f"{named['before']}-{number:05}-of-{named['count']}.gguf")
        for number in range(1, int(named["count"]) + 1)
    ]
    for part in paths:
        if not part.exists():
            raise CheckpointError(f"split {part.name} is missing from {path.parent}: copy it there")
    headers = [read_header(part) for part in paths]
    for number, header in enumerate(headers):
        _check_part(header, number, len(headers))
    return _joined(headers)


def _refuse_lone_part(header: GGUFHeader) -> None:
    count = header.metadata.get("split.count", 1)
    if count not in (0, 1):
        raise CheckpointError(
            f"{header.path} is one of {count} splits, expected a name such as "
            "MODEL-00001-of-00002.gguf: give all splits back the names that they were written under"
        )


def _check_part(header: GGUFHeader, number: int, count: int) -> None:
    found = header.metadata.get("split.no"), header.metadata.get("split.count")
    if found != (number, count):
        raise CheckpointError(
            f"{header.path} says that its split.no is {found[0]} and its split.count {found[1]}, "
            f"expected {number} and {count} from its name: the splits are of different models, or "
            "were renamed"
        )


def _joined(headers: Sequence[GGUFHeader]) -> GGUFModel:
    tensors: dict[str, GGUFTensor] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in both {tensors[name].path.name} and "
                    f"{header.path.name}: the splits are of different models"
                )
            tensors[name] = tensor
    metadata = headers[0].metadata
    declared = metadata.get("split.tensors.count", len(tensors))
    if declared != len(tensors):
        raise CheckpointError(
            f"{headers[0].path} says that all splits hold {declared} tensors, found "
            f"{len(tensors)}: the splits are of different models"
        )
    return GGUFModel(tuple(header.path for header in headers), metadata, tensors)
