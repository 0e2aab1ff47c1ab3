"""Calibrations kept between builds, by a hash of what they were measured on.

Measuring gradients takes longer than anything else on a small model, and is the same for every pack
of it. Files lie in ``$TOLPACK_CACHE``, else in ``$XDG_CACHE_HOME/tolpack`` or ``~/.cache/tolpack``;
``TOLPACK_CACHE=off`` keeps none. They may be deleted at any time. One that is damaged, or cannot be
written, is as good as none.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.reference.calibrate import Calibration
from tolpack.scratch import Kept, Scratch

_VARIABLE = "TOLPACK_CACHE"


def load(key: bytes, counts: NDArray[np.int64], scratch: Scratch) -> Calibration | None:
    """Return the calibration kept under `key`, with `counts` of its text, or ``None``."""
    path = _path(key)
    if path is None or not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # which compares the CRC-32 of all it reads
            layers = [
                [_read(archive, name, scratch) for name in sorted(names)]
                for _, names in sorted(_by_layer(archive.namelist()).items())
            ]
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError):
        return None
    return Calibration(
        counts, tuple(row[0] for row in layers), tuple(tuple(row[1:]) for row in layers)
    )


def keep(key: bytes, calibration: Calibration) -> Path | None:
    """Keep a calibration under `key`; returns the file, or ``None`` if it could not be written."""
    path = _path(key)
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            layers = zip(calibration.metrics, calibration.crossed)
            for layer, (own, above) in enumerate(layers):
                _write(archive, layer, [own, *above])
        os.replace(file.name, path)
    except OSError:
        return None
    return path


def _path(key: bytes) -> Path | None:
    chosen = os.environ.get(_VARIABLE)
    if chosen == "off":
        return None
    name = f"calibration-{key.hex()[:32]}.zip"
    if chosen:
        return Path(chosen) / name
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a process without a home
        return None
    return Path(home) / "tolpack" / name


def _by_layer(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.split("/")[0], []).append(name)
    return found


def _read(archive: zipfile.ZipFile, name: str, scratch: Scratch) -> Kept:
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    return scratch.keep(array.astype(np.float64))


def _write(archive: zipfile.ZipFile, layer: int, metrics: Sequence[Kept]) -> None:
    for distance, metric in enumerate(metrics):
        with archive.open(f"{layer:04}/{distance}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, metric.load().astype(np.float32), allow_pickle=False)
