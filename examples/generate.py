"""Generate text with the bundled model and a pack in place of its memory FFNs.

python examples/generate.py "The with statement" --tokens 40
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

import tolpack
from tolpack.demo import MODEL
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory


def main() -> None:
    """Build a 4-bit pack in a scratch folder and decode from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    prompt = tokenizer.encode(arguments.prompt, add_special_tokens=False).ids
    with tempfile.TemporaryDirectory() as folder:
        result = tolpack.build(MODEL, Path(folder) / "demo.tolpack")
        with tolpack.open(result.path) as pack:
            decoder = Decoder(open_checkpoint(MODEL)).with_memory(ToLMemory(pack))
            new = decoder.generate(prompt, arguments.tokens, temperature=arguments.temperature)
            print(tokenizer.decode(prompt + list(new)))


if __name__ == "__main__":
    main()
