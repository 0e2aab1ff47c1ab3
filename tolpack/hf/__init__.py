"""Packs in models of Hugging Face transformers.

Importing this package registers MemoryLLM and Flex-MemoryLLM, and the method ``tolpack``, so that
``from_pretrained`` loads folders whose ``config.json`` names a pack.
"""

from tolpack.hf import memoryllm as memoryllm
from tolpack.hf.loading import load
from tolpack.hf.mounting import mount
from tolpack.hf.quantizer import TolpackConfig
from tolpack.hf.stripping import strip

__all__ = ["TolpackConfig", "load", "mount", "strip"]
