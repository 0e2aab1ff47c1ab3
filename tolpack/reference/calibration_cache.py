"""Calibrations kept between builds, by a hash of what they were measured on.

Measuring gradients takes longer than anything else on a small model, and is the same for every pack
of it. A file that is damaged, or cannot be written, is as good as none.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tolpack.cache import cached_file, keep_file
from tolpack.reference.calibrate import Calibration
from tolpack.scratch import Kept, Scratch


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

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            layers = zip(calibration.metrics, calibration.crossed)
            for layer, (own, above) in enumerate(layers):
                _write(archive, layer, [own, *above])

    return path if keep_file(path, write) else None


def _path(key: bytes) -> Path | None:
    return cached_file(f"calibration-{key.hex()[:32]}.zip")


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
