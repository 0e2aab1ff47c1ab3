"""The model of ``train.py``: a dense Llama, a MemoryLLM or a Flex-MemoryLLM, by one number β.

A layer has 8h² weights in its feed-forward networks (h: the hidden size). β of these 8 parts are
FFN-C, which reads the residual stream. The others are FFN-M, the memory, which reads the token's
embedding alone (MemoryLLM, arXiv 2602.00398). With ``Y = X + Attn(Norm_in(X))``::

    β = 8         X ← Y + FFN_C(Norm_post(Y))                          llama: a dense model
    0 < β < 8     X ← Y + FFN_C(Norm_post(Y)) + FFN_M(Norm_mem(X0))    flex_memoryllm
    β = 0         X ← Y + FFN_M(Norm_mem(X0))                          memoryllm

``X0 = embed(token)``. These are the equations of ``tolpack/model/decoder.py``, and parameters have
the names of ``docs/checkpoints.md``. Both FFNs are SwiGLU: an inner size of n takes 3·n·h weights.

FFN-M depends on the token alone. So it is computed once for each distinct token of a batch, which
saves most of its time in training, and can be a table that is looked up once trained.

Parameters and FLOPs of a size, for several β::

    python examples/memoryllm_model.py --hidden-size 768 --layers 12 --vocab-size 32768
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
GROUPS = {
    "self_attn": "attention", ".mlp": "ffn_c", "memory_mlp": "ffn_m", "embed_tokens": "embedding",
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; `inner` is that of FFN-C and `memory_inner` that of FFN-M, 0 for none."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    inner: int
    memory_inner: int
    context: int
    flex_input: str = "post_attention"  # or "residual": FFN-C reads the stream before attention

    @property
    def model_type(self) -> str:
        """The name in checkpoints."""
        if self.memory_inner == 0:
            return "llama"
        return "flex_memoryllm" if self.inner else "memoryllm"

    def to_json(self) -> dict[str, Any]:
        """Return what ``config.json`` holds (``docs/checkpoints.md``)."""
        sizes = {"memory_intermediate_size": self.memory_inner, "intermediate_size": self.inner}
        flex = {"flex_input": self.flex_input} if self.model_type == "flex_memoryllm" else {}
        return {
            "model_type": self.model_type,
            **flex,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            **{name: size for name, size in sizes.items() if size},
            "norm": "rmsnorm",
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "rope_interleaved": False,
            "max_position_embeddings": self.context,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }

    def forward_flops(self, tokens: int, length: int, memory_tokens: int) -> int:
        """FLOPs of a forward pass: FFN-M is computed for `memory_tokens` of the `tokens`.

        A multiply-add is two. Attention over the window counts with half its `length`, as it is
        causal. A backward pass takes twice as many.
        """
        per_layer = 4 * self.hidden_size**2 + self.hidden_size * (length + 3 * self.inner)
        per_token = self.layers * per_layer + self.vocab_size * self.hidden_size
        memory = self.layers * 3 * self.hidden_size * self.memory_inner
        return 2 * (tokens * per_token + memory_tokens * memory)


def split_ffn(hidden_size: int, beta: float, ffn: float = 8) -> tuple[int, int]:
    """Return the inner sizes of FFN-C and FFN-M: together ``ffn·h²`` weights, β·h² in FFN-C."""
    total, inner = round(ffn * hidden_size / 3), round(beta * hidden_size / 3)
    return inner, total - inner


class Attention(nn.Module):
    """Causal attention over rotary positions in halves."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, hidden) to the same shape."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """A gated feed-forward network without biases: FFN-C, FFN-M and the FFN of a dense model."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, hidden) to the same shape."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, FFN-C where the model has one, and a memory of the token where it has one."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.reads_residual = config.flex_input == "residual" and config.memory_inner > 0
        self.input_layernorm = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.self_attn = Attention(hidden, config.heads)
        self.mlp: nn.Module | None = None
        self.memory_mlp: nn.Module | None = None
        if config.inner:
            self.post_attention_layernorm = nn.RMSNorm(hidden, eps=NORM_EPS)
            self.mlp = SwiGLU(hidden, config.inner)
        if config.memory_inner:
            self.memory_layernorm = nn.RMSNorm(hidden, eps=NORM_EPS)
            self.memory_mlp = SwiGLU(hidden, config.memory_inner)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        distinct: torch.Tensor,
        inverse: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Update the stream `x`; row ``inverse`` of `distinct` is the embedding of each token."""
        added = self.self_attn(self.input_layernorm(x), *rotary)
        if self.mlp is not None:
            before, x = x, x + self.dropout(added)
            read = before if self.reads_residual else x
            added = self.mlp(self.post_attention_layernorm(read))
        if self.memory_mlp is not None:
            rows = self.memory_mlp(self.memory_layernorm(distinct))
            added = added + F.embedding(inverse, rows)
        updated: torch.Tensor = x + self.dropout(added)
        return updated


class Transformer(nn.Module):
    """The decoder; its parameters have the checkpoint's names without ``model.``."""

    def __init__(
        self, config: ModelConfig, dropout: float = 0.0, *, zero_outputs: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.zero_outputs = zero_outputs
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        for name, table in zip(("cos", "sin"), rotary_tables(config), strict=True):
            self.register_buffer(name, table, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=self.initial_std(name, parameter))

    def initial_std(self, name: str, weight: torch.Tensor) -> float:
        """Unit gain, smaller where a projection adds to the stream; the tied head starts flat."""
        if name.startswith("embed_tokens"):
            return 0.04
        gain = 1.0
        if "o_proj" in name or "down_proj" in name:
            gain = 0.0 if self.zero_outputs else (2 * self.config.layers) ** -0.5
        return gain * float(weight.shape[1] ** -0.5)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, length, vocab) of int64 ids (batch, length)."""
        ids, inverse = torch.unique(token_ids, return_inverse=True)
        distinct = self.embed_tokens(ids)
        x = F.embedding(inverse, distinct)
        length = token_ids.shape[1]
        for layer in self.layers:
            x = layer(x, distinct, inverse, (self.cos[:length], self.sin[:length]))
        return F.linear(self.norm(x), self.embed_tokens.weight)


def parameter_group(name: str) -> str:
    """Return which part of the model a parameter belongs to, by its name."""
    return next((group for part, group in GROUPS.items() if part in name), "norms")


def rotary_tables(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, each (context, head_dim / 2)."""
    head_dim = config.hidden_size // config.heads
    frequency = ROPE_THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(config.context, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the last axis against each other, in float32."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


def main() -> None:
    """Print a table of sizes."""
    parser = argparse.ArgumentParser(description="Parameters and FLOPs of a size, by β.")
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    print("β  model_type      FFN-C  FFN-M  parameters  MFLOP per token, rows looked up")
    for beta in (8, 3, 2, 1, 0):
        inner, memory = split_ffn(args.hidden_size, beta)
        config = ModelConfig(
            args.vocab_size, args.hidden_size, args.layers, 1, inner, memory, args.context
        )
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in Transformer(config).parameters())
        flops = config.forward_flops(1, args.context, 0) / 1e6
        print(f"{beta}  {config.model_type:<14}  {inner:>5}  {memory:>5}  {count:>10}  {flops:.1f}")


if __name__ == "__main__":
    main()
