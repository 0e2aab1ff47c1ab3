"""Resources that a user grants a build. Without torch: the command line shows the defaults."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MAX_MEMORY = "4GB"
COMPUTE = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Resources:
    """Memory, cores, and the dtype that FFNs are multiplied in; see `tolpack.build`."""

    compute: str = "auto"
    max_memory: str | int = DEFAULT_MAX_MEMORY
    threads: int | None = None
