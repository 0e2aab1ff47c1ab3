"""Rows of packs as plain tables of other formats."""
