"""Mount a pack in a model in the style of Hugging Face, in place of its memory FFNs.

Such a model calls ``layer.memory_mlp(embeddings)``, but a lookup needs token ids. So a hook stores
the ``input_ids`` of each forward pass, and a module that looks up its layer replaces each memory
FFN. A real model needs only `mount`; the small model here serves as an example.

    python examples/mount_in_model.py
    python examples/mount_in_model.py --checkpoint model/ --pack model.tolpack

Without --pack a 16-bit pack of the model, by default the bundled one, is built in a scratch folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tolpack
from tolpack.demo import MODEL
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory


class LookedUp(nn.Module):
    """Looks up a layer's rows, in place of its memory FFN."""

    def __init__(self, memory: ToLMemory, layer: int, seen: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.memory, self.layer, self.seen = memory, layer, seen

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the rows of the token ids that the model was called with."""
        rows: torch.Tensor = self.memory(self.layer, self.seen["input_ids"])
        return rows.to(embeddings.dtype)


def mount(model: nn.Module, layers: nn.ModuleList, memory: ToLMemory) -> None:
    """Replace ``memory_mlp`` of all `layers` of `model` by lookups."""
    seen: dict[str, torch.Tensor] = {}

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["input_ids"] = kwargs["input_ids"] if "input_ids" in kwargs else args[0]

    model.register_forward_pre_hook(note, with_kwargs=True)
    for number, layer in enumerate(layers):
        layer.memory_mlp = LookedUp(memory, number, seen)


class Block(nn.Module):
    """A layer of the model: attention as in the reference decoder, and its memory FFN."""

    def __init__(self, decoder: Decoder, number: int) -> None:
        super().__init__()
        self.decoder, self.number, self.memory_mlp = decoder, number, nn.Identity()

    def forward(self, x: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after this layer."""
        x, _ = self.decoder.block(self.number, x, self.decoder.rotary(0, x.shape[1]))
        remembered: torch.Tensor = self.memory_mlp(embeddings)
        return x + remembered


class Model(nn.Module):
    """A causal language model: ``model(input_ids=…)`` gives logits."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers = nn.ModuleList(Block(decoder, n) for n in range(len(decoder.layers)))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, length, vocabulary)."""
        embeddings = x = self.decoder.embedding.rows(input_ids)
        for layer in self.layers:
            x = layer(x, embeddings)
        return self.decoder.head.logits(self.decoder.norm(x))


@torch.inference_mode()
def main() -> None:
    """Compare the model with a pack mounted to the reference decoder with its FFNs."""
    parser = argparse.ArgumentParser(description="Mount a pack in a model, and compare logits.")
    parser.add_argument("--checkpoint", type=Path, default=MODEL)
    parser.add_argument("--pack", type=Path)
    arguments = parser.parse_args()
    decoder = Decoder(open_checkpoint(arguments.checkpoint))
    model, ids = Model(decoder), torch.arange(100, 116)[None]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.pack
        if path is None:
            path = tolpack.build(arguments.checkpoint, Path(folder) / "p.tolpack", bits=16).path
        with tolpack.open(path) as pack:
            if (pack.vocab_size, pack.num_layers) != (decoder.vocab_size, len(decoder.layers)):
                parser.error(f"{path} is not a pack of {arguments.checkpoint}")
            mount(model, model.layers, ToLMemory(pack))
            difference = (model(input_ids=ids) - decoder(ids)).abs().max()
            print(f"largest difference of a logit with the pack mounted: {difference:.4f}")


if __name__ == "__main__":
    main()
