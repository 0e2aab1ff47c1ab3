"""What every result names: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path


def described(*packages: str) -> dict[str, object]:
    """Return machine, versions of tolpack and `packages`, and the commit, for a JSON result."""
    return {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: importlib.metadata.version(name) for name in ("tolpack", *packages)},
        "commit": commit(),
    }


def processor() -> str:
    """Name and instruction sets that matter here, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {unit} " in text]
    return f"{names[0] if names else platform.machine()} ({', '.join(units)})"


def commit() -> str:
    """Commit of the working tree, if there is one."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
