"""Measurements of packs: perplexity, errors of rows, lookup times, sweeps and studies."""

from tolpack.model.plausibility import LEAST_TOKENS as LEAST_TOKENS
from tolpack.model.plausibility import LEAST_WINDOWS as LEAST_WINDOWS

# See `tolpack.evaluation.study`; here, so that the command line knows them without torch.
STUDY_PARTS = ("precision", "ranks", "trade-off", "layers", "alpha", "spectra", "size")
