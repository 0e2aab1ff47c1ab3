"""Feed mutated packs to the reader, without a fuzzing engine.

python fuzz/plain.py --inputs 20000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from check import Subject
from mutate import MAX_SIZE, mutate

FORMATS = Path(__file__).parents[1] / "formats" / "v1"


def seeds() -> list[bytes]:
    """Return the golden and malformed packs that a mutation leaves whole, small ones first."""
    paths = [*FORMATS.glob("golden/*.tolpack"), *FORMATS.glob("malformed/*.tolpack")]
    small = [path.read_bytes() for path in paths if path.stat().st_size <= MAX_SIZE]
    return sorted(small, key=lambda data: (len(data), data))


def run(inputs: int, seed: int, folder: Path) -> Counter[str]:
    """Check `inputs` mutations; returns how many were refused, damaged and good."""
    source, starts, found = random.Random(seed), seeds(), Counter[str]()
    subject = Subject(folder / "subject.tolpack")
    for _ in range(inputs):
        data = mutate(source.choice(starts), source.getrandbits(64))
        try:
            found[subject.check(data)] += 1
        except BaseException:
            (folder / "crash-plain").write_bytes(data)
            raise
    subject.close()
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tolpack-fuzz-"))
    start = time.perf_counter()
    found = run(arguments.inputs, arguments.seed, folder)
    folder.rmdir()
    print(f"{dict(found)} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
