"""``tolpack cache``: what is kept on this machine, and how it is removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from tolpack.commands.options import PATH, json_option, print_json
from tolpack.commands.terminal import echo
from tolpack.report.kept_table import kept_table
from tolpack.workspace.kept_files import CACHE_KINDS, KINDS, KeptFile, cache_folder, find_kept

# Names all kinds of the cache; files that a build could continue have to be named.
_CACHE = "cache"
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _parse_age(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    """Parse an age like 30d to seconds; 0 if there is none."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", value) if value is not None else None
    if value is not None and found is None:
        raise click.BadParameter(
            f"{value!r} is not an age: expected a number and m, h, d or w, like 30d"
        )
    return 0.0 if found is None else float(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("folders", nargs=-1, type=PATH, metavar="[FOLDER]...")
@click.option(
    "--clear", "cleared", multiple=True, type=click.Choice((*KINDS, _CACHE)), metavar="KIND",
    help="Remove files of this kind, or those of the cache; repeatable.",
)  # fmt: skip
@click.option(
    "--older-than", "age", callback=_parse_age, metavar="AGE",
    help="Only files that were written longer ago, like 12h, 30d or 4w.",
)  # fmt: skip
@json_option
def cache(folders: tuple[Path, ...], cleared: tuple[str, ...], age: float, as_json: bool) -> None:
    """List or remove what tolpack keeps on this machine.

    The cache is the folder that the variable TOLPACK_CACHE names, else $XDG_CACHE_HOME/tolpack or
    ~/.cache/tolpack; with TOLPACK_CACHE=off nothing is kept. It holds these kinds of files:
    calibration (loss metrics of models, for their next builds), measurement (results of eval
    --sweep and study), remote (what was read of packs in object storage), and unfinished (what a
    killed process left of these). Removing them loses nothing but the time to measure or to read
    them again.

    In each FOLDER, by default the current one, builds that were interrupted left files of the kinds
    partial (an unfinished pack with its journal, which build --resume continues) and parts (part
    files that no manifest names).

    Without --clear nothing is removed. Files that a running process uses are not removed. Part
    files and jobs of builds count as used until an hour after the last of them was written.

    \b
    tolpack cache
    tolpack cache --clear measurement --older-than 30d
    tolpack cache packs/ --clear partial
    tolpack cache --clear cache
    """
    for folder in folders:
        if not folder.is_dir():
            raise click.UsageError(f"{folder} is not a folder")
    chosen = [*(cleared or KINDS), *(CACHE_KINDS if _CACHE in cleared else ())]
    found = [
        one for one in find_kept(folders or (Path(),))
        if one.kind in chosen and one.age_seconds >= age
    ]  # fmt: skip
    removed = [one for one in found if one.remove()] if cleared else None
    left = [one for one in found if removed is None or one not in removed]
    if as_json:
        print_json(_to_json(left, removed))
        return
    echo(kept_table(found if removed is None else left, removed))
    if removed is None:
        echo(f"\n{_hint(found)}")


def _to_json(left: list[KeptFile], removed: list[KeptFile] | None) -> dict[str, Any]:
    """Return what is there, and what was removed if that was asked for."""
    folder = cache_folder()
    value: dict[str, Any] = {
        "folder": None if folder is None else str(folder),
        "files": [one.to_json() for one in left],
        "bytes": sum(one.bytes for one in left),
    }
    if removed is not None:
        gone = [one.to_json() | {"in_use": False} for one in removed]
        value |= {"removed": gone, "removed_bytes": sum(one.bytes for one in removed)}
    return value


def _hint(found: list[KeptFile]) -> str:
    """Say where the cache is, and how files are removed."""
    folder = cache_folder()
    where = (
        "TOLPACK_CACHE is off: nothing is kept."
        if folder is None
        else f"The cache is {folder}; the variable TOLPACK_CACHE names another folder."
    )
    if not found:
        return where
    kinds = ", ".join(dict.fromkeys(one.kind for one in found))
    more = (
        " tolpack build --resume continues a partial pack."
        if any(one.kind == "partial" for one in found)
        else ""
    )
    return (
        f"{where}\ntolpack cache --clear KIND removes files of a kind ({kinds}); --clear cache "
        f"removes all of the cache.{more}"
    )
