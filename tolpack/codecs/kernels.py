"""Compiled loops for decoding rows, through numba where it is installed.

numpy takes one pass over a row for every step of an expression; these take one in all, straight to
the place where the caller wants the row. They give the same bits as `tolpack.codecs.values` and
`tolpack.codecs.runs`, which stay the definition. Compiling takes seconds, once on a machine
(numba keeps the result beside the package, or where ``NUMBA_CACHE_DIR`` says); loading it takes a
second: so it happens when a lookup is large enough to want it (`load`). ``TOLPACK_KERNELS=off``
leaves them out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled functions; see `tolpack.codecs.loops`."""

    int8: Callable[..., bool]
    int4: Callable[..., bool]
    step8: Callable[..., None]
    step16: Callable[..., None]
    runs: Callable[..., int]


@cache
def _compile() -> Kernels | None:
    if os.environ.get("TOLPACK_KERNELS") == "off":
        return None
    try:
        import numba

        from tolpack.codecs import loops
    except ImportError:
        return None

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # nowhere to keep the result
            return numba.njit(nogil=True)(function)

    return Kernels(
        int8=compiled(loops.decode_int8),
        int4=compiled(loops.decode_int4),
        step8=compiled(loops.decode_step8),
        step16=compiled(loops.decode_step16),
        runs=compiled(loops.decode_runs),
    )


_loaded: list[Kernels | None] = []


def load() -> Kernels | None:
    """Return the compiled functions, or ``None`` without numba."""
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_compile())
    return _loaded[0]


def loaded() -> Kernels | None:
    """Return the compiled functions if they were loaded before."""
    return _loaded[0] if _loaded else None
