"""The memory FFN of a layer: from embedding rows to table rows (MemoryLLM, arXiv 2602.00398 §3).

``FFN(x̂) = W_down( (W_up x̂) ⊙ act(W_gate x̂) )`` with ``x̂ = Norm_L(x0)``. Each layer has its own
norm of the token embedding. Products are computed in float32, whatever the dtype of the weights.
A table that will be rounded to 8 bits or fewer may be computed with bfloat16 operands, accumulated
in float32, where the processor multiplies them faster. The norm is then computed in float32 too.
The output is rounded by 2⁻⁹ of a value at most, far less than by the codes (docs/lab-notes.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.schema import FFN_PARTS


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm or LayerNorm over the last axis.

    ``weight`` and ``bias`` are float32 (hidden,); ``bias`` is used by LayerNorm only.
    """

    kind: str
    eps: float
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (…, hidden) in its own dtype."""
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class GatedFFN:
    """SwiGLU without biases.

    ``gate``, ``up`` (inner, hidden) and ``down`` (hidden, inner): all float32 or all bfloat16.
    """

    act: str
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    def coefficients(self, x: torch.Tensor) -> torch.Tensor:
        """Return the key coefficients of float32 `x` (…, hidden): (…, inner), the weights' dtype.

        ``c_k = (W_up x)_k · act(W_gate x)_k`` (arXiv 2602.00398 §3): how much of the value
        ``W_down[:, k]`` the output has.
        """
        x = x.to(self.gate.dtype)
        gate = F.linear(x, self.gate)
        gate = F.silu(gate) if self.act == "silu" else F.gelu(gate)
        return F.linear(x, self.up).mul_(gate)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 `x` (…, hidden) to float32 (…, hidden), in the weights' dtype inside."""
        return F.linear(self.coefficients(x), self.down).float()


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply float32 `x` (…, n) by `weight`ᵀ (m, n) in the weight's dtype: float32 (…, m)."""
    return F.linear(x.to(weight.dtype), weight).float()


def load_norm(checkpoint: Checkpoint, name: str) -> Norm:
    """Load the norm whose weight is ``{name}.weight``, in float32."""
    config = checkpoint.config
    kind = config.require("norm", "the norms")
    if kind == "rmsnorm":
        checkpoint.refuse_bias(name)
    bias = None
    if checkpoint.has(f"{name}.bias"):
        bias = checkpoint.tensor(f"{name}.bias").float()
    weight = checkpoint.tensor(f"{name}.weight").float()
    return Norm(kind, float(config.require("rms_norm_eps", "the norms")), weight, bias)


def load_ffn(checkpoint: Checkpoint, name: str, dtype: torch.dtype = torch.float32) -> GatedFFN:
    """Load the gated FFN ``{name}.{gate,up,down}_proj.weight`` in `dtype`."""
    checkpoint.refuse_bias(*(f"{name}.{part}" for part in FFN_PARTS))
    weights = [checkpoint.tensor(f"{name}.{part}.weight").to(dtype) for part in FFN_PARTS]
    return GatedFFN(checkpoint.config.require("hidden_act", "the FFNs"), *weights)


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products (known on Linux only)."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) is not None


def load_memory_ffn(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype = torch.float32
) -> tuple[Norm, GatedFFN]:
    """Load layer `layer`'s own norm of the embedding, in float32, and its memory FFN in `dtype`."""
    base = f"layers.{layer}"
    norm = load_norm(checkpoint, f"{base}.memory_layernorm")
    return norm, load_ffn(checkpoint, f"{base}.memory_mlp", dtype)
