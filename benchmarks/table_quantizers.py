"""Quantizers of others, which the benchmarks compare packs with.

Each takes a float32 table (rows, width) and returns the values that a reader would get, with the
bits per value that codes, scales and codebooks take, and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from tolpack.codecs.bfloat16 import from_bfloat16, to_bfloat16

Floats = NDArray[Any]  # float32 in, float32 out; float64 in between is no harm

# QLoRA (arXiv 2305.14314), appendix E: quantiles of a normal distribution, blocks of 64.
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
NF4_BLOCK = 64
# The four levels that lose least of a standard normal distribution (Lloyd 1982, Max 1960).
LLOYD_MAX_2BIT = np.array([-1.5104176, -0.4527800, 0.4527800, 1.5104176], np.float32)
HADAMARD_GROUP = 128
SUPER_BLOCK, SUB_BLOCK, Q2_SUB_BLOCK = 256, 32, 16
SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def nf4(table: Floats) -> Floats:
    """Round to NF4 in blocks of 64 values with a bfloat16 scale each."""
    blocks = table.reshape(-1, NF4_BLOCK)
    scale = from_bfloat16(to_bfloat16(np.abs(blocks).max(axis=1, keepdims=True)))
    scale = np.where(scale > 0, scale, 1)
    values: Floats = nearest(blocks / scale, NF4) * scale
    return values.reshape(table.shape)


def nearest(values: Floats, levels: Floats) -> Floats:
    """Return the nearest of ascending levels for each value."""
    found: Floats = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return found


# ---- GGML ------------------------------------------------------------------------------------


def ggml(table: Floats, type_name: str) -> tuple[Floats, float]:
    """Return values and bits per value of a GGML type: Q4_K, Q2_K or any that ``gguf`` makes."""
    import gguf

    kind = gguf.GGMLQuantizationType[type_name]
    own = {"Q4_K": q4_k, "Q2_K": q2_k}.get(type_name)
    codes = gguf.quants.quantize(table, kind) if own is None else own(table)
    values = gguf.quants.dequantize(codes, kind).reshape(table.shape)
    return values, 8 * codes.nbytes / table.size


def q4_k(table: Floats) -> NDArray[np.uint8]:
    """Quantize to Q4_K, which the ``gguf`` package reads and does not write.

    A super-block of 256 values holds eight sub-blocks of 32 with 6-bit scales and minima.

    Returns
    -------
    ndarray
        uint8 (rows, 144 · width / 256).
    """
    blocks = table.reshape(-1, SUPER_BLOCK // SUB_BLOCK, SUB_BLOCK).astype(np.float32)
    scale, minimum = q4_k_scales(blocks)
    largest = np.stack([scale.max(axis=1), minimum.max(axis=1)], axis=1)
    steps = (largest / 63).astype(np.float16)
    inverse = np.divide(63, largest, out=np.zeros_like(largest), where=largest > 0)
    scale_codes = np.minimum(np.rint(scale * inverse[:, :1]), 63).astype(np.uint8)
    minimum_codes = np.minimum(np.rint(minimum * inverse[:, 1:]), 63).astype(np.uint8)
    read = steps.astype(np.float32)
    scale = (read[:, :1] * scale_codes)[:, :, None]
    shifted = blocks + (read[:, 1:] * minimum_codes)[:, :, None]
    codes = np.divide(shifted, scale, out=np.zeros_like(blocks), where=scale > 0)
    codes = np.clip(np.rint(codes), 0, 15).astype(np.uint8)
    pairs = codes.reshape(-1, 4, 2, SUB_BLOCK)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, SUPER_BLOCK // 2)
    packed = packed_6bit(scale_codes, minimum_codes)
    return np.concatenate([steps.view(np.uint8), packed, nibbles], 1).reshape(len(table), -1)


def q4_k_scales(blocks: Floats) -> tuple[Floats, Floats]:
    """Return scale and (negated) minimum of each sub-block, (super-blocks, 8) each."""
    weights = np.sqrt(np.square(blocks).mean(axis=2, keepdims=True)) + np.abs(blocks)
    return k_quant_scales(blocks, weights, 15, 14 + 0.1 * np.arange(21))


def k_quant_scales(
    blocks: Floats, weights: Floats, largest: int, spans: Floats, power: int = 2
) -> tuple[Floats, Floats]:
    """Return scale and (negated) minimum of each sub-block, for codes ``0 … largest``.

    The candidates are the range of the values, and least-squares fits to the codes of slightly
    other ranges, which `spans` codes wide. The one with the least weighted error is taken, to the
    `power` 1 or 2. This is the search of ggml's reference quantizer (``make_qkx2_quants``).
    """
    low = np.minimum(blocks.min(axis=2), 0)
    span = blocks.max(axis=2) - low
    span = np.where(span > 0, span, np.inf)  # all values are zero: so are the codes
    scale, minimum = np.where(np.isfinite(span), span / largest, 0), low
    codes = k_quant_codes(blocks, low, largest / span, largest)
    best = weighted_error(blocks, weights, codes, scale, minimum, power)
    for wide in spans:
        codes = k_quant_codes(blocks, low, wide / span, largest)
        fitted = fitted_line(blocks, weights, codes)
        error = weighted_error(blocks, weights, codes, *fitted, power)
        better = error < best
        best = np.where(better, error, best)
        scale, minimum = (np.where(better, new, old) for new, old in zip(fitted, (scale, minimum)))
    return scale, -minimum


def k_quant_codes(blocks: Floats, low: Floats, inverse_scale: Floats, largest: int) -> Floats:
    """Return the codes ``0 … largest`` of values above `low`, as floats."""
    codes: Floats = np.rint((blocks - low[:, :, None]) * inverse_scale[:, :, None])
    return codes.clip(0, largest)


def fitted_line(blocks: Floats, weights: Floats, codes: Floats) -> tuple[Floats, Floats]:
    """Return scale and minimum (at most 0) of the weighted least-squares line over the codes.

    Both are 0 where all codes are equal: that line is worse than the one of the range.
    """
    w, x = weights.sum(axis=2), (weights * blocks).sum(axis=2)
    c, cc = (weights * codes).sum(axis=2), (weights * codes * codes).sum(axis=2)
    xc = (weights * blocks * codes).sum(axis=2)
    determinant = w * cc - c * c
    usable = determinant > 0
    divisor = np.where(usable, determinant, 1)
    scale, minimum = (w * xc - x * c) / divisor, (cc * x - c * xc) / divisor
    through_zero = xc / np.where(cc > 0, cc, 1)
    scale = np.where(minimum > 0, through_zero, scale)
    return np.where(usable, scale, 0), np.where(usable, np.minimum(minimum, 0), 0)


def weighted_error(
    blocks: Floats, weights: Floats, codes: Floats, scale: Floats, minimum: Floats, power: int = 2
) -> Floats:
    """Return the weighted error of each sub-block, absolute (`power` 1) or squared (2)."""
    error = np.abs(scale[:, :, None] * codes + minimum[:, :, None] - blocks)
    total: Floats = (weights * error**power).sum(axis=2)
    return total


def packed_6bit(scales: NDArray[np.uint8], minima: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack eight 6-bit scales and eight 6-bit minima into the 12 bytes of a Q4_K super-block."""
    high_bits = np.concatenate([scales[:, 4:] >> 4, minima[:, 4:] >> 4], axis=1) << 6
    whole = np.concatenate([scales[:, :4], minima[:, :4]], axis=1) | high_bits
    return np.concatenate([whole, (scales[:, 4:] & 15) | (minima[:, 4:] << 4)], axis=1)


def q2_k(table: Floats) -> NDArray[np.uint8]:
    """Quantize to Q2_K, which the ``gguf`` package reads and does not write.

    A super-block of 256 values holds sixteen sub-blocks of 16, each with a 4-bit scale and a 4-bit
    minimum in one byte; then the 2-bit codes; then two float16 steps, of scales and of minima. The
    search is that of ggml's reference quantizer without an importance matrix.

    Returns
    -------
    ndarray
        uint8 (rows, 84 · width / 256).
    """
    blocks = table.reshape(-1, SUPER_BLOCK // Q2_SUB_BLOCK, Q2_SUB_BLOCK).astype(np.float32)
    scale, minimum = k_quant_scales(blocks, np.abs(blocks), 3, 2.5 + 0.1 * np.arange(16), power=1)
    largest = np.stack([scale.max(axis=1), minimum.max(axis=1)], axis=1)
    steps = (largest / 15).astype(np.float16)
    inverse = np.divide(15, largest, out=np.zeros_like(largest), where=largest > 0)
    scale_codes = np.rint(scale * inverse[:, :1]).clip(0, 15).astype(np.uint8)
    minimum_codes = np.rint(minimum * inverse[:, 1:]).clip(0, 15).astype(np.uint8)
    read = steps.astype(np.float32)
    scale = (read[:, :1] * scale_codes)[:, :, None]
    shifted = blocks + (read[:, 1:] * minimum_codes)[:, :, None]
    codes = np.divide(shifted, scale, out=np.zeros_like(blocks), where=scale > 0)
    codes = np.rint(codes).clip(0, 3).astype(np.uint8).reshape(-1, 2, 4, 32)
    packed = (codes << SHIFTS[:, None]).sum(axis=2, dtype=np.uint8)
    parts = [scale_codes | minimum_codes << 4, packed.reshape(-1, 64), steps.view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(len(table), -1)


# ---- 2-bit Hadamard ---------------------------------------------------------------------------


def rotated(groups: Floats) -> Floats:
    """Multiply rows by the normalized Hadamard matrix, which is its own inverse."""
    width = groups.shape[1]
    matrix = hadamard(width).astype(np.float32) / np.float32(np.sqrt(width))
    turned: Floats = groups @ matrix
    return turned


def hadamard_2bit(table: Floats) -> tuple[Floats, float]:
    """Rotate groups of 128 and round to the 2-bit Lloyd–Max levels of a Gaussian.

    A group has one fp16 scale, so a value takes 2.125 bits, as many as TurboQuant-H states.
    """
    groups = rotated(table.reshape(-1, HADAMARD_GROUP))
    spread = np.sqrt(np.square(groups).mean(axis=1, keepdims=True))
    levels = nearest(groups / np.where(spread > 0, spread, 1), LLOYD_MAX_2BIT)
    scale = (groups * levels).sum(1, keepdims=True) / np.square(levels).sum(1, keepdims=True)
    scale = scale.astype(np.float16).astype(np.float32)
    return rotated(levels * scale).reshape(table.shape), 2 + 16 / HADAMARD_GROUP


def hadamard_codebooks(table: Floats, iterations: int = 20) -> tuple[Floats, float]:
    """Rotate groups of 128 and round each to four levels of its own (TurboQuant-H, section 3.2).

    The four fp16 levels of a group take 64 bits, so a value takes 2.5 bits. The description counts
    them as 16.
    """
    groups = rotated(table.reshape(-1, HADAMARD_GROUP))
    levels = np.sqrt(np.square(groups).mean(axis=1, keepdims=True)) * LLOYD_MAX_2BIT
    for _ in range(iterations):
        codes = level_codes(groups, levels)
        for code in range(levels.shape[1]):
            own = codes == code
            count = own.sum(axis=1)
            mean = (groups * own).sum(axis=1) / np.maximum(count, 1)
            levels[:, code] = np.where(count > 0, mean, levels[:, code])
    levels = levels.astype(np.float16).astype(np.float32)
    values = np.take_along_axis(levels, level_codes(groups, levels), axis=1)
    return rotated(values).reshape(table.shape), 2 + 4 * 16 / HADAMARD_GROUP


def level_codes(groups: Floats, levels: Floats) -> NDArray[np.int64]:
    """Return the number of the nearest of each row's ascending levels."""
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    codes = np.zeros(groups.shape, np.int64)
    for middle in middles.T:
        codes += groups > middle[:, None]
    return codes
