"""What every result names: machine, versions, commit."""

from __future__ import annotations

import subprocess

from tolpack.runtime.machine import machine, versions


def described(*packages: str) -> dict[str, object]:
    """Return machine, versions of tolpack and `packages`, and the commit, for a JSON result."""
    return {"machine": machine(), "versions": versions(*packages), "commit": commit()}


def commit() -> str:
    """Commit of the working tree, if there is one."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
