"""Records expanded by torch, on whatever device they are.

The arithmetic is that of the codecs of `tolpack.codecs.registry`, so float32 values are the same
bits. 4 to 16 bits of a value travel to the device, and not 32.
"""

from __future__ import annotations

import numpy as np
import torch

from tolpack.codecs.codec import Codec
from tolpack.codecs.encodings import Part
from tolpack.codecs.record import RecordLayout, Run
from tolpack.codecs.registry import CODECS
from tolpack.runtime.array_types import Bytes


def check_scales(records: Bytes, layout: RecordLayout) -> None:
    """Raise `FormatError` (``scale-not-finite``) if a scale of `records` is NaN or infinite.

    On the host, before they are sent: asking the device would wait for it.
    """
    layout.check_scales(records)


def expand(records: torch.Tensor, layout: RecordLayout) -> torch.Tensor:
    """Decode records.

    Parameters
    ----------
    records : torch.Tensor
        uint8 (n, record_bytes), on any device; their scales are finite.
    layout : RecordLayout
        How they are laid out.

    Returns
    -------
    torch.Tensor
        float32 (n, stored values of all kept fields), field after field, on the same device.
    """
    starts = np.cumsum([0, *layout.stored_values]).tolist()
    out = torch.empty(len(records), starts[-1], dtype=torch.float32, device=records.device)
    for run in layout.runs:
        values = _values(records, run)
        if layout.stored_values == (run.part.values,) * run.count:  # all there is
            return values.flatten(1)
        for n in range(run.count):
            start = starts[run.first + n] + run.value_offset
            out[:, start : start + run.part.values] = values[:, n]
    return out


def _values(records: torch.Tensor, run: Run) -> torch.Tensor:
    """Values of a run: float32 (n, fields, values)."""
    part, codec = run.part, CODECS[run.part.codec]
    codes = _cut(records, run.code_offset_bytes, run.count, part.code_bytes)
    if codec.scale_dtype is not None:
        scales = _cut(records, run.scale_offset_bytes, run.count, part.scale_bytes)
        return _scaled(codes, _scales(scales, codec.scale_dtype), part, codec)
    values = _numbers(codes, part.values, codec)
    if not codec.has_step:
        return values
    return values * torch.tensor(run.steps, dtype=torch.float32, device=records.device)[:, None]


def _scales(stored: torch.Tensor, dtype: str) -> torch.Tensor:
    """Scales as numbers: float32 (n, fields, groups) from uint8 (n, fields, bytes)."""
    if dtype != "float8_e8m0fnu":
        return stored.view(getattr(torch, dtype)).to(torch.float32)
    bits = stored.to(torch.int32) << 23  # before torch 2.7 there is no such dtype
    return bits.masked_fill_(bits == 0, 1 << 22).view(torch.float32)  # 2^-127 is subnormal


def _scaled(codes: torch.Tensor, scale: torch.Tensor, part: Part, codec: Codec) -> torch.Tensor:
    """Codes times the scales of their groups: the full groups together, then a shorter last one."""
    group = int(part.group_size or part.values)
    found, at_code = [], 0
    for number, start in enumerate(range(0, part.values, part.values // group * group or group)):
        size = min(group, part.values - start)
        groups = (part.values - start) // size if number == 0 else 1
        taken = groups * -(-size * codec.code_bits // 8)
        own = codes[:, :, at_code : at_code + taken].reshape(*codes.shape[:2], groups, -1)
        first = start // group
        values = _numbers(own, size, codec) * scale[:, :, first : first + groups, None]
        found.append(values.flatten(2))
        at_code += taken
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _numbers(codes: torch.Tensor, count: int, codec: Codec) -> torch.Tensor:
    """Codes as numbers: float32 (…, count) from uint8 (…, bytes)."""
    if codec.code_dtype == "int4":
        high = codes >> 4
        both = torch.cat([codes & 15, high[..., : count - codes.shape[-1]]], dim=-1)
        return (both.to(torch.int8) - 8).to(torch.float32)
    return codes.view(getattr(torch, codec.code_dtype)).to(torch.float32)


def _cut(records: torch.Tensor, offset: int, count: int, size: int) -> torch.Tensor:
    """Fields' bytes: uint8 (n, fields, size), a copy, aligned for any dtype."""
    part = records[:, offset : offset + count * size]
    return part.clone(memory_format=torch.contiguous_format).view(len(records), count, size)
