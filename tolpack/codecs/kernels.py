"""Compiled loops for decoding rows, through numba where it is installed.

numpy takes one pass over a row for every step of an expression; these take one in all, straight to
the place where the caller wants the row. They give the same bits as the codecs of
`tolpack.codecs.registry`, `tolpack.codecs.zero_runs` and `tolpack.codecs.ans.block_coding`, which
stay the definition.

Compiling one takes a second or two, once on a machine: numba keeps the result beside the package,
or where ``NUMBA_CACHE_DIR`` says. Loading them takes a second. So they are loaded when a lookup is
large enough to gain by it (`load`), and each loop when it is first called. ``TOLPACK_KERNELS=off``
leaves them out.

A fork waits while another thread imports numba or has it compile: both hold locks of their own, of
which nobody could tell the child. Types are named beforehand, so that later calls compile nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tolpack.codecs.registry import CODECS
from tolpack.runtime.fork_safety import fork_delaying_lock

_lock = fork_delaying_lock()


class Kernel:
    """A loop of `tolpack.codecs.compiled_loops`, compiled or loaded when it is first called.

    Parameters
    ----------
    function : callable
        The loop.
    signatures : list
        The types of numba that it is called with.
    """

    def __init__(
        self, function: Callable[..., Any], signatures: list[Any], allocates: bool = True
    ) -> None:
        self._function, self._signatures = function, signatures
        # What makes no arrays needs none of numba's counts of their users, which cost as much as
        # the decoding. numba has no documented option for that.
        self._options: dict[str, Any] = {} if allocates else {"_nrt": False}
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop."""
        compiled = self._compiled
        return (self._compile() if compiled is None else compiled)(*arguments)

    def _compile(self) -> Callable[..., Any]:
        with _lock:
            if self._compiled is None:
                self._compiled = self._compiled_with(self._options)
            return self._compiled

    def _compiled_with(self, options: dict[str, Any]) -> Callable[..., Any]:
        import numba

        def made(**more: Any) -> Callable[..., Any]:
            compiled: Callable[..., Any] = numba.njit(
                self._signatures, nogil=True, **options, **more
            )(self._function)
            return compiled

        try:
            return made(cache=True)
        except (KeyError, TypeError):  # an option that another numba has not
            return self._compiled_with({})
        except RuntimeError:  # nowhere to keep the result
            return made()


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled functions; see `tolpack.codecs.compiled_loops`.

    ``decoders``: by codec, for those that have one; ``zero_runs`` expands ``zstd-runs`` frames;
    ``ans_decode`` and ``ans_encode`` are of `tolpack.codecs.ans`.
    """

    decoders: Mapping[str, Callable[..., bool]]
    zero_runs: Callable[..., int]
    ans_decode: Callable[..., int]
    ans_encode: Callable[..., int]


@cache
def _compile() -> Kernels | None:
    if os.environ.get("TOLPACK_KERNELS") == "off":
        return None
    try:
        from numba import types

        from tolpack.codecs import compiled_loops
        from tolpack.codecs.ans import decode_loops, encode_loops
    except ImportError:
        return None

    def given(dtype: Any, dimensions: int) -> Any:
        """Arrays that are read, whether they may be written to or not."""
        return types.Array(dtype, dimensions, "C", readonly=True)

    records, codes = given(types.uint8, 2), given(types.uint8, 1)
    number, numbers, steps = types.int64, given(types.int64, 1), given(types.float32, 1)
    signatures = [
        types.boolean(records, *[number] * 4, steps, numbers, numbers, types.Array(dtype, 2, "C"))
        for dtype in (types.float32, types.uint16)
    ]
    decoders = {
        name: Kernel(getattr(compiled_loops, codec.loop), signatures)
        for name, codec in CODECS.items()
        if codec.loop is not None
    }
    runs = [number(codes, codes, types.Array(types.uint8, 2, "C"))]
    word = types.Array(types.uint16, 1, "C")
    tables = codes, given(types.uint32, 1), given(types.uint64, 1)
    scratch = [
        types.Array(dtype, 2, "C")
        for dtype in (types.uint8, types.uint64, types.int16, types.uint64)
    ]
    ans_decode = number(
        given(types.uint16, 1), *[numbers] * 3, *[given(types.int32, 1)] * 6, codes, *tables,
        number, given(types.uint64, 1), given(types.int32, 1), number, types.boolean,
        given(types.int64, 2), *scratch,
    )  # fmt: skip
    ans_encode = number(
        given(types.int32, 2), number, numbers, *[given(types.int32, 1)] * 2,
        given(types.int32, 2), given(types.int32, 1), codes,
        given(types.uint32, 2), given(types.int16, 2), numbers, numbers, number, types.boolean,
        word, word, types.Array(types.int64, 1, "C"),
    )  # fmt: skip
    return Kernels(
        decoders,
        Kernel(compiled_loops.expand_zero_runs, runs),
        Kernel(decode_loops.decode, [ans_decode], allocates=False),
        Kernel(encode_loops.encode, [ans_encode]),
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
