"""Compare frames ``ans`` and ``zstd-runs`` of the same codes: bytes, and time to decode them.

Codes of 24 fields of 2,048 values are whole numbers of Laplace distributions whose scales differ by
16 from the first component to the last; models are fitted to them as in a build. Each side decodes
all rows in one call per block or for all blocks, and one row, again and again; the least time
counts. Records come out of all sides, and are compared.

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
from tolpack.compress.entropy.code_histograms import SampledCodes
from tolpack.compress.entropy.code_models import fit_models
from tolpack.runtime.array_types import Bytes

FIELDS, WIDTH = 24, 2048
# Scale, lanes, trellis.
CASES = ((0.25, 4, False), (0.5, 4, False), (1, 4, False), (0.5, 1, False), (0.5, 4, True))


def main() -> None:
    """Encode, time all sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kernels.load()
    found = {
        f"scale {scale}, {lanes} lanes{', trellis' * trellis}": compare(
            scale, lanes, trellis, arguments.rows, arguments.repeats
        )
        for scale, lanes, trellis in CASES
    }
    if arguments.json:
        result = {**described("numpy", "numba", "zstandard"), "rows": arguments.rows, **found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def coded(scale: float, lanes: int, trellis: bool, rows: int) -> tuple[RecordCoder, Bytes]:
    """Return a coder, and records of random codes."""
    spread = scale * np.geomspace(4, 0.25, WIDTH)
    source = np.random.default_rng(0)
    codes = np.rint(source.laplace(size=(rows, FIELDS, WIDTH)) * spread).clip(-120, 120).astype(int)
    fields = ((Part("step8", WIDTH, step=1.0),),) * FIELDS
    sets = None
    if trellis:
        sets = into_sets(codes, lanes)
    levels = codes if sets is None else (codes + sets * np.sign(codes)) >> 1
    flat = [one.reshape(rows, -1) for one in (levels.astype(np.int16), codes)]
    sampled = SampledCodes([flat[0]], [1.0], None if sets is None else [sets.reshape(rows, -1)])
    models, (fitted,) = fit_models(sampled)
    checked = CodeModels.of(models, "models")
    coder = RecordCoder.of(fields, fitted.classes[0], checked, lanes, trellis)
    return coder, coder.records(flat[1])


def into_sets(codes: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """Move codes (rows, fields, width) towards zero into the sets of their states; return those."""
    sets = np.empty(codes.shape, np.uint8)
    stretches = codes.reshape(len(codes), FIELDS, lanes, -1)
    state = np.zeros(stretches.shape[:3], int)
    for step in range(stretches.shape[3]):
        code = stretches[..., step]
        sets.reshape(stretches.shape)[..., step] = state & 1
        code -= np.sign(code) * ((code + state) & 1)
        state = NEXT[state, (code + (state & 1) * np.sign(code)) >> 1 & 1]
    return sets


def compare(scale: float, lanes: int, trellis: bool, rows: int, repeats: int) -> dict[str, float]:
    """Time all sides with the same codes."""
    coder, records = coded(scale, lanes, trellis, rows)
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
    print(scale, lanes, trellis, {key: round(value, 2) for key, value in found.items()}, flush=True)
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
