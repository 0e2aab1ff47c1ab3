"""What a smaller table of per-layer embeddings (PLE) costs the model that reads it.

For every setting the rows of the table are replaced in memory, in float32, and the model is run on
texts it was not trained on: perplexity, and the KL divergence from the model with its own table, in
nats per token, with top-1 agreement. Windows do not overlap; standard errors take windows as the
sampling unit. The size of a pack counts every byte of the file. Other quantizers count codes,
scales and codebooks, without any container.

    python benchmarks/ple_curve.py MODEL --train-text TEXT --text HELDOUT \
        --json benchmarks/results/ple_curve.json --plot docs/ple-curve.png

MODEL is a folder of ``examples/train_ple_model.py``, and TEXT what it was trained on. Packs are
calibrated on its first 95 %. The 8,192 tokens after them are the second text that judges.
``--reuse`` takes settings from an earlier result for the same model and texts, by name. With
``--plot`` alone the picture of an earlier ``--json`` is drawn again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from numpy.typing import NDArray
from ple_plot import plot
from table_quantizers import ggml, hadamard_2bit, hadamard_codebooks, nf4
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import tolpack
from tolpack.model.perplexity import Score, increase_pct
from tolpack.runtime.array_types import Floats

TENSOR = "model.embed_tokens_per_layer.weight"
HELD_OUT_SHARE = 0.05
# Tokens of the end of the training text that judge.
SECOND_TOKENS = 8192
# Families of packs of `--bits auto`: with the counts of the training text or all rows alike, and
# with or without loss metrics of the model.
AUTO = ("auto", "auto, no counts", "auto, metrics", "auto, metrics, no counts")
# Small, so that the logits stay in the processor's caches.
WINDOWS_PER_BATCH = 2
# The loss metrics are measured on so many pieces of the training text, of so many tokens each.
PIECES, PIECE_TOKENS = 12, 1024
# Sizes of `--bits auto` as shares of the 4-bit pack.
SHARES = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Setting:
    """A table with its size: float32 (tokens, layers · width), as the model's weight."""

    family: str
    name: str
    bits_per_value: float
    table: Floats


class Experiment:
    """The model, its table and the texts."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder, self.checkpoint = folder, arguments.model
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        self.model: Any = model.eval().requires_grad_(False)
        self.module = self.model.get_per_layer_input_embeddings()
        self.table = self.module.weight.numpy().copy()
        self.context = arguments.context
        self.tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
        text = arguments.text.read_text(encoding="utf-8")[: arguments.characters]
        self.texts = {"held out": self.ids(text)}
        self._split(arguments.train_text.read_text(encoding="utf-8"))

    def _split(self, text: str) -> None:
        """Write what calibrates, and keep the tokens after it as a text that judges."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        ids, starts = np.array(encoded.ids), [start for start, _ in encoded.offsets]
        first = len(ids) - round(HELD_OUT_SHARE * len(ids))
        self.texts["end of training text"] = ids[first:][: SECOND_TOKENS + 1]
        self.calibration = self.folder / "calibration.txt"
        self.calibration.write_text(text[: starts[first]], encoding="utf-8")
        self.counts = self.folder / "counts.npy"
        np.save(self.counts, np.bincount(ids[:first], minlength=len(self.table)))
        self.flat = self.folder / "flat.npy"  # a text for the metrics would count as well
        np.save(self.flat, np.ones(len(self.table), np.int64))
        self.pieces = self.folder / "pieces.txt"
        ends = np.linspace(PIECE_TOKENS, first - 1, PIECES, dtype=int)
        pieces = [text[starts[max(end - PIECE_TOKENS, 0)] : starts[end]] for end in ends]
        self.pieces.write_text("\n".join(pieces), encoding="utf-8")

    def ids(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def pack(self, family: str, name: str, **settings: Any) -> Setting:
        """Build a pack and read its rows; the weight is without the multiplier of lookups."""
        path = self.folder / "bench.tolpack"
        tolpack.build(self.checkpoint, path, force=True, **settings)
        with tolpack.open(path) as pack:
            rows = pack.rows(np.arange(len(self.table))).reshape(self.table.shape)
            bits = 8 * pack.nbytes / self.table.size
            weight = (rows / pack.container.table.multiplier).astype(np.float32)
        return Setting(family, name, bits, weight)

    def lossless(self) -> Setting:
        """Return the lossless pack, whose rows are those of the model."""
        pack = self.pack("pack", "lossless", bits="lossless", calibrate=self.calibration)
        if not np.array_equal(pack.table, self.table):
            raise SystemExit("the rows of the lossless pack are not those of the model")
        return pack

    def fixed_bits(self, bits: int) -> Setting:
        """Return a pack of 8 or 4 bits."""
        return self.pack("pack", f"{bits} bits", bits=bits, calibrate=self.calibration)

    def auto(self, family: str, share: float | None) -> Setting:
        """Return a pack of ``--bits auto``: of a share of the 4-bit pack's size, or by default.

        Families with metrics run the model. The others take the table as a plain tensor, so the
        squared error of rows is all that counts.
        """
        given: dict[str, Any] = {} if "no counts" in family else {"frequencies": self.counts}
        if "metrics" in family:
            given["calibrate"] = self.pieces
        else:
            given |= {"tensor": TENSOR, "layers": self.model.config.num_hidden_layers}
        if family == "auto, metrics, no counts":
            given["frequencies"] = self.flat
        if share is None:
            return self.pack(family, "default", bits="auto", **given)
        size = int(share * self.fixed_bits(4).bits_per_value * self.table.size / 8)
        return self.pack(family, f"size × {share:g}", bits="auto", size=size, **given)

    def ggml(self, name: str) -> Setting:
        """Return the table in a GGML type."""
        values, bits = ggml(self.table, name)
        return Setting("GGUF", name, bits, values)

    def hadamard(self, name: str, quantize: Callable[[Floats], tuple[Floats, float]]) -> Setting:
        """Return the table in two bits after a rotation."""
        values, bits = quantize(self.table)
        return Setting("others", name, bits, values)


# Family, name, and what makes the table.
Plan = tuple[str, str, Callable[[], Setting]]


def settings(experiment: Experiment) -> Iterator[Plan]:
    """Yield all settings, in the order in which they are measured."""
    yield "pack", "lossless", experiment.lossless
    for bits in (8, 4):
        yield "pack", f"{bits} bits", partial(experiment.fixed_bits, bits)
    for family in AUTO:
        yield family, "default", partial(experiment.auto, family, None)
        for share in SHARES:
            yield family, f"size × {share:g}", partial(experiment.auto, family, share)
    for name in ("Q8_0", "Q4_0", "Q4_K"):
        yield "GGUF", name, partial(experiment.ggml, name)
    table = experiment.table
    yield "others", "NF4", lambda: Setting("others", "NF4", 4.25, nf4(table))
    for name, quantize in (("Hadamard", hadamard_2bit), ("Hadamard, levels", hadamard_codebooks)):
        yield "others", name, partial(experiment.hadamard, name, quantize)
    yield "others", "no table", lambda: Setting("others", "no table", 0.0, np.zeros_like(table))


# ---- measures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Values of each scored token against the model with its own table, in the text's order."""

    nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]


@torch.inference_mode()
def judge(
    experiment: Experiment, token_ids: NDArray[np.int64], tables: list[Floats]
) -> tuple[NDArray[np.float64], list[Judged]]:
    """Run the model with each table.

    Returns
    -------
    tuple
        The negative log-likelihood of each token with the model's own table, and what the other
        tables make of them.
    """
    base: list[torch.Tensor] = []
    found: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in tables]
    for inputs, targets in batches(token_ids, experiment.context):
        own = log_probabilities(experiment, experiment.table, inputs)
        base.append(-own.gather(1, targets[:, None])[:, 0])
        probabilities, top = own.exp(), own.argmax(1)
        for table, rows in zip(tables, found):
            other = log_probabilities(experiment, table, inputs)
            kl = divergence(probabilities, own - other)
            rows.append((-other.gather(1, targets[:, None])[:, 0], kl, other.argmax(1) == top))
    joined = [[torch.cat(part).numpy() for part in zip(*rows)] for rows in found]
    judged = [Judged(n.astype(float), k.astype(float), a) for n, k, a in joined]
    return torch.cat(base).numpy().astype(float), judged


def divergence(probabilities: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence ``Σ p (d + e^-d - 1)`` of log-probabilities that differ by d.

    It is ``Σ p d``, as both distributions sum to 1. No term is negative, so the sum has no rounding
    error of the size of the log-probabilities.
    """
    return (probabilities * (ratios + torch.expm1(-ratios))).sum(1)


def batches(
    token_ids: NDArray[np.int64], context: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs (windows, length) and targets (windows · length) of windows without overlap."""
    ids = torch.from_numpy(np.ascontiguousarray(token_ids))
    full = (len(ids) - 1) // context
    inputs = ids[: full * context].view(full, context)
    targets = ids[1 : full * context + 1].view(full, context)
    for start in range(0, full, WINDOWS_PER_BATCH):
        part = slice(start, start + WINDOWS_PER_BATCH)
        yield inputs[part], targets[part].flatten()
    if (len(ids) - 1) % context:
        yield ids[full * context : -1][None], ids[full * context + 1 :]


def log_probabilities(experiment: Experiment, table: Floats, inputs: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities (tokens, vocabulary) of the model with the rows of `table`."""
    experiment.module.weight.data = torch.from_numpy(table)
    logits = experiment.model(inputs, use_cache=False).logits
    return F.log_softmax(logits.flatten(0, 1), dim=1)


def windows(values: NDArray[Any], context: int) -> Score:
    """Sum values by window."""
    starts = np.arange(0, len(values), context)
    tokens = np.diff(np.append(starts, len(values)))
    return Score(np.add.reduceat(values.astype(float), starts), tokens)


def mean_and_error(values: NDArray[Any], context: int) -> tuple[float, float]:
    """Return the mean over tokens and its standard error over windows."""
    score = windows(values, context)
    return score.mean_nll_nats, (score.ppl_se or 0.0) / score.ppl


def measures(judged: Judged, base: Score, context: int) -> dict[str, float]:
    """Return what the JSON has for one setting and text."""
    score = windows(judged.nll, context)
    increase, increase_error = increase_pct(score, base)
    kl, kl_error = mean_and_error(judged.kl, context)
    agreement, agreement_error = mean_and_error(judged.agrees, context)
    return {
        "ppl": score.ppl,
        "ppl_se": score.ppl_se or 0.0,
        "ppl_increase_pct": increase,
        "ppl_increase_se_pct": increase_error or 0.0,
        "kl_mean_nats": kl,
        "kl_mean_se_nats": kl_error,
        "kl_median_nats": float(np.median(judged.kl)),
        "kl_p99_nats": float(np.quantile(judged.kl, 0.99)),
        "kl_max_nats": float(judged.kl.max()),
        "top1_agreement_pct": 100 * agreement,
        "top1_agreement_se_pct": 100 * agreement_error,
    }


def measured(experiment: Experiment, made: list[Setting]) -> dict[str, Any]:
    """Judge all settings on all texts."""
    norm = np.linalg.norm(experiment.table)
    points: list[dict[str, Any]] = [
        {
            "family": one.family,
            "name": one.name,
            "bits_per_value": one.bits_per_value,
            "relative_error_pct": float(100 * np.linalg.norm(one.table - experiment.table) / norm),
            "texts": {},
        }
        for one in made
    ]
    baseline = {}
    for text, ids in experiment.texts.items():
        own, judged = judge(experiment, ids, [one.table for one in made])
        base = windows(own, experiment.context)
        baseline[text] = {"tokens": base.total_tokens, "ppl": base.ppl, "ppl_se": base.ppl_se}
        for point, one in zip(points, judged):
            point["texts"][text] = measures(one, base, experiment.context)
    return {"table_values": experiment.table.size, "baseline": baseline, "points": points}


# ---- command ---------------------------------------------------------------------------------


def line(point: dict[str, Any]) -> str:
    """Return one row of the table on the terminal."""
    parts = [f"{point['family']:8} {point['name']:22} {point['bits_per_value']:6.3f} bits"]
    for found in point["texts"].values():
        parts.append(
            f"{found['ppl_increase_pct']:+8.3f} ± {found['ppl_increase_se_pct']:.3f} %  "
            f"KL {found['kl_mean_nats']:.6f} ± {found['kl_mean_se_nats']:.6f}  "
            f"top-1 {found['top1_agreement_pct']:.2f} %"
        )
    return "  |  ".join(parts)


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--train-text", type=Path)
    parser.add_argument("--text", type=Path, help="a text that was not trained on")
    parser.add_argument("--characters", type=int, default=200_000, help="of --text that are used")
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--reuse", type=Path, help="an earlier result")
    parser.add_argument("--only", help="families to measure, with semicolons between them")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.model is not None:
        with tempfile.TemporaryDirectory() as folder:
            found = run(arguments, Path(folder))
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(json.loads(arguments.json.read_text(encoding="utf-8")), arguments.plot)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure what is not in the earlier result, and return both in order of size."""
    experiment = Experiment(arguments, folder)
    known: list[dict[str, Any]] = []
    if arguments.reuse:
        known = json.loads(arguments.reuse.read_text(encoding="utf-8"))["points"]
    names = {(one["family"], one["name"]) for one in known}
    only = arguments.only.split(";") if arguments.only else None
    made = [
        make()
        for family, name, make in settings(experiment)
        if (family, name) not in names and (only is None or family in only)
    ]
    found = measured(experiment, made)
    found["points"] = sorted(found["points"] + known, key=lambda one: -one["bits_per_value"])
    for point in found["points"]:
        print(line(point), flush=True)
    return {**described("numpy", "torch", "transformers", "gguf", "zstandard"), **found}


if __name__ == "__main__":
    main()
