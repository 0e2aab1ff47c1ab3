"""Packs in models of Hugging Face transformers."""
