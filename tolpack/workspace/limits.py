"""What a build may use: memory (``--max-memory``) and cores (``--threads``).

The peak of resident memory is the sum of what cannot be made smaller (the libraries, the weights
of two layers, blocks in work, a layer's Gram matrix, numbers per token) and of what can: records
that wait to be written, and arrays kept for later. The second kind shares what the first leaves.
Neither changes a byte of the pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tolpack.errors import ConfigError
from tolpack.runtime.pool import processor_count
from tolpack.runtime.progress import Reporter
from tolpack.runtime.sizes import parse_bytes
from tolpack.sources.ffn import multiplies_bfloat16
from tolpack.sources.mapped_memory import MAPPED_BYTES
from tolpack.sources.protocol import TableSource
from tolpack.workspace.resources import COMPUTE

# Interpreter, torch, scipy and the allocator's slack, as measured (docs/lab-notes.md).
_LIBRARY_BYTES = 480 << 20
# Share that is left to the allocator: freed blocks stay resident for a while.
_SLACK = 0.06
# Arrays of 8 bytes a token that are alive at once: order, counts, weights, map.
_TOKEN_ARRAYS = 8
# Blocks whose second moments are summed in float32 before they go into the float64 sum.
MOMENT_BLOCKS = 4
# Operations of a pass from which bfloat16 is worth a difference: a minute on two cores.
_LARGE_PASS = 1e13
_MIN_BLOCK, _MAX_BLOCK, _MAX_SUPERBLOCK = 512, 2048, 1 << 15
# Values of all fields that a worker reads together.
_READ_BLOCK_VALUES = 1 << 22
# What is kept of a window of text for its backward pass, at least.
_ACTIVATION_BYTES = 1 << 28
# Records of 16 bits at most.
_RECORD_VALUE_BYTES = 2


@dataclass(frozen=True, slots=True)
class BuildNeeds:
    """What a build works out besides encoding.

    ``token_arrays``: whether there are counts, weights or an order of the rows; ``matrices``:
    whether there are matrices of a field's width, such as bases and metrics; ``models``: whether
    models of transformers are run, where there is room for them.
    """

    token_arrays: bool = True
    matrices: bool = True
    models: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory, in bytes, and cores of one build.

    ``block_tokens``: tokens that a worker computes together. ``scratch_bytes``: arrays that may be
    kept in memory. ``record_bytes``: records that may wait. ``decoder_bytes``: what a decoder may
    take for good before it has to be streamed. ``model_bytes``: what a model of transformers may
    take, all in all, 0 where it does not fit; ``activation_bytes``: what is kept of a window of
    text for its backward pass.
    """

    threads: int
    block_tokens: int
    scratch_bytes: int
    record_bytes: int
    decoder_bytes: int
    model_bytes: int = 0
    activation_bytes: int = _ACTIVATION_BYTES

    def superblock_tokens(self, record_bytes: int) -> int:
        """Tokens whose records are held while the layers are computed: a power of two."""
        tokens = self.block_tokens
        while 2 * tokens * record_bytes <= self.record_bytes and tokens < _MAX_SUPERBLOCK:
            tokens *= 2
        return tokens


def block_tokens(hidden_size: int) -> int:
    """Tokens that one worker computes together.

    By the model's width alone, as matrix products of other shapes round differently. Small blocks
    lose time to the weights, which are brought into another order at each product
    (docs/lab-notes.md); for wide models the Gram matrices leave no room for large ones.
    """
    block = _MAX_BLOCK
    while block > _MIN_BLOCK and block * hidden_size**2 > _MAX_BLOCK * 2048**2:
        block //= 2
    return block


def row_block(source: TableSource) -> int:
    """Rows that one worker takes together: fewer of a table that is read and whose rows are
    large.
    """
    block = block_tokens(max(field.width for field in source.fields))
    values = sum(field.width for field in source.fields)
    while not source.weight_bytes and block > 1 and block * values > _READ_BLOCK_VALUES:
        block //= 2
    return block


def choose_compute(
    word: str, source: TableSource, bits: int | str, reporter: Reporter
) -> torch.dtype:
    """Return what the FFNs of `source` are multiplied in; float32 where there are none.

    Parameters
    ----------
    word : str
        ``float32``, ``bfloat16``, or ``auto``: bfloat16 if the table is rounded to 8 bits or fewer,
        the processor has instructions for it, and the pass takes long enough to matter.

    Raises
    ------
    ConfigError
        Another word, or bfloat16 for a table of 16 bits.
    """
    if not source.inner_size:
        return torch.float32
    exact = bits in (16, "lossless")
    if word not in COMPUTE:
        raise ConfigError(f"--compute {word!r} is unknown: expected one of {', '.join(COMPUTE)}")
    if word == "bfloat16" and exact:
        raise ConfigError(f"--compute bfloat16 is less exact than --bits {bits} keeps: use float32")
    operations = 6.0 * source.rows * sum(field.width for field in source.fields)
    large = operations * source.inner_size >= _LARGE_PASS
    faster = word == "bfloat16" or (large and not exact and multiplies_bfloat16())
    if not faster or word == "float32":
        return torch.float32
    reporter.say("multiplying in bfloat16 (--compute float32 is exact, and slower)")
    return torch.bfloat16


def plan_limits(
    sources: Sequence[TableSource],
    max_memory: str | int,
    threads: int | None,
    needs: BuildNeeds | None = None,
) -> Limits:
    """Divide `max_memory` for a build of `sources`, one after the other, on `threads` cores.

    Parameters
    ----------
    sources : sequence of TableSource
        The tables.
    max_memory : str or int
        Largest resident memory, ``"4GB"`` or bytes.
    threads : int or None
        Default: all cores.
    needs : BuildNeeds, optional
        What the build works out; default: everything.

    Raises
    ------
    ConfigError
        It is not enough even for the smallest steps; the message says how much is.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads is {threads}, expected at least 1")
    workers = threads or processor_count()
    total = int(parse_bytes(max_memory, "--max-memory") * (1 - _SLACK))
    needs = needs or BuildNeeds()
    needed_bytes = [_needed_bytes(source, workers, needs) for source in sources]
    largest = max(range(len(needed_bytes)), key=lambda n: sum(needed_bytes[n]))
    fixed, record_floor = needed_bytes[largest]
    free = total - fixed - record_floor
    if free < 0:
        source = sources[largest]
        hidden, inner = max(field.width for field in source.fields), source.inner_size
        needed = math.ceil((fixed + record_floor) / (1 - _SLACK) / 1e8) / 10
        raise ConfigError(
            f"--max-memory {max_memory} is too small for layers of {hidden} × {inner} and "
            f"{source.rows} tokens on {workers} threads: give at least {needed:.1f}GB"
        )
    block = min(row_block(source) for source in sources)
    model = max(map(model_bytes, sources)) if needs.models else 0
    model = model if model <= free else 0
    free -= model
    return Limits(
        workers, block, free // 2, record_floor + free // 4, free // 4,
        model, max(_ACTIVATION_BYTES, model // 5),
    )  # fmt: skip


def model_bytes(source: TableSource) -> int:
    """Return what transformers takes to run the model of `source` in float32; 0 if it cannot.

    A quarter as much as for the weights, and `_ACTIVATION_BYTES` at least, is for backward passes.
    """
    model = source.transformers_model
    if model is None:
        return 0
    return 4 * model.other_values + max(_ACTIVATION_BYTES, model.other_values)


def _needed_bytes(source: TableSource, workers: int, needs: BuildNeeds) -> tuple[int, int]:
    """Return the bytes that cannot be made fewer, and those of the fewest records."""
    hidden, inner = max(field.width for field in source.fields), source.inner_size
    block = row_block(source)
    blocks = workers * block * (3 * inner + 4 * hidden + MOMENT_BLOCKS * hidden) * 4
    gram = (6 + 2 * workers) * 8 * hidden**2 if needs.matrices or inner else 0
    tokens = _TOKEN_ARRAYS * 8 * source.rows if needs.token_arrays or inner else 0
    values = sum(field.width for field in source.fields)
    # Of a table that is read, rows lie beside their records, all fields together.
    rows = 0 if source.weight_bytes else workers * block * values * 4
    weights = 2 * source.weight_bytes  # loading takes as much again
    fixed = _LIBRARY_BYTES + 2 * MAPPED_BYTES + weights + blocks + gram + tokens + rows
    return fixed, block * values * _RECORD_VALUE_BYTES
