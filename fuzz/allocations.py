"""Let every allocation of a reader fail in turn: opening, a lookup of all rows, a verification.

    python fuzz/allocations.py formats/v1/golden/everything.tolpack --step 1

Each failing allocation has a forked child of its own. It counts as ``error`` if it ends in an error
of tolpack's, as ``caller`` if the memory was missing in the caller's own frame, as ``died`` if a
library crashed (numpy does where a few bytes are missing: in scalars, and in indexing by arrays);
``foreign`` and ``wrong`` are findings. The path is given as text: of a `Path` the interpreter says
that it is none where it lacks memory to look. CPython only: it takes `_testcapi`.
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

import tolpack
from tolpack.errors import TolpackError

OUTCOMES = ("right", "error", "caller", "foreign", "wrong")
# Behind the last allocation of a run nothing fails any more.
_RIGHT_IN_A_ROW = 20
_SECONDS = 60


def main() -> None:
    """Print how often each outcome came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--step", type=int, default=1, help="every so many allocations")
    arguments = parser.parse_args()
    found = outcomes(arguments.pack, arguments.step)
    print(dict(found))
    sys.exit(1 if found["foreign"] or found["wrong"] else 0)


def outcomes(path: Path, step: int) -> collections.Counter[str]:
    """Count outcomes, letting every `step`-th allocation fail."""
    with tolpack.open(path) as pack:
        expected = pack.rows(np.arange(pack.vocab_size))
        pack.verify()
    gc.disable()
    found: collections.Counter[str] = collections.Counter()
    number = in_a_row = 0
    while in_a_row < _RIGHT_IN_A_ROW:
        number += step
        outcome = one(path, expected, number)
        in_a_row = in_a_row + 1 if outcome == "right" else 0
        found[outcome] += 1
    return found


def one(path: Path, expected: np.ndarray, number: int) -> str:
    """Read `path` in a child in which allocation `number` fails."""
    child = os.fork()
    if not child:
        signal.alarm(_SECONDS)
        os._exit(OUTCOMES.index(read(path, expected, number)))
    _, status = os.waitpid(child, 0)
    return "died" if os.WIFSIGNALED(status) else OUTCOMES[os.WEXITSTATUS(status)]


def read(path: Path, expected: np.ndarray, number: int) -> str:
    """Open, look up and verify; returns the outcome."""
    import _testcapi

    ids = np.arange(len(expected))
    _testcapi.set_nomemory(number, number + 1)
    try:
        with tolpack.open(str(path)) as pack:
            rows = pack.rows(ids)
            pack.verify()
    except TolpackError:
        return "error"
    except MemoryError as error:
        frames = traceback.extract_tb(error.__traceback__)
        return "caller" if frames[-1].filename in (__file__, tolpack.__file__) else "foreign"
    except Exception:  # noqa: BLE001 (whatever it is, it is a finding)
        traceback.print_exc()
        return "foreign"
    finally:
        _testcapi.remove_mem_hooks()
    return "right" if np.array_equal(rows, expected) else "wrong"


if __name__ == "__main__":
    main()
