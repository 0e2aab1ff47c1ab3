"""The families of models whose tables are recognised."""

from __future__ import annotations

from tolpack.sources.families.engram import ENGRAM
from tolpack.sources.families.exl3 import EXL3
from tolpack.sources.families.family import Family
from tolpack.sources.families.gemma import GEMMA
from tolpack.sources.families.longcat import LONGCAT
from tolpack.sources.families.meki import MEKI
from tolpack.sources.families.mole import MOLE
from tolpack.sources.families.mtplx import MTPLX
from tolpack.sources.families.qwen4_exp import QWEN4_EXP
from tolpack.sources.families.stem import STEM

# A checkpoint is of the first one that recognises it: MTPLX and EXL3 before the model whose table
# they hold.
FAMILIES: tuple[Family, ...] = (
    GEMMA, MTPLX, EXL3, QWEN4_EXP, ENGRAM, LONGCAT, MEKI, STEM, MOLE,
)  # fmt: skip
