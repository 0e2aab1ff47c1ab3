"""Compare frames ``ans`` and ``zstd-runs`` of the same codes: bytes, and time to decode them.

Codes of 24 fields of 2,048 values are whole numbers of Laplace distributions that narrow from the
first component to the last; each value's model is the nearest of 32. Each side decodes all rows in
one call per block or for all blocks, and one row, again and again; the least time counts. Records
come out of all sides, and are compared.

    python benchmarks/ans_speed.py --json result.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import described

from tolpack.codecs import kernels
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.ans.trellis import NEXT
from tolpack.codecs.encodings import Part
from tolpack.codecs.frames import compress_runs, decompress_runs
from tolpack.runtime.array_types import Bytes

FIELDS, WIDTH, MODELS, LARGEST = 24, 2048, 32, 15
SCALES = np.geomspace(0.15, 6, MODELS)


def main() -> None:
    """Encode, time all sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kernels.load()
    found = {
        f"{lanes} lanes{', trellis' * trellis}": compare(
            lanes, trellis, arguments.rows, arguments.repeats
        )
        for lanes, trellis in ((4, False), (4, True), (1, True), (8, True))
    }
    if arguments.json:
        result = {**described("numpy", "numba", "zstandard"), "rows": arguments.rows, **found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def laplace_models() -> CodeModels:
    """Models of Laplace distributions of all scales, with a rare escape."""
    levels = np.arange(-LARGEST, LARGEST + 1)
    array = np.zeros((MODELS, 2 * LARGEST + 3), np.uint16)
    for row, scale in zip(array, SCALES):
        shares = np.exp(-np.abs(levels) / scale)
        row[2:] = np.maximum(1, 4000 * shares / shares.sum())
        row[1] = 2
        row[2 + LARGEST] += 4096 - int(row[1:].sum())
    return CodeModels.of(array, "models")


def coded(lanes: int, trellis: bool, rows: int) -> tuple[RecordCoder, Bytes]:
    """Return a coder, and records of random codes."""
    spread = np.geomspace(4, 0.25, WIDTH)
    nearest = np.abs(np.log(SCALES / spread[:, None])).argmin(axis=1)
    classes = np.tile(np.minimum(nearest, MODELS - 2), FIELDS).astype(np.uint8)
    fields = ((Part("step8", WIDTH, step=1.0),),) * FIELDS
    coder = RecordCoder.of(fields, classes, laplace_models(), lanes, trellis)
    source = np.random.default_rng(0)
    codes = np.rint(source.laplace(size=(rows, FIELDS, WIDTH)) * spread).clip(-120, 120).astype(int)
    if trellis:
        into_sets(codes, lanes)
    return coder, coder.records(codes.reshape(rows, -1))


def into_sets(codes: np.ndarray[Any, Any], lanes: int) -> None:
    """Move codes (rows, fields, width) towards zero into the sets of their states."""
    stretches = codes.reshape(len(codes), FIELDS, lanes, -1)
    state = np.zeros(stretches.shape[:3], int)
    for step in range(stretches.shape[3]):
        code = stretches[..., step]
        code -= np.sign(code) * ((code + state) & 1)
        state = NEXT[state, (code + (state & 1) * np.sign(code)) >> 1 & 1]


def compare(lanes: int, trellis: bool, rows: int, repeats: int) -> dict[str, float]:
    """Time all sides with the same codes."""
    coder, records = coded(lanes, trellis, rows)
    values = records.size
    payloads = coder.encode_records(records, 1)
    frames = [compress_runs(coder.record_bytes, record.tobytes()) for record in records]

    def ans(count: int) -> Bytes:
        return coder.decode_records(payloads[:count], [1] * count)

    def runs(count: int) -> Bytes:
        blocks = [decompress_runs(one, 1, coder.record_bytes, "") for one in frames[:count]]
        return np.concatenate(blocks)

    found = {
        "bits_per_value": 8 * sum(map(len, payloads)) / values,
        "zstd_runs_bits_per_value": 8 * sum(map(len, frames)) / values,
    }
    for name, decode in (("ans", ans), ("zstd_runs", runs)):
        assert (decode(rows) == records).all()
        found[f"{name}_ns_per_value"] = 1e9 * least(lambda: decode(rows), repeats) / values  # noqa: B023
        found[f"{name}_us_per_row"] = 1e6 * least(lambda: decode(1), 10 * repeats)  # noqa: B023
    found["ans_encode_ns_per_value"] = (
        1e9 * least(lambda: coder.encode_records(records, 1), repeats // 4) / values
    )
    with patch.object(kernels, "_loaded", [None]):
        found["ans_numpy_ns_per_value"] = 1e9 * least(lambda: ans(rows), 1) / values
    print(lanes, trellis, {key: round(value, 2) for key, value in found.items()}, flush=True)
    return found


def least(call: Callable[[], object], repeats: int) -> float:
    """Return the least of some times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
