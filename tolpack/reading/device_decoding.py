"""Records expanded by torch, on whatever device they are.

The same arithmetic as `tolpack.codecs.values`, so float32 values are the same bits: what travels to
the device are the 4 to 16 bits of a value, and not 32.
"""

from __future__ import annotations

import numpy as np
import torch

from tolpack.codecs.record import RecordLayout, Run
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
        for n in range(run.count):
            start = starts[run.first + n] + run.value_offset
            out[:, start : start + run.part.values] = values[:, n]
    return out


def _values(records: torch.Tensor, run: Run) -> torch.Tensor:
    """Values of a run: float32 (n, fields, values)."""
    part, codec = run.part, run.part.codec
    codes = _cut(records, run.code_offset_bytes, run.count, part.code_bytes)
    if codec in ("f32", "f16", "bf16"):
        return codes.view(_FLOATS[codec]).to(torch.float32)
    if codec in ("step8", "step16"):
        whole = codes.view(torch.int8 if codec == "step8" else torch.int16)
        steps = torch.tensor(run.steps, dtype=torch.float32, device=records.device)
        return whole.to(torch.float32) * steps[:, None]
    scales = _cut(records, run.scale_offset_bytes, run.count, part.scale_bytes)
    group = int(part.group_size or part.values)
    if codec == "f8e4m3":
        scale = scales.view(torch.float32).repeat_interleave(group, dim=2)
        return codes.view(torch.float8_e4m3fn).to(torch.float32) * scale[:, :, : part.values]
    scale = scales.view(torch.bfloat16).to(torch.float32)
    found, at_code = [], 0
    for number, start in enumerate(range(0, part.values, part.values // group * group or group)):
        size = min(group, part.values - start)
        groups = (part.values - start) // size if number == 0 else 1
        taken = groups * (size if codec == "int8" else -(-size // 2))
        own = codes[:, :, at_code : at_code + taken].reshape(len(codes), run.count, groups, -1)
        first = start // group
        whole = own.view(torch.int8) if codec == "int8" else _nibbles(own, size)
        values = whole.to(torch.float32) * scale[:, :, first : first + groups, None]
        found.append(values.flatten(2))
        at_code += taken
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _nibbles(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Signed 4-bit codes of groups of `size`: int8 (…, size)."""
    high = packed >> 4
    both = torch.cat([packed & 15, high[..., : size - packed.shape[-1]]], dim=-1)
    return both.to(torch.int8) - 8


def _cut(records: torch.Tensor, offset: int, count: int, size: int) -> torch.Tensor:
    """Fields' bytes: uint8 (n, fields, size), a copy, aligned for any dtype."""
    part = records[:, offset : offset + count * size]
    return part.clone(memory_format=torch.contiguous_format).view(len(records), count, size)


_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
