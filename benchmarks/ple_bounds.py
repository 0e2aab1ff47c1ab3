"""What bounds a pack of a table of per-layer embeddings at half the bytes of 4 bits.

Measured on a model of ``examples/train_ple_model.py``, with the texts of `ple_curve.py`:

* the KL divergence that 4 bits, and `--bits auto` at half their size, cause after tokens of each
  count in the training text;
* the spectrum of each layer's rows: components that hold 50, 90 and 99 % of the energy;
* the rate of ideal coders at the squared error that 4 bits have, by reverse water-filling over
  Gaussian values: with and without counts as weights, in single values and in principal components.

    python benchmarks/ple_bounds.py MODEL --train-text TEXT --text HELDOUT \
        --json benchmarks/results/ple_bounds.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from machine import described
from numpy.typing import NDArray
from ple_curve import Experiment, Setting, judge

from tolpack.runtime.array_types import Floats

BANDS = (0, 1, 8, 64, 512, 4096, 1 << 62)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--train-text", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=200_000, help="of --text that are used")
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(arguments, Path(folder))
        found = bounds(experiment)
    found = {**described("numpy", "torch", "transformers"), **found}
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def bounds(experiment: Experiment) -> dict[str, Any]:
    """Return everything that is measured."""
    counts = np.load(experiment.counts)
    four_bits = experiment.fixed_bits(4)
    made = [four_bits, experiment.auto("auto", 0.5), experiment.auto("auto, no counts", 0.5)]
    layers = experiment.model.config.num_hidden_layers
    return {
        "bands": [band(experiment.table, counts, *limits) for limits in pairwise(BANDS)],
        "divergence": {
            text: divergence_by_count(experiment, ids, made, counts)
            for text, ids in experiment.texts.items()
        },
        "spectra": spectra(experiment.table, counts, layers),
        "bits_at_the_error_of_4_bits": rates(experiment.table, four_bits.table, counts, layers),
    }


def band(table: Floats, counts: NDArray[np.int64], low: int, high: int) -> dict[str, float]:
    """Return the number of rows with counts from `low` to below `high`, and their values' rms."""
    rows = (counts >= low) & (counts < high)
    return {"count": low, "rows": int(rows.sum()), "rms": float(np.sqrt((table[rows] ** 2).mean()))}


def divergence_by_count(
    experiment: Experiment,
    ids: NDArray[np.int64],
    made: list[Setting],
    counts: NDArray[np.int64],
) -> dict[str, Any]:
    """Return the mean KL divergence in nats after tokens of each band, and how many these are."""
    read = counts[ids[:-1]]
    inside = [(read >= low) & (read < high) for low, high in pairwise(BANDS)]
    _, judged = judge(experiment, ids, [one.table for one in made])
    found: dict[str, Any] = {"tokens": [int(part.sum()) for part in inside]}
    for setting, one in zip(made, judged):
        name = f"{setting.family}, {setting.name}"
        found[name] = [float(one.kl[part].mean()) for part in inside if part.any()]
    return found


def spectra(table: Floats, counts: NDArray[np.int64], layers: int) -> dict[str, Any]:
    """Return, by layer, how many components hold a share of the energy."""
    found: dict[str, Any] = {}
    for name, weights in (("rows alike", np.ones(len(table))), ("rows by count", counts)):
        rows = [
            [int(np.searchsorted(np.cumsum(v) / v.sum(), share)) + 1 for share in (0.5, 0.9, 0.99)]
            for v in (components(part, weights)[0] for part in np.split(table, layers, axis=1))
        ]
        found[name] = {"width": table.shape[1] // layers, "components for 50, 90, 99 %": rows}
    return found


def components(part: Floats, weights: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return variances, largest first, and the rows in principal components (no mean removed)."""
    moments = (part * (weights / weights.sum())[:, None]).T @ part
    values, vectors = np.linalg.eigh(moments)
    return values[::-1], part @ vectors[:, ::-1].astype(np.float32)


def rates(
    table: Floats, four_bits: Floats, counts: NDArray[np.int64], layers: int
) -> dict[str, float]:
    """Return bits per value of ideal coders at the squared error that 4 bits have.

    Every row, layer and (in components) coordinate is Gaussian with a variance of its own that the
    coder knows: for single values the mean square of the row's layer; for components that, spread
    over the coordinates as in the whole table.
    """
    alike, error = np.ones(len(table)), np.square(table - four_bits).mean(axis=1)
    found = {}
    for name, weights in (("rows alike", alike), ("rows by count", counts + 0.0)):
        wanted = float((weights * error).sum() / weights.sum())
        share = (weights / weights.sum())[:, None]
        parts = np.split(table, layers, axis=1)
        values = np.concatenate([np.square(p).mean(axis=1, keepdims=True) for p in parts], axis=1)
        found[f"{name}, single values"] = rate(values, share / layers, wanted)
        spread = np.concatenate([spread_of(p, weights) for p in parts], axis=1)
        found[f"{name}, components"] = rate(spread, share / table.shape[1], wanted)
    return found


def spread_of(part: Floats, weights: NDArray[Any]) -> Floats:
    """Return a variance for each row and component: the row's energy, spread as in the table."""
    values, _ = components(part, weights)
    energy = np.square(part).mean(axis=1, keepdims=True)
    spread: Floats = energy * (values / values.mean()).clip(1e-12)
    return spread


def rate(variances: Floats, weights: Floats, wanted: float) -> float:
    """Return bits per value of reverse water-filling with the weighted squared error `wanted`."""
    weights = np.broadcast_to(weights, variances.shape)
    used = (weights > 0) & (variances > 0)
    weighted = (variances[used] * weights[used]).astype(np.float64)
    low, high = 0.0, float(weighted.max())
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(weighted, level).sum() < wanted else (low, level)
    return float(0.5 * np.log2(np.maximum(weighted / level, 1)).sum() / variances.size)


if __name__ == "__main__":
    main()
