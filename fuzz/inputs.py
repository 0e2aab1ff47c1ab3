"""Feed mutated inputs to the parsers of what is not a pack: tables, checkpoints, texts, settings.

    python fuzz/inputs.py npy --inputs 200000 --seed 1
    python fuzz/inputs.py all --inputs 500

Each parser runs in a child process, so that one that crashes or hangs is a finding and no end: its
input is written to ``build/fuzz/inputs/``, and the run goes on behind it. An input takes more than
a second of computing time, or memory beyond four times its size and 64 MB: a finding too.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parsers import PARSERS, Parser, clear, prepare

FINDINGS = Path(__file__).parents[1] / "build" / "fuzz" / "inputs"
VERDICTS = ("good", "refused", "contained", "broken")
# Seconds of waiting for one input on a busy machine; of computing time it may take one.
_WAIT_SECONDS, _COMPUTING_SECONDS = 60, 1.0
_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that broke a promise: its number, and what happened."""

    number: int
    what: str


def make_input(parser: Parser, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return input `number`: the same for the same seed."""
    source = random.Random(f"{seed} {number}")
    data = source.choice(seeds)
    for _ in range(source.choice((0, 1, 1, 1, 2, 4))):
        change = source.choice(parser.changes)
        try:
            data = change(data, source, seeds)
        except (ValueError, LookupError):  # an earlier change left nothing to change
            data = source.randbytes(16)
    return data[: 1 << 18]


def run(name: str, inputs: int, seed: int, folder: Path) -> tuple[Counter[str], list[Finding]]:
    """Check `inputs` mutations of a parser's seeds; returns verdicts and findings."""
    parser = PARSERS[name]
    seeds = parser.seeds(folder)
    found: list[Finding] = []
    # Shared with the child: the input that it is at, and how often it came to each verdict.
    board = mmap.mmap(-1, 8 * (1 + len(VERDICTS)))
    start = 0
    while start < inputs:
        child = os.fork()
        if child == 0:
            _child(parser, seeds, seed, range(start, inputs), folder, board)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        number = struct.unpack_from("<q", board)[0]
        if status == 0:
            break
        note = folder / "note"
        what = note.read_text("utf-8") if status == 1 and note.exists() else f"died ({status})"
        found.append(Finding(number, what))
        FINDINGS.mkdir(parents=True, exist_ok=True)
        (FINDINGS / f"{name}-{seed}-{number}").write_bytes(make_input(parser, seeds, seed, number))
        (FINDINGS / f"{name}-{seed}-{number}.txt").write_text(what, "utf-8")
        start = number + 1
    counts = struct.unpack_from(f"<{len(VERDICTS)}q", board, 8)
    return Counter(dict(zip(VERDICTS, counts))), found


def _child(
    parser: Parser, seeds: Sequence[bytes], seed: int, numbers: range, folder: Path,
    board: mmap.mmap,
) -> None:  # fmt: skip
    status = 1
    try:
        prepare()
        warnings.simplefilter("ignore")
        for number in numbers:
            struct.pack_into("<q", board, 0, number)
            signal.alarm(_WAIT_SECONDS)
            verdict = _one(parser, make_input(parser, seeds, seed, number), folder)
            place = 8 * (1 + VERDICTS.index(verdict))
            struct.pack_into("<q", board, place, struct.unpack_from("<q", board, place)[0] + 1)
        status = 0
    except BaseException:  # noqa: BLE001 (whatever it was is the finding)
        (folder / "note").write_text(traceback.format_exc(), "utf-8")
    finally:
        os._exit(status)


def _one(parser: Parser, data: bytes, folder: Path) -> str:
    path = folder / parser.name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    held, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, time.process_time()
    verdict = parser.check(path)
    seconds = time.process_time() - begin
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - held
    if seconds > _COMPUTING_SECONDS or more > _MEMORY_BYTES + 4 * len(data):
        raise AssertionError(f"{seconds:.1f} s and {more:,} bytes for {len(data):,}: {verdict}")
    return verdict


def main() -> None:
    """Run from the command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("parser", choices=[*PARSERS, "all"])
    arguments.add_argument("--inputs", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    for name in PARSERS if given.parser == "all" else (given.parser,):
        folder = Path(tempfile.mkdtemp(prefix="tolpack-fuzz-"))
        begin = time.perf_counter()
        counts, findings = run(name, given.inputs, given.seed, folder)
        clear(folder)
        seconds = time.perf_counter() - begin
        print(f"{name}: {dict(counts)}, {len(findings)} findings in {seconds:.0f} s", flush=True)
        for finding in findings[:10]:
            print(f"  input {finding.number}: {finding.what.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
