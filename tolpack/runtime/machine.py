"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from tolpack.runtime.pool import processor_count
from tolpack.version import __version__

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """Name of the processor, instruction sets that matter here, and processors to use."""
    return f"{_processor()}, {processor_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Versions of tolpack and of `packages`, as they are installed."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"tolpack": __version__, "python": platform.python_version(), **found}


def _processor() -> str:
    """As far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    units = [unit for unit in _INSTRUCTIONS if f" {unit} " in text]
    return f"{names[0] if names else platform.machine()} ({', '.join(units)})"
