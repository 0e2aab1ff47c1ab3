"""Perplexity against size of packs and of other quantizers of the same table.

Every setting is scored on the same held-out text, paired window by window with the checkpoint. The
size of a pack counts every byte of the file. Other quantizers round the table in memory, and their
size counts codes, scales and bases without any overhead.

    python benchmarks/rate_distortion.py CHECKPOINT --calibrate TEXT --text HELDOUT \
        --tokenizer tokenizer.json --json result.json --plot curve.png

``--text``, and ``--other`` of another domain, are evaluation texts and serve nothing else.
``--only`` measures the families whose names contain it. Results other than those of ``--bits auto``
do not change, so ``--reuse`` can take them from an earlier result for the same files. ``gguf`` and
``matplotlib`` are used if they are installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from table_quantizers import nf4

import tolpack
from tolpack.model.decoder import Decoder
from tolpack.model.language_model import Memory
from tolpack.model.perplexity import increase_pct, score
from tolpack.model.text import read_token_ids
from tolpack.reading.code_rates import code_rates
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

LIMITS = ("0.15%", "0.35%", "0.75%", "1.5%", "3%", "6%", "12%")


@dataclass(frozen=True)
class Point:
    """One setting: its family and name, size, and increase in percent with its standard error; both
    again for the other text, if there is one. For entropy-coded packs also how many times smaller
    they would be if their codes took their adaptive entropy, and the Gaussian R(D).
    """

    family: str
    name: str
    bytes: int
    ratio_fp16: float
    increase_pct: float
    increase_se_pct: float
    other_increase_pct: float | None = None
    other_increase_se_pct: float | None = None
    entropy_ratio_fp16: float | None = None
    gaussian_ratio_fp16: float | None = None


class Experiment:
    """Scores tables and packs of one checkpoint."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        checkpoint = open_checkpoint(arguments.checkpoint)
        self.decoder = Decoder(checkpoint)
        config = checkpoint.config
        self.context = config.max_position_embeddings or 512
        texts = [arguments.text, *([arguments.other] if arguments.other else [])]
        self.texts = [
            read_token_ids(text, config.vocab_size, arguments.tokenizer) for text in texts
        ]
        self.bases = [score(self.decoder, tokens, self.context) for tokens in self.texts]
        everything = np.arange(config.vocab_size)
        exact = self.build(rank="none", bits=16)
        with tolpack.open(exact) as pack:
            self.table = pack.rows(everything)
        self.fp16_bytes = 2 * self.table.size

    def build(self, **settings: Any) -> Path:
        """Build a pack with `settings`, all of them with the calibration text."""
        given = self.arguments
        result = tolpack.build(
            given.checkpoint, self.folder / "bench.tolpack", calibrate=given.calibrate,
            tokenizer=given.tokenizer, force=True, **settings,
        )  # fmt: skip
        return Path(result.path)

    def pack(self, family: str, name: str, **settings: str | int) -> Point:
        """Build and score a pack."""
        path = self.build(**settings)
        with tolpack.open(path) as pack:
            point = self._point(family, name, pack.nbytes, ToLMemory(pack))
            entropy, gaussian = self.references(pack)
            return replace(point, entropy_ratio_fp16=entropy, gaussian_ratio_fp16=gaussian)

    def references(self, pack: tolpack.Pack) -> tuple[float | None, float | None]:
        """What the ratio would be with ideal coders, everything else being as it is."""
        container = pack.container
        rates = code_rates(container)
        if rates is None:
            return None, None
        values = [container.table.rows * one.stored_values for one in container.table.kept_fields]
        rest = pack.nbytes - sum(view.length_bytes for view in container.chunks)
        entropy = sum(n * rate.entropy_bits / 8 for n, rate in zip(values, rates))
        gaussian = sum(n * rate.gaussian_bits / 8 for n, rate in zip(values, rates))
        return self.fp16_bytes / (rest + entropy), self.fp16_bytes / (rest + gaussian)

    def rounded(self, family: str, name: str, table: np.ndarray, size: float) -> Point:
        """Score a table that was rounded in memory, and would take `size` bytes."""
        rows = torch.from_numpy(np.ascontiguousarray(table, np.float32))
        return self._point(family, name, round(size), lambda layer, ids: rows[ids, layer])

    def _point(self, family: str, name: str, size: int, memory: Memory) -> Point:
        decoder = self.decoder.with_memory(memory)
        numbers: list[float] = []
        for tokens, base in zip(self.texts, self.bases):
            numbers += increase_pct(score(decoder, tokens, self.context), base)
        return Point(family, name, size, self.fp16_bytes / size, *numbers)


def points(experiment: Experiment) -> Iterator[Point]:
    """Measure everything that was asked for, one after the other."""
    only = experiment.arguments.only
    for rank in ("auto", "none"):
        family = f"--bits auto --rank {rank}"
        for limit in experiment.arguments.limits.split(",") if only in family else ():
            yield experiment.pack(family, limit, rank=rank, bits="auto", max_ppl_increase=limit)
    if experiment.arguments.reuse:
        known = json.loads(Path(experiment.arguments.reuse).read_text())["points"]
        yield from (Point(**one) for one in known if not one["family"].startswith("--bits auto"))
        return
    for bits in (8, 4) if only in "groups of 64" else ():
        yield experiment.pack("groups of 64", f"int{bits}", rank="none", bits=bits)
    if only in "--rank auto --bits 4":
        yield experiment.pack("--rank auto --bits 4", "auto", rank="auto", bits=4)
    for share in ("75%", "50%", "25%") if only in "uniform SVD" else ():
        for bits in (16, 4):
            name = f"rank {share}, {bits} bits"
            yield experiment.pack("uniform SVD", name, rank=share, bits=bits)
    for layer in experiment.arguments.drop.split(",") if only in "a layer dropped" else ():
        yield experiment.pack("a layer dropped", f"layer {layer}, int4", bits=4, drop=layer)
    if only in "NF4":
        size = experiment.table.size * (4 + 16 / 64) / 8
        yield experiment.rounded("NF4", "blocks of 64", nf4(experiment.table), size)
    if only in "GGUF":
        yield from gguf_points(experiment)


def gguf_points(experiment: Experiment) -> Iterator[Point]:
    """Score what gguf-py can quantize; k-quants it can only read."""
    try:
        import gguf
    except ImportError:
        print("gguf is not installed: left out")
        return
    for name in ("Q8_0", "Q5_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K", "TQ2_0"):
        kind = getattr(gguf.GGMLQuantizationType, name)
        try:
            codes = gguf.quants.quantize(experiment.table, kind)
        except NotImplementedError:
            print(f"gguf-py cannot quantize {name}: left out")
            continue
        table = gguf.quants.dequantize(codes, kind).reshape(experiment.table.shape)
        yield experiment.rounded("GGUF", name, table, codes.nbytes)


def plot(found: list[Point], path: str) -> None:
    """Draw increase against ratio, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for family in dict.fromkeys(point.family for point in found):
        own = [p for p in found if p.family == family and p.increase_pct > 0.003]
        style = "o-" if family.startswith("--bits auto") else "s"
        xs, ys = [p.ratio_fp16 for p in own], [p.increase_pct for p in own]
        errors = [min(p.increase_se_pct, 0.9 * p.increase_pct) for p in own]
        drawn = axes.errorbar(xs, ys, yerr=errors, fmt=style, label=family, capsize=2, markersize=5)
        if all(p.entropy_ratio_fp16 for p in own):
            color = drawn[0].get_color()
            ideal = np.array([p.entropy_ratio_fp16 for p in own], float)
            bound = np.array([p.gaussian_ratio_fp16 for p in own], float)
            axes.plot(ideal, ys, "--", color=color, lw=1)
            axes.plot(bound, ys, ":", color=color, lw=1)
    axes.set(xscale="log", yscale="log", ylim=(0.005, 60))
    axes.set_xlabel("times smaller than the FP16 table of all layers (whole file)")
    axes.set_ylabel("perplexity increase on held-out text, %")
    ticks = [2, 3, 4, 6, 8, 10, 15, 20, 30, 40]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if any(p.entropy_ratio_fp16 for p in found):
        axes.plot([], [], "k--", lw=1, label="if codes took their entropy")
        axes.plot([], [], "k:", lw=1, label="if codes took the Gaussian R(D)")
    axes.legend(fontsize=7.5, ncols=2, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--other", help="a second text to score, of another domain")
    parser.add_argument("--tokenizer")
    parser.add_argument("--limits", default=",".join(LIMITS), help="--max-ppl-increase, by commas")
    parser.add_argument("--drop", default="0,7", help="layers to drop, one at a time")
    parser.add_argument("--only", default="", help="a part of the names of the families wanted")
    parser.add_argument("--reuse", help="an earlier result, for what does not depend on --limits")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(arguments, Path(folder))
        for point in points(experiment):
            found.append(point)
            print(
                f"{point.family:26} {point.name:22} × {point.ratio_fp16:5.2f}  "
                f"{point.increase_pct:+7.3f} ± {point.increase_se_pct:.3f} %"
                + (
                    f"  other text {point.other_increase_pct:+7.3f} %"
                    if point.other_increase_pct is not None
                    else ""
                ),
                flush=True,
            )
    result = {
        **described("numpy", "torch", "zstandard"),
        "tokens": [base.total_tokens for base in experiment.bases],
        "baseline_ppl": [base.ppl for base in experiment.bases],
        "points": [asdict(point) for point in found],
    }
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
