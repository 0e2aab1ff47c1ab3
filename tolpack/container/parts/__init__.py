"""Packs whose bytes lie in several files, and the manifest that names these (SPEC §15)."""
