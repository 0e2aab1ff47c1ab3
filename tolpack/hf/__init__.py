"""Packs in models of Hugging Face transformers."""

from __future__ import annotations

from tolpack.hf import memoryllm as memoryllm
