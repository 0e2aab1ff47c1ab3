"""Any tensor of a checkpoint as a table, by its name (``--tensor``)."""

from __future__ import annotations

import difflib
import re
from itertools import islice

from tolpack.errors import CheckpointError, ConfigError, printable
from tolpack.sources.families.checkpoint_files import CheckpointFiles, numbered
from tolpack.sources.table_limits import equal_fields, table_name
from tolpack.sources.tensors.tensor_table import TensorTable

# What stands for the number of a shard: ``*``, ``{}``, or braces around what `tensor_names` writes.
_NUMBER = re.compile(r"\*|\{[^{}]*\}")
# Names that are looked at for near ones: the search is slow.
_NEAR_NAMES = 20_000


def open_named_tensor(files: CheckpointFiles, name: str, layers: int | None) -> TensorTable:
    """Open a tensor, or a series of tensors one after the other, as a table.

    Parameters
    ----------
    files : CheckpointFiles
        The checkpoint.
    name : str
        The exact name; with ``*`` or ``{}`` in place of a number: all that match, by that number.
    layers : int or None
        Fields of a row of a two-dimensional tensor, 1 if not said; a three-dimensional one has its
        second dimension.

    Raises
    ------
    CheckpointError, ConfigError
        There is no such tensor, or it is not a table, or `layers` do not divide it.
    """
    names = _names(files, name)
    shape = files.shape(names[0])
    if len(shape) not in (2, 3):
        raise CheckpointError(
            f"tensor {names[0]!r} has shape {list(shape)}, expected [rows, width] or "
            "[rows, layers, width]"
        )
    if len(shape) == 3 and layers not in (None, shape[1]):
        raise ConfigError(
            f"--layers is {layers}, but tensor {names[0]!r} has shape {list(shape)}: leave it out"
        )
    for other in names[1:]:
        if files.shape(other)[1:] != shape[1:]:
            raise CheckpointError(
                f"tensor {other!r} has shape {list(files.shape(other))}, expected that of "
                f"{names[0]!r}, {list(shape)}, but for the rows: they are not of one series"
            )
    codes = files.stacked_codes(*names)
    count = shape[1] if len(shape) == 3 else layers or 1
    if codes.width % count:
        raise ConfigError(f"--layers is {count}, which does not divide rows of {codes.width}")
    width = codes.width // count
    fields = [
        codes.field(one.name, one.layer, one.layer * width, width)
        for one in equal_fields(count, width, codes.dtype)
    ]
    short = table_name(_NUMBER.sub("*", name))
    return TensorTable(short, "--tensor", files.store.states, fields)


def near_names(name: str, files: CheckpointFiles, count: int = 5) -> list[str]:
    """Return the names of tensors that are most like `name`."""
    return difflib.get_close_matches(name, islice(files.store.infos, _NEAR_NAMES), count, 0.3)


def _names(files: CheckpointFiles, name: str) -> list[str]:
    """Return the tensors that `name` stands for."""
    if files.has(name):
        return [name]
    pieces = _NUMBER.split(name)
    if len(pieces) > 2:
        raise ConfigError(f"--tensor {name!r} has several * or {{}}: expected one, for the number")
    found = files.matching(r"(\d{1,9})".join(map(re.escape, pieces))) if len(pieces) == 2 else {}
    if found:
        return list(numbered(found, 1).values())
    near = ", ".join(map(printable, near_names(name, files)))
    raise CheckpointError(
        f"--tensor {name!r} is not in {files.path}{f'; nearest names: {near}' if near else ''}"
    )
