"""Generate text with a pack in place of a model's memory FFNs: the bundled model, or your own.

    python examples/generate.py "The with statement" --tokens 40
    python examples/generate.py "Call me" --checkpoint model/ --pack model.tolpack

Without --pack a 4-bit pack is built in a scratch folder. `tolpack generate` streams the text, and
stops at its end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tolpack
from tolpack.demo import MODEL
from tolpack.evaluation.subject import open_subject
from tolpack.model.generation import generate
from tolpack.model.text import TextTokenizer, find_tokenizer


def main() -> None:
    """Open or build a pack and decode from it."""
    parser = argparse.ArgumentParser(description="Generate text with a pack.")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--checkpoint", type=Path, default=MODEL)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="default: the one beside the checkpoint")
    arguments = parser.parse_args()
    found = find_tokenizer(arguments.checkpoint, arguments.tokenizer)
    if found is None:
        parser.error(f"{arguments.checkpoint} has no tokenizer.json: give --tokenizer")
    tokenizer = TextTokenizer(found)
    prompt = tokenizer.encode(arguments.prompt).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.pack
        if path is None:
            path = tolpack.build(arguments.checkpoint, Path(folder) / "p.tolpack").path
        with tolpack.open(path) as pack:
            model = open_subject(arguments.checkpoint).with_pack(pack, path)
            new = generate(model, prompt, arguments.tokens, temperature=arguments.temperature)
            print(tokenizer.decode(prompt + list(new)))


if __name__ == "__main__":
    main()
