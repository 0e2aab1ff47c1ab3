"""Perplexity of MemoryLLM through transformers and through the reference decoder.

    python benchmarks/transformers_perplexity.py FOLDER… --text heldout.txt \
        --tokenizer tokenizer.json --characters 200000 --json result.json

Both models run on the same windows, in float32. With ``--bits`` a pack of that many bits is built,
and it takes the place of the FFNs in both as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from machine import described
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import tolpack
import tolpack.hf  # registers the models
from tolpack.model.decoder import Decoder
from tolpack.model.language_model import LanguageModel
from tolpack.model.perplexity import score
from tolpack.model.text import TextTokenizer
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

Logits = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure each model both ways, print, and write a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--characters", type=int, help="of the text, from its beginning")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--bits", type=int, help="of a pack that is measured too, as of tolpack build"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")[: arguments.characters]
    ids = TextTokenizer(arguments.tokenizer).encode(text)
    models = {}
    for folder in arguments.folders:
        models[folder.name] = measured(folder, ids, arguments.context, arguments.bits)
        print(folder.name, json.dumps(models[folder.name], indent=1))
    result = {
        **described("torch", "transformers"),
        "tokens": len(ids) - 1,
        "context": arguments.context,
        "models": models,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(
    folder: Path, ids: NDArray[np.int64], context: int, bits: int | None
) -> dict[str, Any]:
    """Return the perplexities of a model by what gives its memory."""
    decoder = Decoder(open_checkpoint(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {"checkpoint": compared(logits_of(model), decoder, ids, context)}
    if bits is not None:
        with tempfile.TemporaryDirectory() as scratch:
            path = tolpack.build(folder, Path(scratch) / "p.tolpack", bits=bits).path
            with tolpack.open(path) as pack:
                memory = ToLMemory(pack)
                model.set_memory(memory)
                other = decoder.with_memory(memory)
                found[f"pack of {bits} bits"] = compared(logits_of(model), other, ids, context)
    return found


def logits_of(model: Any) -> Logits:
    """Return a function that gives logits through transformers."""
    return lambda ids: cast(torch.Tensor, model(ids, use_cache=False).logits)


def compared(
    logits: Logits, decoder: Decoder, ids: NDArray[np.int64], context: int
) -> dict[str, float]:
    """Return both perplexities and their difference."""
    own, reference = (
        score(cast(LanguageModel, one), ids, context).ppl for one in (logits, decoder)
    )
    difference = 100 * (own / reference - 1)
    return {"transformers": own, "reference": reference, "difference_pct": difference}


if __name__ == "__main__":
    main()
