"""Loss metrics cached between builds, by a hash of the model and text that they were measured on.

Measuring gradients takes longer than anything else on a small model, and is the same for every pack
of it. A file that is damaged (`tolpack.runtime.disk_cache` tells), or cannot be written, is as good
as none.

A file begins with ``hidden`` and the number of layers, followed by the number of metrics of each
layer, all as int64, and the slope over counts as float64. Then come the metrics, layer by layer, as
float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from tolpack.calibration.loss_metrics import LossMetrics
from tolpack.runtime.disk_cache import cached_file, keep_file, kept_file, kept_name
from tolpack.runtime.scratch import Scratch, SpilledArray

_INTEGER, _SLOPE, _VALUE = np.dtype("<i8"), np.dtype("<f8"), np.dtype("<f4")


def load(key: bytes, scratch: Scratch) -> LossMetrics | None:
    """Return the calibration kept under `key`, or ``None``."""
    path = _path(key)
    if path is None:
        return None
    try:
        with kept_file(path) as kept:
            return None if kept is None else _read(*kept, scratch)
    except (OSError, MemoryError):  # it was cut off just now, or there is no room for it
        return None


def keep(key: bytes, calibration: LossMetrics) -> Path | None:
    """Keep a calibration under `key`; returns the file, or ``None`` if it could not be written."""
    path = _path(key)
    if path is None:
        return None
    layers = [[own, *above] for own, above in zip(calibration.metrics, calibration.crossed)]

    def write(file: IO[bytes]) -> None:
        hidden = calibration.metrics[0].shape[0]
        head = [hidden, len(layers), *map(len, layers)]
        file.write(np.array(head, _INTEGER).tobytes())
        file.write(np.array(calibration.count_slope, _SLOPE).tobytes())
        for metric in (metric for row in layers for metric in row):
            file.write(metric.load().astype(_VALUE).tobytes())

    return path if keep_file(path, write) else None


def _path(key: bytes) -> Path | None:
    return cached_file(kept_name("calibration", key.hex()))


def _read(file: IO[bytes], size: int, scratch: Scratch) -> LossMetrics | None:
    """Read a file; ``None`` unless it holds just what it says."""
    hidden, layers = _integers(file, 2)
    head_bytes = (2 + layers) * _INTEGER.itemsize + _SLOPE.itemsize
    if layers <= 0 or hidden <= 0 or head_bytes > size:
        return None
    counts = _integers(file, layers)
    values = sum(counts) * hidden * hidden
    if min(counts) < 1 or size != head_bytes + values * _VALUE.itemsize:
        return None
    slope = float(np.frombuffer(file.read(_SLOPE.itemsize), _SLOPE)[0])
    found = [[_metric(file, hidden, scratch) for _ in range(count)] for count in counts]
    metrics, crossed = (row[0] for row in found), (tuple(row[1:]) for row in found)
    return LossMetrics(tuple(metrics), tuple(crossed), slope)


def _integers(file: IO[bytes], count: int) -> list[int]:
    found = np.frombuffer(file.read(count * _INTEGER.itemsize), _INTEGER).tolist()
    return [*found, *[0] * (count - len(found))]


def _metric(file: IO[bytes], hidden: int, scratch: Scratch) -> SpilledArray:
    data = file.read(hidden * hidden * _VALUE.itemsize)
    if len(data) != hidden * hidden * _VALUE.itemsize:
        raise OSError("cut off")
    return scratch.spill(np.frombuffer(data, _VALUE).reshape(hidden, hidden).astype(np.float64))
