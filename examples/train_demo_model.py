"""Train the small MemoryLLM that ships with tolpack (``tolpack/demo/model``).

Why: ``tolpack demo``, the tests and the documentation need a trained checkpoint, because random
tables compress like noise, and one that is small enough to ship.

Method: ``demo_text.py`` makes the text, and ``train.py`` trains on it, with the settings below. The
memory FFNs have an inner size of 1.5 times the hidden size, less than the paper's 8/3, so that the
checkpoint is small.

Command, about 15 minutes on two cores, from a checkout::

    pip install -e '.[build]'
    python examples/train_demo_model.py

Where other programs compete for the cores, ``OMP_WAIT_POLICY=passive`` before ``python`` keeps the
threads from spinning while they wait for each other (here a factor of six). What stands behind
``--`` goes to ``train.py``, such as ``-- --resume`` after a run that stopped.

The perplexities that are printed are those of the saved files, read back through tolpack.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import demo_text
import numpy as np
import train
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.model.text import read_token_ids
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "--beta=0 --ffn=4.5 --hidden-size=192 --layers=6 --heads=6 --context=256 --vocab-size=4096 "
    "--steps=2000 --batch=8 --learning-rate=4e-3 --dropout=0.1 --threads=2 --seed=0"
)
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json")


def main() -> None:
    """Make the text, train, copy what is shipped, and check it."""
    args = parse_arguments()
    text, trained = args.work / "text", args.work / "model"
    demo_text.write(text)
    parts = ["--data", text / "train.txt", "--valid", text / "validation.txt", "--out", trained]
    results = train.main([*map(str, parts), *SETTINGS.split(), *args.more])
    args.output.mkdir(parents=True, exist_ok=True)
    for path in (*(trained / name for name in CHECKPOINT), text / "heldout.txt"):
        shutil.copyfile(path, args.output / path.name)
    results |= perplexities(args.output, text)
    print(json.dumps(results, indent=2))
    if not math.isclose(results["validation_ppl"], results["validation_ppl_saved"], rel_tol=1e-4):
        sys.exit("the files in the folder do not give the perplexity of the trained model")


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the defaults make the shipped model."""
    parser = argparse.ArgumentParser(description="Train tolpack's demo model.")
    parser.add_argument("--output", type=Path, default=ROOT / "tolpack" / "demo" / "model")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo-model")
    parser.add_argument("more", nargs="*", help="other settings of train.py, behind --")
    return parser.parse_args()


def perplexities(folder: Path, text: Path) -> dict[str, float]:
    """Return the perplexities of the checkpoint in `folder`, by tolpack's reader and decoder."""
    model = Decoder(open_checkpoint(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    train_ids, valid_ids = (
        train.read_ids([text / f"{part}.txt"], tokenizer) for part in ("train", "validation")
    )
    heldout = read_token_ids(folder / "heldout.txt", model.vocab_size, folder / "tokenizer.json")
    context = model.config.max_position_embeddings or len(heldout)
    named = {"train": train_ids, "validation": valid_ids, "heldout": heldout}
    found = {f"{name}_ppl": score(model, ids, context).ppl for name, ids in named.items()}
    return {**found, "heldout_unigram_ppl": unigram_perplexity(train_ids, heldout)}


def unigram_perplexity(train_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> float:
    """Perplexity of the training text's token frequencies (add one) on ``ids[1:]``."""
    counts = np.bincount(train_ids, minlength=int(ids.max()) + 1) + 1.0
    return math.exp(-float(np.log(counts / counts.sum())[ids[1:]].mean()))


if __name__ == "__main__":
    main()
