"""Measurements of packs: perplexity, errors of rows, lookup times, sweeps and studies."""

# See `tolpack.evaluation.study`; here, so that the command line knows them without torch.
STUDY_PARTS = ("precision", "ranks", "trade-off", "layers", "alpha", "spectra", "size")
