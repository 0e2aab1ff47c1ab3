"""Time the hash of n-grams for the tables that it was published with.

An n-gram is one row of one head: a token of DeepSeek-V4.1-Flash has 24 in each layer, one of
Qwen3.8-Flash-Next 16, and one of LongCat-Flash-Lite 12. ``M_per_s`` are millions of n-grams a
second: of one thread, and of two that hash texts of their own. ``step_us`` are microseconds of a
stream's decode step, for one token.

    python benchmarks/ngram_hash.py --json benchmarks/results/ngram_hash.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

from tolpack.ngrams import NGramHash, engram_hashes, longcat_hash, qwen4_exp_hash

STEPS = 2000


def main() -> None:
    """Time every family, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {**described("numpy"), "tokens": arguments.tokens, "hashes": {}}
    for name, (ngrams, vocab) in hashes().items():
        ids = np.random.default_rng(0).integers(0, vocab, arguments.tokens)
        found["hashes"][name] = {
            "heads": ngrams.heads,
            "table_rows": ngrams.table_rows,
            "M_per_s": {
                f"{threads} threads": round(rate(ngrams, ids, threads, arguments.repeat), 1)
                for threads in (1, 2)
            },
            "step_us": round(step(ngrams, ids), 1),
        }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def hashes() -> dict[str, tuple[NGramHash, int]]:
    """Return each family's hash with the size of its vocabulary."""
    compressed = np.arange(129_280, dtype=np.uint32) % 99_092
    engram, _ = engram_hashes(layer_ids=[1, 14], compressed_ids=compressed, pad_id=2)
    return {
        "DeepSeek-V4.1-Flash": (engram, 129_280),
        "Qwen3.8-Flash-Next": (qwen4_exp_hash(vocab_size=248_320, eos_token_id=248_044), 248_320),
        "LongCat-Flash-Lite": (longcat_hash(vocab_size=131_072, eos_token_id=2), 131_072),
    }


def rate(ngrams: NGramHash, ids: Any, threads: int, repeat: int) -> float:
    """Return millions of n-grams a second, of the best of some passes."""
    texts = np.array_split(ids, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(timed(lambda: list(pool.map(ngrams.rows, texts))) for _ in range(repeat))
    return len(ids) * ngrams.heads / seconds / 1e6


def step(ngrams: NGramHash, ids: Any) -> float:
    """Return microseconds of a decode step."""
    stream = ngrams.stream()
    seconds = timed(lambda: [stream.rows(ids[n : n + 1]) for n in range(STEPS)])
    return seconds / STEPS * 1e6


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that `run` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
