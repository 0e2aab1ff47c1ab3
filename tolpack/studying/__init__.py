"""Many packs of one checkpoint, and what its layers are worth: ``eval --sweep`` and ``study``."""
