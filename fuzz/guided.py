"""Fuzz the reader, guided by coverage of `tolpack.container` and what reads with it.

    pip install atheris
    python fuzz/guided.py --seconds 1800 --seed 1

Two processes with different seeds and one corpus share what they find. The corpus is kept in
``build/fuzz/corpus``; an input that breaks a promise is written to ``build/fuzz/``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tolpack"]):
    from check import Subject

from mutate import mutate
from plain import seeds

FOLDER = Path(__file__).parents[1] / "build" / "fuzz"
_MAX_SIZE = 1 << 16


def main() -> None:
    """Run until the time is up or a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"seed-{number:03}").write_bytes(data)
    subject = Subject(Path(tempfile.mkdtemp(prefix="tolpack-fuzz-")) / "subject.tolpack")

    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        # Mostly behind the checksums; sometimes as the engine would, which knows what it compared.
        if seed % 16 == 0:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(data, seed, max_size)

    options = [
        sys.argv[0], f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}",
        f"-max_len={_MAX_SIZE}", "-timeout=20", "-rss_limit_mb=4096", "-len_control=0",
        "-reload=1", "-print_final_stats=1", f"-artifact_prefix={FOLDER}/", str(corpus),
    ]  # fmt: skip
    atheris.Setup(options, lambda data: subject.check(data) and None, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
