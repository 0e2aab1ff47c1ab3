"""Packs in models of Hugging Face transformers.

Importing this package registers the method ``tolpack``, so that ``from_pretrained`` loads folders
whose ``config.json`` names a pack.
"""

from tolpack.hf import quantizer as quantizer
from tolpack.hf.loading import load
from tolpack.hf.mounting import mount

__all__ = ["load", "mount"]
