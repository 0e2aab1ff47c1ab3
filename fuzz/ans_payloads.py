"""Feed payloads to the coder of frame ``ans``, through numpy and the compiled loops alike.

python fuzz/ans_payloads.py --inputs 1000000 --seed 1

Models, classes, fields and payloads are random; payloads are made by the encoder and then changed,
or are noise. Both decoders must give the same codes or both refuse (`FormatError`, code ``frame``),
and what they give must come back through the encoder.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tolpack.codecs import kernels
from tolpack.codecs.ans.alphabets import SLOTS
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import Part
from tolpack.errors import FormatError

Source = np.random.Generator
# Payloads for each coder: to make its tables takes as long as to decode some.
PAYLOADS = 64


class Broken(AssertionError):
    """A promise that the coder did not keep."""


def random_models(source: Source) -> CodeModels | None:
    """Models of random shapes, peaked or flat; ``None`` if they were changed and refused, or leave
    no slot to the escape of groups.
    """
    count, largest = int(source.integers(2, 6)), int(source.choice([1, 2, 5, 127]))
    array = np.zeros((count, 2 * largest + 3), np.uint16)
    for row in array:
        weights = source.exponential(size=len(row) - 1) ** source.choice([0.5, 2, 8])
        row[1:] = np.floor(weights / weights.sum() * SLOTS)
        row[source.integers(1, len(row))] += SLOTS - int(row[1:].sum())
        row[0] = source.choice([0, 256, 512, 768, 1, 8])
    changed = source.random() < 0.05
    if changed:
        array[source.integers(count), source.integers(array.shape[1])] ^= 1 << source.integers(16)
    try:
        return CodeModels.of(array, "models")
    except FormatError as error:
        if error.code != "code-models" or not (changed or "leave" in str(error)):
            raise
        return None


def random_coder(source: Source) -> RecordCoder | None:
    """A coder of up to three small fields; ``None`` if its models were refused."""
    models = random_models(source)
    if models is None:
        return None
    fields = tuple(
        tuple(
            Part(str(source.choice(["step8", "step16"])), int(source.integers(1, 9)), step=1.0)
            for _ in range(source.integers(1, 3))
        )
        for _ in range(source.integers(1, 4))
    )
    values = sum(part.values for field in fields for part in field)
    trellis = bool(source.random() < 0.5)
    classes = source.integers(0, len(models.array) - trellis, values).astype(np.uint8)
    return RecordCoder.of(fields, classes, models, int(source.choice([1, 1, 2, 4, 4, 32])), trellis)


def random_payload(source: Source, coder: RecordCoder, rows: int, good: list[bytes]) -> bytes:
    """Noise as a payload may be, or a good one of `good` with some change."""
    lanes = coder.rows.lanes
    if not good or source.random() < 0.3:
        size = int(source.integers(0, coder.rows.longest_payload(rows) // 2 + 2))
        states = source.integers(1 << 16, 1 << 18, lanes).astype("<u4").tobytes()
        return states + source.bytes(size // 2 * 2)
    payload = bytearray(good[source.integers(len(good))])
    for _ in range(source.integers(0, 3)):
        if not payload:
            break
        at = int(source.integers(len(payload)))
        match source.integers(5):
            case 0:
                payload[at] ^= 1 << int(source.integers(8))
            case 1:
                payload[at] = int(source.choice([0, 1, 255]))
            case 2:
                del payload[at:]
            case 3:
                payload += source.bytes(int(source.integers(1, 5)))
            case _:
                payload[at : at + 2] = b""
    return bytes(payload)


def decoded(coder: RecordCoder, payload: bytes, rows: int, compiled: bool) -> bytes | None:
    """Return the records of a payload, or ``None`` if it was refused."""
    with patch.object(kernels, "_loaded", [kernels._compile() if compiled else None]):
        try:
            return coder.decode_records([payload], [rows]).tobytes()
        except FormatError as error:
            if error.code != "frame":
                raise
            return None


def check(coder: RecordCoder, payload: bytes, rows: int) -> str:
    """Return ``"good"`` or ``"refused"``; raises `Broken` if a promise is."""
    plain, compiled = (decoded(coder, payload, rows, number) for number in (False, True))
    if plain != compiled:
        raise Broken("numpy and the compiled loops differ")
    if plain is None:
        return "refused"
    records = np.frombuffer(plain, np.uint8).reshape(rows, coder.record_bytes)
    with patch.object(kernels, "_loaded", [kernels._compile()]):
        again = coder.encode_records(records, rows)
    if decoded(coder, again[0], rows, True) != plain:
        raise Broken("codes do not come back through the encoder")
    return "good"


def good_payloads(source: Source, coder: RecordCoder, rows: int) -> list[bytes]:
    """Payloads of small, and of any codes that the models have; few if there are no escapes."""
    found: list[bytes] = []
    noise = [
        random_payload(source, coder, rows, []) + source.bytes(2 * coder.rows.values)
        for _ in range(2)
    ]
    for _ in range(6):
        spread = float(source.choice([0.3, 3.0, 100.0]))
        codes = np.rint(source.normal(size=(rows, coder.rows.values)) * spread).astype(np.int16)
        if coder.rows.trellis:
            codes[:] = 0 if source.random() < 0.2 else _in_sets(coder, codes)
        try:
            found += coder.encode_records(coder.records(np.clip(codes, -126, 126)), rows)
        except ValueError:  # no symbol, and no escape
            continue
    return found or noise


def _in_sets(coder: RecordCoder, codes: np.ndarray) -> np.ndarray:
    """Even codes that leave every state at 0: levels are even in the set of the even codes."""
    return codes // 4 * 4


def run(inputs: int, seed: int, log: Path | None = None) -> Counter[str]:
    """Check `inputs` payloads; returns how many were good and refused, models among them."""
    source, found, start = np.random.default_rng(seed), Counter[str](), time.monotonic()
    while found["good"] + found["refused"] < inputs:
        coder = random_coder(source)
        if coder is None:
            found["models refused"] += 1
            continue
        rows = int(source.integers(1, 3))
        with patch.object(kernels, "_loaded", [kernels._compile()]):
            good = good_payloads(source, coder, rows)
        for _ in range(PAYLOADS):
            payload = random_payload(source, coder, rows, good)
            found[check(coder, payload, rows)] += 1
        if log is not None:
            log.write_text(f"{dict(found)} in {time.monotonic() - start:.0f} s\n")
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file for the counts so far")
    arguments = parser.parse_args()
    print(dict(run(arguments.inputs, arguments.seed, arguments.log)))


if __name__ == "__main__":
    main()
