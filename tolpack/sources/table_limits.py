"""What a pack can hold of a table (SPEC §3, §5), checked before anything is read or computed.

Every source passes `check_limits` when it is made, so that a table which no pack holds is refused
by whatever would use it. The writer checks the header once more, which also depends on settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.codecs.encodings import Part
from tolpack.container.preamble import MAX_FIELDS, MAX_NAME, MAX_ROW_VALUES, MAX_ROWS, MAX_WIDTH
from tolpack.errors import CheckpointError
from tolpack.sources.protocol import SourceField


def table_name(name: str) -> str:
    """Return a name that a pack can hold: printable ASCII, and the end of a long one."""
    return "".join(c if _is_plain(c) else "?" for c in name[-MAX_NAME:])


def equal_fields(
    layers: int, width: int, dtype: str, first_layer: int = 0, multiplier: float = 1.0,
    codes: Part | None = None,
) -> tuple[SourceField, ...]:  # fmt: skip
    """Return fields ``layer.N`` of consecutive layers that differ in nothing else.

    Raises
    ------
    CheckpointError
        There are more than a pack can hold.
    """
    _check_count(layers, "layers")
    numbers = range(first_layer, first_layer + layers)
    return tuple(SourceField(f"layer.{n}", n, width, dtype, multiplier, codes) for n in numbers)


def check_limits(name: str, rows: int, fields: Sequence[SourceField]) -> None:
    """Check the table `name` of `rows` rows.

    Raises
    ------
    CheckpointError
        A pack cannot hold it; the message says what to do.
    """
    _check_count(len(fields), "fields")
    for one in (name, *(field.name for field in fields)):
        if not 0 < len(one) <= MAX_NAME or not _is_plain(one):
            raise CheckpointError(
                f"the name {one[:60]!r} of a table or field has {len(one)} characters, "
                f"expected 1 … {MAX_NAME}, all printable ASCII: rename the tensor"
            )
    if not 0 < rows <= MAX_ROWS:
        raise CheckpointError(
            f"table {name!r} has {rows:,} rows, expected 1 … {MAX_ROWS:,}: divide it, as a pack "
            "holds no more"
        )
    for field in fields:
        _check_field(name, field)
    values = sum(field.width for field in fields)
    if values > MAX_ROW_VALUES:
        raise CheckpointError(
            f"table {name!r} has {values:,} values in a row, expected at most {MAX_ROW_VALUES:,}: "
            "divide its layers into several tables, as a pack holds no more in one"
        )


def _check_count(count: int, what: str) -> None:
    if not 0 < count <= MAX_FIELDS:
        raise CheckpointError(
            f"the table has {count:,} {what}, expected at most {MAX_FIELDS:,}: divide it, as a "
            "pack holds no more"
        )


def _check_field(name: str, field: SourceField) -> None:
    place, group = f"field {field.name!r} of table {name!r}", field.part.group_size
    if not 0 <= field.layer < MAX_FIELDS:
        raise CheckpointError(
            f"{place} is read by layer {field.layer:,}, expected 0 … {MAX_FIELDS - 1:,}, as a pack "
            "has no others: correct the layers that the configuration or the tensors name"
        )
    if not 0 < field.width <= MAX_WIDTH:
        raise CheckpointError(
            f"{place} has {field.width:,} values in a row, expected 1 … {MAX_WIDTH:,}: cut rows "
            "into more layers (--layers N; of a checkpoint with --tensor NAME)"
        )
    if group is not None and (group % 2 or not 2 <= group <= MAX_WIDTH):
        raise CheckpointError(
            f"{place} has a scale for each {group:,} of {field.width:,} values, expected an even "
            f"number of values from 2 to {MAX_WIDTH:,}: convert the tensor to bfloat16 or float32"
        )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
