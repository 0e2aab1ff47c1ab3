"""A Gemma 3n whose per-layer embeddings are in a pack: built, stripped, loaded, compared.

    python examples/mount_gemma.py [FOLDER]

Without FOLDER, a folder of a Gemma 3n or 4 for transformers, it makes a tiny one with random
weights. The model with the pack gives the logits of the stock model bit for bit, and its table is
never in memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import tolpack
import tolpack.hf


def main() -> None:
    """Do it with the folder that the command line names, or a tiny one."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make_gemma(root / "gemma")
        compare(folder, root)


def compare(folder: Path, root: Path) -> None:
    """Put the table of `folder` into a pack below `root`, and decode with and without."""
    built = tolpack.build(folder, root / "ple.tolpack", bits="lossless")
    stripped = tolpack.hf.strip(folder, root / "stripped", built.path)
    print(f"removed {stripped.removed_bytes:,} bytes; the pack has {stripped.pack_bytes:,}")

    model, _tokenizer = tolpack.hf.load(root / "stripped")
    stock = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[2, 17, 5, 300, 17]])
    ids = model.generate(prompt, max_new_tokens=20, do_sample=False)
    print(f"generated {ids[0, prompt.shape[1] :].tolist()}")
    with torch.no_grad():
        same = torch.equal(model(ids).logits, stock(ids).logits)
    print(f"logits are those of the stock model, bit for bit: {same}")


def make_gemma(folder: Path) -> Path:
    """Save a tiny Gemma 3n with random weights; returns its folder."""
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
    return folder


if __name__ == "__main__":
    main()
