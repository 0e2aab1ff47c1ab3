"""KL divergence and perplexity against size of packs and of other quantizers of the same table.

Every setting is scored on the same held-out texts, paired window by window with the checkpoint. The
size of a pack counts every byte of the file. Other quantizers round the table in memory, and their
size counts codes, scales, bases and codebooks without any overhead of a file.

    python benchmarks/rate_distortion.py CHECKPOINT --calibrate TEXT --frequencies counts.npy \
        --text HELDOUT --other LICENCES --tokenizer tokenizer.json --json result.json \
        --plot curve.png

``--text``, and ``--other`` of another domain, are evaluation texts and serve nothing else.
``--only`` measures the families whose names contain it. Results other than those of ``--bits auto``
do not change, so ``--reuse`` can take them from an earlier result for the same files. ``gguf`` and
``numba`` are used if they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from rate_distortion_plot import plot
from table_quantizers import ggml, hadamard_2bit, hadamard_codebooks, nf4
from water_filling import WaterFilling

import tolpack
from tolpack.model.decoder import Decoder
from tolpack.model.divergence import Divergence, compare
from tolpack.model.language_model import Memory
from tolpack.model.perplexity import Score, increase_pct
from tolpack.model.text import read_token_ids
from tolpack.reading.code_rates import code_rates
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

RATIOS = "4,6,8,12,16,24,32"
GGML_TYPES = ("Q8_0", "Q5_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K", "TQ2_0")
# Settings that are scored side by side, so that the checkpoint runs once for all of them.
TOGETHER = 6
# What trellis-coded quantization with an entropy coder is said to stay within (Fischer, Wang 1992).
ABOVE_GAUSSIAN_BITS = 0.1


@dataclass(frozen=True)
class Setting:
    """What is to be scored.

    ``ideal``: bytes with ideal coders, everything else being as it is. The codes would take their
    adaptive entropy, the Gaussian R(D), and 0.1 bit a value more than that.
    """

    family: str
    name: str
    bytes: int
    memory: Memory
    ideal: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Point:
    """One setting: its family and name, size, and what it does to the model's predictions.

    ``increase_pct`` of perplexity and ``kl_mean_nats`` have standard errors over windows. All are
    there again for the other text, if there is one. For entropy-coded settings also how many times
    smaller they would be with ideal coders, see `Setting`.
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
    above_gaussian_ratio_fp16: float | None = None
    kl_mean_nats: float | None = None
    kl_mean_se_nats: float | None = None
    kl_p99_nats: float | None = None
    top1_agreement_pct: float | None = None
    other_kl_mean_nats: float | None = None
    other_kl_mean_se_nats: float | None = None
    other_kl_p99_nats: float | None = None
    other_top1_agreement_pct: float | None = None


class Experiment:
    """Scores tables and packs of one checkpoint."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.numbers = itertools.count()
        checkpoint = open_checkpoint(arguments.checkpoint)
        self.decoder = Decoder(checkpoint)
        config = checkpoint.config
        self.context = config.max_position_embeddings or 512
        texts = [arguments.text, *([arguments.other] if arguments.other else [])]
        ids = [read_token_ids(text, config.vocab_size, arguments.tokenizer) for text in texts]
        self.texts = [
            one if arguments.tokens is None else one[: arguments.tokens + 1] for one in ids
        ]
        self.bases: list[Score] = []
        with tolpack.open(self.build(rank="none", bits=16)) as pack:
            self.table = pack.rows(np.arange(config.vocab_size))
        self.flat = self.table.reshape(len(self.table), -1)
        self.fp16_bytes = 2 * self.table.size

    def build(self, **settings: Any) -> Path:
        """Build a pack with `settings`, all of them with the calibration text and the counts."""
        given = self.arguments
        result = tolpack.build(
            given.checkpoint, self.folder / f"{next(self.numbers)}.tolpack",
            calibrate=given.calibrate, frequencies=given.frequencies, tokenizer=given.tokenizer,
            **settings,
        )  # fmt: skip
        return Path(result.path)

    def pack(self, family: str, name: str, **settings: Any) -> Setting:
        """Build a pack; it stays open."""
        pack = tolpack.open(self.build(**settings))
        return Setting(family, name, pack.nbytes, ToLMemory(pack), ideal_bytes(pack))

    def rounded(
        self,
        family: str,
        name: str,
        table: np.ndarray,
        size: float,
        ideal: tuple[float, ...] | None = None,
    ) -> Setting:
        """Return a table that was rounded in memory, and would take `size` bytes."""
        rows = torch.from_numpy(np.ascontiguousarray(table, np.float32).reshape(self.table.shape))
        return Setting(family, name, round(size), lambda layer, ids: rows[ids, layer], ideal)

    def of_bits(self, family: str, name: str, quantized: tuple[np.ndarray, float]) -> Setting:
        """Return a table and the bits per value that it takes as a setting."""
        return self.rounded(family, name, quantized[0], quantized[1] * self.table.size / 8)

    def scored(self, settings: list[Setting]) -> list[Point]:
        """Score settings side by side."""
        models = [self.decoder.with_memory(one.memory) for one in settings]
        found = [compare(self.decoder, models, ids, self.context) for ids in self.texts]
        self.bases = [base for base, _ in found]
        return [
            self._point(one, [scores[number] for _, scores in found])
            for number, one in enumerate(settings)
        ]

    def _point(self, setting: Setting, found: list[tuple[Score, Divergence]]) -> Point:
        numbers: dict[str, float] = {}
        for prefix, base, (score, divergence) in zip(("", "other_"), self.bases, found):
            increase, increase_se = increase_pct(score, base)
            numbers[f"{prefix}increase_pct"] = increase
            numbers[f"{prefix}increase_se_pct"] = increase_se or 0.0
            for name in ("kl_mean_nats", "kl_mean_se_nats", "kl_p99_nats", "top1_agreement_pct"):
                numbers[f"{prefix}{name}"] = getattr(divergence, name)
        names = ("entropy_ratio_fp16", "gaussian_ratio_fp16", "above_gaussian_ratio_fp16")
        ideal = {n: self.fp16_bytes / size for n, size in zip(names, setting.ideal or ())}
        ratio = self.fp16_bytes / setting.bytes
        return Point(setting.family, setting.name, setting.bytes, ratio, **numbers, **ideal)


def ideal_bytes(pack: tolpack.Pack) -> tuple[float, ...] | None:
    """Return what a pack would take with ideal coders of its codes; ``None`` without such codes,
    and the entropy's alone along a trellis.

    R(D) is that of Gaussian codes of the same variances. Codes with heavier tails have an entropy
    that may be less than a tenth of a bit above it.
    """
    container = pack.container
    rates = code_rates(container)
    if rates is None:
        return None
    values = [container.table.rows * one.stored_values for one in container.table.kept_fields]
    rest = pack.nbytes - sum(view.length_bytes for view in container.chunks)
    bits = [[rate.entropy_bits for rate in rates]]
    gaussians = [rate.gaussian_bits for rate in rates if rate.gaussian_bits is not None]
    if len(gaussians) == len(rates):
        bits += [gaussians, [one + ABOVE_GAUSSIAN_BITS for one in gaussians]]
    return tuple((rest + np.array(bits) @ values / 8).tolist())


def settings(experiment: Experiment) -> Iterator[Setting]:
    """Make everything that was asked for, one after the other."""
    yield from auto_settings(experiment)
    if not experiment.arguments.reuse:
        yield from pack_settings(experiment)
        yield from other_settings(experiment)
        yield from trellis_settings(experiment)
        yield from water_filling_settings(experiment)


def auto_settings(experiment: Experiment) -> Iterator[Setting]:
    """Build packs of ``--bits auto`` of given sizes, and of given limits."""
    given = experiment.arguments
    for rank, trellis in itertools.product(("auto", "none"), (False, True)):
        family = f"--bits auto --rank {rank}" + " --trellis" * trellis
        if given.only not in family:
            continue
        settings = {"rank": rank, "bits": "auto", "trellis": trellis}
        for ratio in filter(None, given.ratios.split(",")):
            size = str(int(experiment.fp16_bytes / float(ratio)))
            yield experiment.pack(family, f"× {ratio}", **settings, size=size)
        for limit in filter(None, given.limits.split(",")):
            yield experiment.pack(family, limit, **settings, max_ppl_increase=limit)


def pack_settings(experiment: Experiment) -> Iterator[Setting]:
    """Build packs with fixed bits."""
    only = experiment.arguments.only
    for bits in (8, 4) if only in "groups of 64" else ():
        yield experiment.pack("groups of 64", f"int{bits}", rank="none", bits=bits)
    if only in "--rank auto --bits 4":
        yield experiment.pack("--rank auto --bits 4", "auto", rank="auto", bits=4)
    for share in ("75%", "50%", "25%") if only in "uniform SVD" else ():
        for bits in (16, 4):
            name = f"rank {share}, {bits} bits"
            yield experiment.pack("uniform SVD", name, rank=share, bits=bits)
    drops = filter(None, experiment.arguments.drop.split(","))
    for layer in drops if only in "a layer dropped" else ():
        yield experiment.pack("a layer dropped", f"layer {layer}, int4", bits=4, drop=layer)


def other_settings(experiment: Experiment) -> Iterator[Setting]:
    """Quantize blocks of values as others do."""
    only, flat = experiment.arguments.only, experiment.flat
    if only in "NF4":
        yield experiment.of_bits("NF4", "blocks of 64", (nf4(flat), 4 + 16 / 64))
    if importlib.util.find_spec("gguf") is None:
        print("gguf is not installed: left out")
    else:
        for name in GGML_TYPES if only in "GGUF" else ():
            yield experiment.of_bits("GGUF", name, ggml(flat, name))
    if only in "2-bit Hadamard":
        yield experiment.of_bits("2-bit Hadamard", "one scale a group", hadamard_2bit(flat))
        yield experiment.of_bits("2-bit Hadamard", "levels of a group", hadamard_codebooks(flat))


def trellis_settings(experiment: Experiment) -> Iterator[Setting]:
    """Quantize rows with a bitshift trellis."""
    if experiment.arguments.only not in "bitshift trellis":
        return
    if importlib.util.find_spec("numba") is None:
        print("numba is not installed: the bitshift trellis is left out")
        return
    from bitshift_trellis import bitshift_trellis

    for bits in (1, 2, 3):
        found = bitshift_trellis(experiment.flat, bits)
        yield experiment.of_bits("bitshift trellis", f"{bits} bits", found)


def water_filling_settings(experiment: Experiment) -> Iterator[Setting]:
    """Quantize with entropy-coded water-filling to given sizes, with and without counts."""
    given = experiment.arguments
    yield from filled_settings(experiment, "water-filling", None)
    if given.frequencies is not None:
        counts = np.load(given.frequencies)
        yield from filled_settings(experiment, "water-filling, steps by count", counts)


def filled_settings(
    experiment: Experiment, family: str, counts: np.ndarray | None
) -> Iterator[Setting]:
    """Quantize with entropy-coded water-filling to given sizes."""
    if experiment.arguments.only not in family:
        return
    filling = WaterFilling(experiment.table, counts)
    for ratio in filter(None, experiment.arguments.ratios.split(",")):
        found = filling.of_size(experiment.fp16_bytes / float(ratio))
        side = found.bytes - found.code_bytes
        gaussian = side + found.gaussian_bytes
        ideal = (found.bytes, gaussian, gaussian + ABOVE_GAUSSIAN_BITS * found.values / 8)
        yield experiment.rounded(family, f"× {ratio}", found.table, found.bytes, ideal)


def points(experiment: Experiment) -> Iterator[Point]:
    """Measure everything that was asked for, and take the rest from an earlier result."""
    made = settings(experiment)
    while batch := list(itertools.islice(made, TOGETHER)):
        yield from experiment.scored(batch)
    if experiment.arguments.reuse:
        known = json.loads(Path(experiment.arguments.reuse).read_text())["points"]
        yield from (Point(**one) for one in known if not one["family"].startswith("--bits auto"))


def line(point: Point) -> str:
    """Return a point as a line of text."""
    parts = [f"{point.family:29} {point.name:18} × {point.ratio_fp16:5.2f}"]
    for title, prefix in (("", ""), ("other text ", "other_")):
        increase, kl = (getattr(point, prefix + n) for n in ("increase_pct", "kl_mean_nats"))
        if increase is not None:
            error = getattr(point, f"{prefix}increase_se_pct")
            parts.append(f"{title}{increase:+8.3f} ± {error:.3f} %")
        if kl is not None:
            p99, top1 = (getattr(point, prefix + n) for n in ("kl_p99_nats", "top1_agreement_pct"))
            parts.append(f"KL {kl:.5f}, 99 % {p99:.4f}, top 1 {top1:.2f} %")
    return "  ".join(parts)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--frequencies", help=".npy of token counts, for all packs")
    parser.add_argument("--text", required=True)
    parser.add_argument("--other", help="a second text to score, of another domain")
    parser.add_argument("--tokens", type=int, help="score the first tokens of each text only")
    parser.add_argument("--tokenizer")
    parser.add_argument("--ratios", default=RATIOS, help="times smaller than FP16, by commas")
    parser.add_argument("--limits", default="", help="--max-ppl-increase of packs, by commas")
    parser.add_argument("--drop", default="0,7", help="layers to drop, one at a time")
    parser.add_argument("--only", default="", help="a part of the names of the families wanted")
    parser.add_argument("--reuse", help="an earlier result, for what is not --bits auto")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(arguments, Path(folder))
        for point in points(experiment):
            found.append(point)
            print(line(point), flush=True)
    result = {
        **described("numpy", "torch", "zstandard"),
        "tokens": [base.total_tokens for base in experiment.bases],
        "baseline_ppl": [base.ppl for base in experiment.bases],
        "points": [asdict(point) for point in found],
    }
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        plot(result, Path(arguments.plot))


if __name__ == "__main__":
    main()
