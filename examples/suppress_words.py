r"""Make words less likely in a MemoryLLM, by edits of its pack.

python examples/suppress_words.py model.pt model.tolpack -o war.edits --calibrate text.txt \
    --tokenizer tokenizer.json --word war --word battle --fall 10

The rows of the last layer are solved for the tokens after which the text makes the words most
probable (`tolpack.edits.suppressing_rows`), on seven windows of ten. The others say how strong
they must be. Each word must be one token of the tokenizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import tolpack
from tolpack.edits.edit_pack import edit_pack
from tolpack.edits.suppressing_rows import suppress_in_steps
from tolpack.keys.named_tokens import find_tokens
from tolpack.model.decoder import Decoder
from tolpack.model.text import TextTokenizer, read_token_ids
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

SOLVED = 7  # windows of ten


def main() -> None:
    """Solve for the rows, and write the edits."""
    arguments = _arguments()
    words = [f" {word}" for word in arguments.word]
    decoder = Decoder(open_checkpoint(arguments.checkpoint))
    tokenizer = TextTokenizer(arguments.tokenizer)
    targets = np.unique(find_tokens(words, tokenizer, decoder.vocab_size))
    with tolpack.open(arguments.pack) as pack:
        decoder = decoder.with_memory(ToLMemory(pack))
        ids = read_token_ids(arguments.calibrate, pack.vocab_size, arguments.tokenizer)
        length = arguments.context + 1
        windows = torch.from_numpy(ids[: len(ids) // length * length]).view(-1, length)
        serves = torch.arange(len(windows)) % 10 < SOLVED
        *_, rows = suppress_in_steps(
            decoder, windows[serves, :-1], windows[~serves], targets, arguments.tokens,
            fall=arguments.fall,
        )  # fmt: skip
        made = edit_pack(
            pack, arguments.output, rows.token_ids, rows.change, bits=16, force=arguments.force
        )
    print(f"{made.path}: {made.nbytes:,} bytes, {len(made.token_ids)} tokens")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True, help="text of the model's kind")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--word", action="append", required=True, help="word to suppress")
    parser.add_argument("--fall", type=float, default=10, help="times less probable")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens to edit")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--force", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
