"""A tiny Gemma 3n with random weights, to try packs in transformers with.

    python examples/make_gemma.py FOLDER

The README builds a pack of its per-layer embeddings and generates with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig


def make_gemma(folder: Path) -> None:
    """Save the model, in bfloat16."""
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        vocab_size=512, vocab_size_per_layer_input=512, hidden_size=64, intermediate_size=128,
        hidden_size_per_layer_input=32, num_hidden_layers=4, num_kv_shared_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    model = Gemma3nForCausalLM(config).bfloat16()
    for weight in model.parameters():  # also those that are zero at first
        weight.data.normal_(std=0.1)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_gemma.py FOLDER")
    make_gemma(Path(sys.argv[1]))
