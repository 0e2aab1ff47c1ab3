"""Many packs of one checkpoint, and what its layers are worth: ``eval --sweep`` and ``study``."""

# Of a study, see `tolpack.evaluation.study`.
PARTS = ("precision", "ranks", "trade-off", "layers", "alpha", "spectra", "size")
