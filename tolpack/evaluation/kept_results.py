"""What ``tolpack eval --json`` printed, read again: a file that anybody may have changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tolpack.errors import ConfigError, FileAccessError
from tolpack.storage.inputs import read_whole
from tolpack.storage.locations import Location

_MOST_BYTES = 64 << 20
_LARGEST = 1e300
PACK_VALUES = (
    "ppl", "ppl_increase_pct", "ppl_increase_se_pct", "kl_mean_nats", "kl_mean_se_nats",
    "top1_agreement_pct", "top1_agreement_se_pct",
)  # fmt: skip


def read_results(path: Location) -> dict[str, Any]:
    """Return the object that ``tolpack eval --json`` printed to a file.

    Raises
    ------
    ConfigError
        It is not one.
    FileAccessError
        It cannot be read.
    """
    try:
        value = json.loads(read_whole(path, _MOST_BYTES))
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(_not_results(path)) from error
    if not isinstance(value, dict) or "context" not in value:
        raise ConfigError(_not_results(path))
    for one in (value, *objects(value.get("texts"))):
        if not isinstance(one.get("baseline"), dict) or not isinstance(one.get("packs"), list):
            raise ConfigError(_not_results(path))
    return value


def _not_results(path: Location) -> str:
    return f"{path} is not what `tolpack eval … --json` prints: redirect its output to a file"


def find_pack(results: dict[str, Any], name: str, nbytes: int, path: Location) -> dict[str, Any]:
    """Return the figures of a pack, known by the name of its file and by its bytes.

    Raises
    ------
    ConfigError
        There are none, or they are not numbers.
    """
    packs = [one for one in objects(results["packs"]) if isinstance(one.get("path"), str)]
    found = [one for one in packs if _name(one) == name and one.get("bytes") == nbytes]
    if not found:
        held = ", ".join(f"{_name(one)} ({one.get('bytes')} bytes)" for one in packs) or "no packs"
        raise ConfigError(
            f"{path} has no figures of {name} ({nbytes} bytes), but of {held}: run tolpack eval "
            f"CHECKPOINT {name} --text FILE --json again"
        )
    return found[0]


def numbers(value: dict[str, Any], keys: Sequence[str], path: Location) -> dict[str, float | None]:
    """Return finite numbers of an object; standard errors may be missing.

    Raises
    ------
    ConfigError
        Another one is missing, or one is not a finite number.
    """
    found: dict[str, float | None] = {}
    for key in keys:
        one = value.get(key)
        if one is None and "_se_" in key:
            found[key] = None
        elif isinstance(one, (int, float)) and abs(one) <= _LARGEST:
            found[key] = float(one)
        else:
            raise ConfigError(f"{path}: {key} is {one!r}, expected a finite number")
    return found


def objects(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list; none of what is not a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _name(pack: dict[str, Any]) -> str:
    return str(pack["path"]).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
