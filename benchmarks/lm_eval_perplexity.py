"""Perplexity of a MemoryLLM through lm-eval against the reference decoder's, on the same windows.

lm-eval's own rolling log-likelihood puts a prefix token before the text and cuts other windows. So
the windows of `tolpack.model.perplexity` go through the log-likelihoods of tokens of the registered
model, each with its first token as context.

    python benchmarks/lm_eval_perplexity.py CHECKPOINT --text held-out.txt --characters 200000
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import described
from numpy.typing import NDArray

from tolpack.lm_eval.model import TolpackLM
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.pack import Pack
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory


def main() -> None:
    """Measure both, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--characters", type=int, help="use only the first characters of the text")
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()

    checkpoint = open_checkpoint(arguments.checkpoint)
    decoder = Decoder(checkpoint)
    context = checkpoint.config.require("max_position_embeddings", "windows")
    tokenizer = find_tokenizer(arguments.checkpoint, arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        whole = arguments.text.read_text(encoding="utf-8")[: arguments.characters]
        text.write_text(whole, encoding="utf-8")
        ids = read_token_ids(text, checkpoint.config.vocab_size, tokenizer)
    if arguments.pack is not None:
        decoder = decoder.with_memory(ToLMemory(Pack(arguments.pack)))
    reference = score(decoder, ids, context).ppl
    lm = TolpackLM(arguments.checkpoint, arguments.pack, tokenizer, dtype="float32", batch_size=16)
    found = harness_perplexity(lm, ids, context)
    result = {
        "checkpoint": arguments.checkpoint.name,
        "pack": arguments.pack and arguments.pack.name,
        "tokens": len(ids) - 1,
        "context": context,
        "reference_ppl": reference,
        "lm_eval_ppl": found,
        "difference_pct": 100 * (found / reference - 1),
        "machine": described("torch", "transformers", "lm_eval"),
    }
    json.dump(result, sys.stdout, indent=2)
    print()


def harness_perplexity(lm: TolpackLM, ids: NDArray[np.int64], context: int) -> float:
    """Return the perplexity of windows of `context` tokens through lm-eval's model."""
    tokens = list(map(int, ids))
    windows = [
        (None, [tokens[start]], tokens[start + 1 : start + context + 1])
        for start in range(0, len(tokens) - 1, context)
    ]
    answers = lm._loglikelihood_tokens(windows)
    return math.exp(-sum(value for value, _ in answers) / (len(tokens) - 1))


if __name__ == "__main__":
    main()
