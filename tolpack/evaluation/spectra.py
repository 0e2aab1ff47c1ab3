"""Singular values of each layer of the table, and how many components hold its energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolpack.compress.second_moments import measure_moments
from tolpack.runtime.pool import processor_count
from tolpack.runtime.progress import Reporter
from tolpack.sources.protocol import TableSource
from tolpack.workspace.workers import worker_threads


@dataclass(frozen=True, slots=True)
class LayerSpectrum:
    """One layer's rows, every token counted once, around their mean.

    ``singular_values``, descending, over the largest; ``rank_90``, ``rank_99``: components that
    hold 90 and 99 % of the energy (squares of singular values); ``effective_rank``: the exponential
    of the entropy of the shares of energy (Roy and Vetterli, 2007).
    """

    layer: int
    singular_values: tuple[float, ...]
    rank_90: int
    rank_99: int
    effective_rank: float


def layer_spectra(table: TableSource, reporter: Reporter) -> tuple[LayerSpectrum, ...]:
    """Return the spectrum of every layer of a table, in one pass over it."""
    weights = np.full(table.vocab_size, 1 / table.vocab_size)
    spectra = []
    total = table.num_layers * table.vocab_size
    with (
        reporter.phase("spectra", total, "rows") as done,
        worker_threads(processor_count()) as pool,
    ):
        for layer in range(table.num_layers):
            second, mean = measure_moments(table, layer, weights, pool, done)
            energies = np.linalg.eigvalsh(second - np.outer(mean, mean))[::-1].clip(min=0)
            spectra.append(_spectrum(layer, energies))
    return tuple(spectra)


def _spectrum(layer: int, energies: np.ndarray) -> LayerSpectrum:
    total = float(energies.sum())
    if total == 0.0:
        return LayerSpectrum(layer, tuple([0.0] * len(energies)), 0, 0, 0.0)
    shares = energies / total
    sums = np.cumsum(shares)
    positive = shares[shares > 0]
    entropy = -float((positive * np.log(positive)).sum())
    values = np.sqrt(energies / energies[0])
    rank_90, rank_99 = (int(np.searchsorted(sums, share) + 1) for share in (0.9, 0.99))
    return LayerSpectrum(layer, tuple(values.tolist()), rank_90, rank_99, float(np.exp(entropy)))
