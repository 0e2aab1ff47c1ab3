"""Compare ranks by loss with one uniform rank at equal bytes.

For each share of the full-rank pack's bytes, builds the uniform pack that comes closest, then
``--rank auto --size`` with exactly that pack's bytes, both with the same calibration text, and
scores both on the same windows. The difference is paired window by window.

    python benchmarks/rank_allocation.py CHECKPOINT --calibrate TEXT --text TEXT \
        --tokenizer tokenizer.json --json result.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tolpack
from tolpack.compress.build import BuildResult
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import Score, increase_pct, score
from tolpack.model.text import read_token_ids
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

SHARES = (25.0, 37.5, 50.0, 62.5, 75.0)


@dataclass(frozen=True)
class Row:
    """One share: bytes, ranks and increases over the checkpoint in percent; ``gain`` is paired."""

    share_pct: float
    uniform_rank: int
    uniform_bytes: int
    auto_bytes: int
    auto_ranks: list[int | None]
    uniform_increase_pct: float
    auto_increase_pct: float
    gain_pct: float
    gain_se_pct: float


class Experiment:
    """Builds and scores packs of one checkpoint."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.arguments = arguments
        self.folder = Path(folder)
        checkpoint = open_checkpoint(arguments.checkpoint)
        self.hidden = checkpoint.config.hidden_size
        self.decoder = Decoder(checkpoint)
        self.context = checkpoint.config.max_position_embeddings or 512
        self.tokens = read_token_ids(
            arguments.text, checkpoint.config.vocab_size, arguments.tokenizer
        )
        self.baseline = score(self.decoder, self.tokens, self.context)

    def build(self, **settings: Any) -> BuildResult:
        """Build with `settings`."""
        return tolpack.build(
            self.arguments.checkpoint,
            self.folder / "bench.tolpack",
            calibrate=self.arguments.calibrate,
            tokenizer=self.arguments.tokenizer,
            bits=self.arguments.bits,
            force=True,
            **settings,
        )

    def pack(self, **settings: str | int) -> tuple[BuildResult, Score]:
        """Build with `settings` and score."""
        result = self.build(**settings)
        with tolpack.open(result.path) as pack:
            decoder = self.decoder.with_memory(ToLMemory(pack))
            return result, score(decoder, self.tokens, self.context)

    def row(self, share: float, full_bytes: int) -> Row:
        """Measure one share of the full-rank bytes."""
        target = full_bytes * share / 100
        rank = min(
            range(8, self.hidden + 1, 8),
            key=lambda r: abs(self._uniform_bytes(r, full_bytes) - target),
        )
        uniform, uniform_score = self.pack(rank=rank)
        auto, auto_score = self.pack(rank="auto", size=uniform.bytes)
        gain, gain_se = increase_pct(uniform_score, auto_score)
        return Row(
            share,
            rank,
            uniform.bytes,
            auto.bytes,
            [layer.rank for layer in auto.layers],
            increase_pct(uniform_score, self.baseline)[0],
            increase_pct(auto_score, self.baseline)[0],
            gain,
            gain_se or 0.0,
        )

    def _uniform_bytes(self, rank: int, full_bytes: int) -> float:
        return full_bytes * rank / self.hidden


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="percent, by commas")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(arguments, folder)
        full = experiment.build(rank="full")
        result: dict[str, object] = {
            "machine": platform.processor() or platform.machine(),
            "versions": {"numpy": np.__version__, "torch": torch.__version__},
            "tokens": experiment.baseline.total_tokens,
            "baseline_ppl": experiment.baseline.ppl,
            "full_bytes": full.bytes,
        }
        print(json.dumps(result, indent=1), flush=True)
        rows = []
        for share in map(float, arguments.shares.split(",")):
            rows.append(experiment.row(share, full.bytes))
            print(json.dumps(asdict(rows[-1])), flush=True)
    result["rows"] = [asdict(row) for row in rows]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
