"""What ``tolpack cache`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.report.tables import format_bytes, format_table

if TYPE_CHECKING:
    from tolpack.workspace.kept_files import KeptFile

# Names that are listed of files that belong together.
_MOST_NAMES = 10
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def kept_table(found: Sequence[KeptFile], removed: Sequence[KeptFile] | None) -> str:
    """Write a line for each file, the names of those that belong to it, and the total of each kind;
    of `removed` ones, what is gone.
    """
    lines = []
    if found:
        rows = [row for one in found for row in _rows(one)]
        width = max(len(row[3]) for row in rows)
        rows = [[*row[:3], row[3].ljust(width)] for row in rows]
        lines = [format_table(("kind", "size", "age", "path".ljust(width)), rows), ""]
    if removed is not None:
        return "\n".join([*lines, *_totals(removed, "removed")])
    return "\n".join([*lines, *_totals(found, "kept")])


def _rows(one: KeptFile) -> list[list[str]]:
    """Return a row with the path, and one for each further file, named relative to it."""
    used = " (in use)" if one.in_use else ""
    rows = [[one.kind, format_bytes(one.bytes), format_age(one.age_seconds), f"{one.path}{used}"]]
    others = [file for file in one.files if file != one.path]
    place = one.path if one.kind == "parts" else one.path.parent
    rows += [["", "", "", f"  {file.relative_to(place)}"] for file in others[:_MOST_NAMES]]
    if len(others) > _MOST_NAMES:
        more = f"  and {len(others) - _MOST_NAMES:,} more, which --json lists"
        rows.append(["", "", "", more])
    return rows


def _totals(found: Sequence[KeptFile], what: str) -> list[str]:
    """Return a line for each kind, and one for all if there are several kinds."""
    if not found:
        return [f"{what}: nothing"]
    kinds = dict.fromkeys(one.kind for one in found)
    lines = [
        _total(f"{what}, {kind}", [one for one in found if one.kind == kind]) for kind in kinds
    ]
    return lines if len(kinds) == 1 else [*lines, _total(f"{what}, in all", found)]


def _total(name: str, found: Sequence[KeptFile]) -> str:
    files, size = sum(len(one.files) for one in found), sum(one.bytes for one in found)
    return f"{name}: {files:,} file{'' if files == 1 else 's'}, {format_bytes(size)}"


def format_age(seconds: float) -> str:
    """Write an age in the largest unit of which it has two, or in seconds."""
    unit, length = next((one for one in _UNITS if seconds >= 2 * one[1]), _UNITS[-1])
    return f"{seconds / length:.0f} {unit}"
