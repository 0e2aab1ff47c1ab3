"""The reference decoder: dense Llama-style, MemoryLLM and Flex-MemoryLLM, in float32.

It evaluates packs. It follows the paper's equations line by line and is not tuned for speed.
With ``X̃ = X + Attn(Norm_in(X))`` and ``M_l`` the layer's memory (arXiv 2602.00398 §3)::

    memoryllm       X ← X̃ + M_l[token]
    flex_memoryllm  X ← X̃ + FFN_C(Norm_post(X̃)) + M_l[token]     flex_input = post_attention
                    X ← X̃ + FFN_C(Norm_post(X)) + M_l[token]     flex_input = residual
    llama           X ← X̃ + FFN(Norm_post(X̃))

``M_l`` is any callable ``memory(layer, token_ids) -> (…, hidden)``: the FFNs of the checkpoint
(`FFNMemory`), or a pack through `tolpack.torch.ToLMemory`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch.nn import functional as F

from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.generation import generate
from tolpack.model.head import VocabularyMatrix, nll, nll_gradient
from tolpack.model.language_model import Memory, RowChange
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.config import ModelConfig
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.ffn import GatedFFN, Norm, linear, load_ffn, load_memory_ffn, load_norm

Rotary = Callable[[torch.Tensor], torch.Tensor]
KVPair = tuple[torch.Tensor, torch.Tensor]
KVCache = list[KVPair | None]
_T = TypeVar("_T")


class _Layers(Generic[_T]):
    """One object per layer: all resident, or each loaded whenever it is needed."""

    def __init__(self, count: int, load: Callable[[int], _T], *, resident: bool) -> None:
        self._count, self._load = count, load
        self._resident = [load(n) for n in range(count)] if resident else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, layer: int) -> _T:
        return self._load(layer) if self._resident is None else self._resident[layer]


class FFNMemory:
    """Memory outputs computed from the checkpoint's FFNs, once per distinct token.

    ``memory(layer, token_ids)`` takes int64 ids of any shape and returns float32
    (…, hidden_size).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        embedding: VocabularyMatrix,
        compute: torch.dtype,
        *,
        resident: bool,
    ) -> None:
        self._embedding = embedding
        count = checkpoint.config.num_hidden_layers
        load = partial(load_memory_ffn, checkpoint, dtype=compute)
        self._layers = _Layers(count, load, resident=resident)

    def __call__(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Return layer `layer`'s memory output for `token_ids`."""
        norm, ffn = self._layers[layer]
        distinct, inverse = torch.unique(token_ids, return_inverse=True)
        return ffn(norm(self._embedding.rows(distinct)))[inverse]


@dataclass(frozen=True, slots=True)
class _Attention:
    """Causal multi-head attention with rotary positions; weights as in the checkpoint."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    head_dim: int

    def __call__(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        past: KVPair | None,
    ) -> tuple[torch.Tensor, KVPair]:
        q, k, v = (self._heads(linear(x, w)) for w in (self.q, self.k, self.v))
        q, k = rotary(q), rotary(k)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        groups = q.shape[1] // k.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (k, v))
        mask = _causal_mask(q.shape[2], k.shape[2])
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return linear(y.transpose(1, 2).flatten(2), self.o), (k, v)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: _Attention
    input_norm: Norm
    post_norm: Norm | None
    mlp: Callable[[torch.Tensor], torch.Tensor] | None


class Decoder:
    """A decoder that computes in float32; see `tolpack.model.language_model.LanguageModel`.

    Parameters
    ----------
    checkpoint : Checkpoint
        The weights. Every config field that the model needs must be there.
    resident : bool
        Whether to keep all weights in memory; else they are read layer by layer when needed.
    compute : torch.dtype
        Dtype of the products with weights; everything else stays in float32.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        resident: bool = True,
        compute: torch.dtype = torch.float32,
    ) -> None:
        check_decoder(checkpoint)
        config = checkpoint.config
        self.config = config
        self.embedding = VocabularyMatrix(checkpoint, "embed_tokens.weight", resident=resident)
        self.head = self.embedding
        if not config.tie_word_embeddings:
            self.head = VocabularyMatrix(checkpoint, "lm_head.weight", resident=resident)
        elif checkpoint.has("lm_head.weight"):
            _check_tied(checkpoint)
        self.norm = load_norm(checkpoint, "norm")
        self.compute = compute
        self._checkpoint = checkpoint
        load = partial(_load_layer, checkpoint, compute)
        self.layers = _Layers(config.num_hidden_layers, load, resident=resident)
        self.memory: Memory | None = None
        if config.has_memory:
            self.memory = FFNMemory(checkpoint, self.embedding, compute, resident=resident)

    def __call__(
        self, token_ids: torch.Tensor, cache: KVCache | None = None, memory: Memory | None = None
    ) -> torch.Tensor:
        """Return float32 logits (batch, length, vocab_size) for int64 ids (batch, length).

        Parameters
        ----------
        token_ids : torch.Tensor
            int64 (batch, length), every id in ``0 … vocab_size-1``.
        cache : list, optional
            From `new_cache`; the ids continue the tokens already in it, and it is extended.
        memory : callable, optional
            Used for this call in place of ``self.memory``.
        """
        return self.head.logits(self.norm(self.states(token_ids, cache, memory)))

    def states(
        self, token_ids: torch.Tensor, cache: KVCache | None = None, memory: Memory | None = None
    ) -> torch.Tensor:
        """Return the residual stream after the last layer, float32 (batch, length, hidden)."""
        memory = memory or self.memory
        past = cache or [None] * len(self.layers)
        start = 0 if past[0] is None else past[0][0].shape[2]
        rotary = self.rotary(start, token_ids.shape[1])
        x = self.embedding.rows(token_ids)
        for n in range(len(self.layers)):
            x, present = self.block(n, x, rotary, past[n])
            if memory is not None:
                x = x + memory(n, token_ids)
            if cache is not None:
                cache[n] = present
        return x

    def block(
        self, layer: int, x: torch.Tensor, rotary: Rotary, past: KVPair | None = None
    ) -> tuple[torch.Tensor, KVPair]:
        """Apply layer `layer` without its memory to `x` (batch, length, hidden)."""
        weights = self.layers[layer]
        attended, present = weights.attention(weights.input_norm(x), rotary, past)
        before, x = x, x + attended
        if weights.mlp is not None and weights.post_norm is not None:
            reads_residual = self.config.flex_input == "residual" and self.config.has_memory
            x = x + weights.mlp(weights.post_norm(before if reads_residual else x))
        return x, present

    def rotary(self, start: int, length: int) -> Rotary:
        """Rotary embedding of positions ``start … start+length-1``."""
        return _rotary(self.config, start, length)

    def with_memory(self, memory: Memory) -> Decoder:
        """Return a decoder with the same weights and another memory.

        Raises
        ------
        ConfigError
            The model is dense and has no memory to replace.
        """
        if self.memory is None:
            raise ConfigError(f"model_type {self.config.model_type!r} has no memory to replace")
        other = copy.copy(self)
        other.memory = memory
        return other

    def new_cache(self) -> KVCache:
        """Return an empty key–value cache for `__call__`."""
        return [None] * len(self.layers)

    def row_ids(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `LanguageModel.row_ids`: the token ids."""
        return token_ids

    @torch.no_grad()
    def nll(self, windows: torch.Tensor) -> torch.Tensor:
        """See `LanguageModel.nll`."""
        states, targets = self.norm(self.states(windows[:, :-1])), windows[:, 1:]
        return nll(self.head, states.flatten(0, 1), targets.flatten()).view(targets.shape)

    def row_gradients(
        self, windows: torch.Tensor, changes: Sequence[RowChange | None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """See `LanguageModel.row_gradients`.

        Since the memory's output is added to the residual stream, its gradient is the gradient of
        the stream behind the layer: one backward pass through the layers, from the last to the
        first, gives all of them, and only the inputs of the layers are held.
        """
        if self.memory is None:
            raise ValueError("a dense decoder has no memory to differentiate at")
        fed, targets = windows[:, :-1], windows[:, 1:]
        rotary = self.rotary(0, fed.shape[1])
        inputs: list[torch.Tensor] = []
        outputs: list[torch.Tensor | None] = []
        with torch.no_grad():
            x = self.embedding.rows(fed)
            for layer in range(len(self.layers)):
                inputs.append(x)
                output = self.memory(layer, fed)
                change = None if changes is None else changes[layer]
                outputs.append(None if changes is None else output)
                x = self.block(layer, x, rotary)[0] + (output if change is None else change(output))
        gradient = self._loss_gradient(x, targets)
        for layer in reversed(range(len(self.layers))):
            yield layer, gradient, outputs.pop()
            if layer == 0:
                return  # nothing lies below the first layer that a gradient is asked of
            with torch.enable_grad():
                x = inputs.pop().requires_grad_()
                y = self.block(layer, x, rotary)[0]
                (gradient,) = torch.autograd.grad(y, x, gradient)

    def _loss_gradient(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Gradient of the summed loss at the residual stream `x` behind the last layer."""
        with torch.enable_grad():
            x = x.requires_grad_()
            states = self.norm(x)
        flat = states.detach().flatten(0, 1)
        outer = nll_gradient(self.head, flat, targets.flatten()).view(states.shape)
        (gradient,) = torch.autograd.grad(states, x, outer)
        return gradient

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.config.vocab_size

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest window, in tokens, if the config has it."""
        return self.config.max_position_embeddings

    @property
    def widths(self) -> tuple[int, ...]:
        """See `LanguageModel.widths`."""
        return (self.config.hidden_size,) * (len(self.layers) if self.memory is not None else 0)

    @property
    def macs_per_token(self) -> int:
        """See `LanguageModel.macs_per_token`."""
        return macs_per_token(self.config)

    @property
    def activation_bytes(self) -> int:
        """See `LanguageModel.activation_bytes`: inputs and outputs of all layers."""
        return 8 * self.config.num_hidden_layers * self.config.hidden_size

    def fingerprint(self) -> bytes:
        """See `LanguageModel.fingerprint`: configuration, and every bit of the weights."""
        settings = repr((self.config, self.compute)).encode()
        return hashlib.sha256(settings).digest() + self._checkpoint.fingerprint()

    def check_unchanged(self) -> None:
        """See `LanguageModel.check_unchanged`."""
        self._checkpoint.check_unchanged()

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Yield token ids that continue `prompt`; see `tolpack.model.generation.generate`."""
        return generate(self, prompt, max_new_tokens, temperature=temperature, seed=seed)


def macs_per_token(config: ModelConfig) -> int:
    """Return the multiply-adds of weights in a forward pass of a token, about."""
    hidden = config.hidden_size
    inner = (config.memory_intermediate_size or 0) + (config.intermediate_size or 0)
    weights = config.num_hidden_layers * hidden * (4 * hidden + 3 * inner)
    return weights + config.vocab_size * hidden


def _load_layer(checkpoint: Checkpoint, compute: torch.dtype, layer: int) -> _Layer:
    config, base = checkpoint.config, f"layers.{layer}"
    post_norm = mlp = None
    if config.model_type != "memoryllm":
        post_norm = load_norm(checkpoint, f"{base}.post_attention_layernorm")
        mlp = _load_mlp(checkpoint, compute, f"{base}.mlp")
    attention = _load_attention(checkpoint, compute, f"{base}.self_attn")
    return _Layer(attention, load_norm(checkpoint, f"{base}.input_layernorm"), post_norm, mlp)


def _load_mlp(
    checkpoint: Checkpoint, compute: torch.dtype, name: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load FFN-C (or the dense FFN): SwiGLU, or one linear map ``{name}.weight``."""
    if checkpoint.has(f"{name}.weight"):
        weight = checkpoint.tensor(f"{name}.weight").to(compute)
        return lambda x: linear(x, weight)
    ffn: GatedFFN = load_ffn(checkpoint, name, compute)
    return ffn


def _load_attention(checkpoint: Checkpoint, compute: torch.dtype, name: str) -> _Attention:
    head_dim = checkpoint.config.head_dim()
    checkpoint.refuse_bias(*(f"{name}.{part}_proj" for part in "qkvo"))
    weights = [checkpoint.tensor(f"{name}.{part}_proj.weight").to(compute) for part in "qkvo"]
    return _Attention(weights[0], weights[1], weights[2], weights[3], head_dim)


def _check_tied(checkpoint: Checkpoint) -> None:
    """Refuse a stored head that differs from the embedding: then the config is wrong."""
    if not checkpoint.equal("lm_head.weight", "embed_tokens.weight"):
        raise CheckpointError(
            "tensor 'lm_head.weight' differs from the embedding, but the config says "
            "tie_word_embeddings: set it to false"
        )


def _rotary(config: ModelConfig, start: int, length: int) -> Rotary:
    """Rotary embedding of positions ``start … start+length-1``, in halves or in pairs."""
    head_dim = config.head_dim()
    theta = float(config.require("rope_theta", "rotary embeddings"))
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    positions = torch.arange(start, start + length, dtype=torch.float64)
    angle = torch.outer(positions, frequency)
    cos, sin = angle.cos().float(), angle.sin().float()

    def halves(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def pairs(x: torch.Tensor) -> torch.Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

    return pairs if config.require("rope_interleaved", "rotary embeddings") else halves


def _causal_mask(queries: int, keys: int) -> torch.Tensor:
    """Boolean (queries, keys): a query sees the keys up to its own position."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
