"""Decode with every step written out; one lookup per token serves the memory of all layers.

python examples/decode_by_hand.py "The with statement" --tokens 40
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
    """Build a 4-bit pack of the bundled model in a scratch folder and decode from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    prompt = tokenizer.encode(arguments.prompt, add_special_tokens=False).ids
    with tempfile.TemporaryDirectory() as folder:
        path = tolpack.build(MODEL, Path(folder) / "demo.tolpack").path
        with tolpack.open(path, cache="1MB") as pack:
            memory = ToLMemory(pack, hot_rows=16)
            new = decode(Decoder(open_checkpoint(MODEL)), memory, prompt, arguments.tokens)
            print(tokenizer.decode(prompt + new))
            print({name: value for name, value in pack.stats().items() if value})


if __name__ == "__main__":
    main()
