"""Parts of a record, and values of codes (SPEC.md, sections 6 and 7): a part of `decode.py`."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CODECS = {  # §7: bits of a code, bytes of a scale
    "f32": (32, 0), "f16": (16, 0), "bf16": (16, 0), "f8e4m3": (8, 4),
    "int8": (8, 2), "int4": (4, 2), "step8": (8, 0), "step16": (16, 0),
    "f8e4m3-e8m0": (8, 1), "f8e4m3-step": (8, 0), "q8_0": (8, 2), "q4_0": (4, 2),
}  # fmt: skip


def ordered_parts(encoding: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:  # §6
    fields = [field["parts"] for field in encoding["fields"]]
    depth = max(len(parts) for parts in fields)
    return [(f, p[n]) for n in range(depth) for f, p in enumerate(fields) if n < len(p)]


def scale_bytes(part: dict[str, Any]) -> int:
    groups = ceil(part["values"] / part["group_size"]) if part.get("group_size") else 0
    return int(groups * CODECS[part["codec"]][1])


def code_bytes(part: dict[str, Any]) -> int:
    bits: float = part["values"] * CODECS[part["codec"]][0]
    return ceil(bits / 8)


def record_bytes(encoding: dict[str, Any]) -> int:
    return sum(scale_bytes(part) + code_bytes(part) for _, part in ordered_parts(encoding))


def decode(scales: Array, codes: Array, part: dict[str, Any]) -> Array:  # §7
    codec, values = part["codec"], part["values"]
    plain = {"f32": "<f4", "f16": "<f2", "step8": "i1", "step16": "<i2"}.get(codec)
    if plain:
        return codes.view(plain).astype(np.float32) * np.float32(part.get("step") or 1)
    if codec == "bf16":
        return bfloat16(codes)
    if codec == "f8e4m3-step":
        return unpack(codec, codes, values) * np.float32(part["step"])
    scale, pieces, at = scale_values(codec, scales), [], 0
    for group, start in enumerate(range(0, values, part["group_size"])):
        size = min(part["group_size"], values - start)
        length = ceil(size / 2) if codec in ("int4", "q4_0") else size
        pieces.append(unpack(codec, codes[at : at + length], size) * scale[group])
        at += length
    return np.concatenate(pieces)


def scale_values(codec: str, scales: Array) -> Array:
    if codec == "f8e4m3-e8m0":
        return np.array([2.0 ** (int(scale) - 127) for scale in scales], np.float32)
    dtype = {"f8e4m3": "<f4", "q8_0": "<f2", "q4_0": "<f2"}.get(codec)
    return scales.view(dtype).astype(np.float32) if dtype else bfloat16(scales)


def unpack(codec: str, codes: Array, size: int) -> Array:
    if codec in ("int8", "q8_0"):
        return codes.view(np.int8).astype(np.float32)
    if codec in ("int4", "q4_0"):
        return np.concatenate([codes & 15, codes >> 4])[:size].astype(np.float32) - np.float32(8)
    return np.array([e4m3(int(code)) for code in codes], np.float32)


def e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa / 8 * 2**-6)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def bfloat16(data: Array) -> Array:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
