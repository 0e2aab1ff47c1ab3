"""The families of models whose tables are recognised."""

from __future__ import annotations

from tolpack.sources.families.family import Family
from tolpack.sources.families.gemma import GEMMA
from tolpack.sources.families.qwen4_exp import QWEN4_EXP

# A checkpoint is of the first one that recognises it.
FAMILIES: tuple[Family, ...] = (GEMMA, QWEN4_EXP)
