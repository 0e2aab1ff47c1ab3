"""Decode with every step written out; one lookup per token serves the memory of all layers.

    python examples/decode_by_hand.py "The with statement" --tokens 40
    python examples/decode_by_hand.py "Call me" --checkpoint model/ --pack model.tolpack

The model is the bundled one, or a MemoryLLM of your own; without --pack a 4-bit pack is built in a
scratch folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer

import tolpack
from tolpack.demo import MODEL
from tolpack.model.decoder import Decoder
from tolpack.model.text import find_tokenizer
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory


@torch.inference_mode()
def decode(decoder: Decoder, memory: ToLMemory, prompt: list[int], count: int) -> list[int]:
    """Return the `count` most likely tokens after `prompt`, chosen greedily."""
    cache, ids, new = decoder.new_cache(), torch.tensor([prompt]), list[int]()
    for _ in range(count):
        memory.prefetch(ids)  # the lookup runs while the first layer attends
        past = cache[0]
        rotary = decoder.rotary(0 if past is None else past[0].shape[2], ids.shape[1])
        x = decoder.embedding.rows(ids)
        for layer in range(len(decoder.layers)):
            x, cache[layer] = decoder.block(layer, x, rotary, cache[layer])
            x = x + memory(layer, ids)
        ids = decoder.head.logits(decoder.norm(x[:, -1:])).argmax(-1)
        new.append(int(ids[0, 0]))
    return new


def main() -> None:
    """Open or build a pack and decode from it."""
    parser = argparse.ArgumentParser(description="Decode with every step written out.")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--checkpoint", type=Path, default=MODEL)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="default: the one beside the checkpoint")
    arguments = parser.parse_args()
    found = find_tokenizer(arguments.checkpoint, arguments.tokenizer)
    if found is None:
        parser.error(f"{arguments.checkpoint} has no tokenizer.json: give --tokenizer")
    tokenizer = Tokenizer.from_file(str(found))
    prompt = tokenizer.encode(arguments.prompt, add_special_tokens=False).ids
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.pack
        if path is None:
            path = tolpack.build(arguments.checkpoint, Path(folder) / "p.tolpack").path
        decoder = Decoder(open_checkpoint(arguments.checkpoint))
        with tolpack.open(path, cache="1MB") as pack:
            if (pack.vocab_size, pack.num_layers) != (decoder.vocab_size, len(decoder.layers)):
                parser.error(f"{path} is not a pack of {arguments.checkpoint}")
            memory = ToLMemory(pack, hot_rows=16)
            new = decode(decoder, memory, prompt, arguments.tokens)
            print(tokenizer.decode(prompt + new))
            print({name: value for name, value in pack.stats().items() if value})


if __name__ == "__main__":
    main()
