"""Packs as plain tables of other formats."""
