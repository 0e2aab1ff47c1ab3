"""MeKi's memory experts (arXiv 2602.03359): a row for each layer, folded or still to be folded.

The table of a layer is ``RMSNorm(E[t] + β · SwiGLU(emb[t])) · α``. The authors' code writes it over
``E`` once training is done, after which the SwiGLU is not needed. So a layer with the SwiGLU's
weights is computed here, in float32, and a layer without them is read as it is.

| what | name | from |
|---|---|---|
| E, or the folded table | `…layers.N.meki_module.embeddings.weight` `[vocab, mem_dim]` | the authors' code |
| SwiGLU | `….word_emb_projection.{gate,up,down}_proj.weight` | the authors' code |
| α, β | `….alpha_scale`, `….beta_scale`: scalars | the authors' code |
| the norm | `….mix_norm.weight`, `rms_norm_eps` of the config | the authors' code |
| emb | `word_emb.weight`; also `…embed_tokens.weight` | the authors' code; assumed |
"""  # noqa: E501 (a table)

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.sources.families.checkpoint_files import CheckpointFiles, numbered
from tolpack.sources.families.family import Family
from tolpack.sources.ffn import GatedFFN, Norm
from tolpack.sources.protocol import SourceField, TableSource
from tolpack.sources.tensors.computed_table import ComputedTable, TokenRows, Weights, rms_norm_eps
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "meki"
_TENSOR = r"(?P<module>(?:.+\.)?layers\.(?P<layer>\d{1,4})\.meki_module)\.embeddings\.weight"
_EMBEDDING = r"(?:.+\.)?(?:word_emb|embed_tokens)\.weight"
_PROJECTIONS = tuple(f"word_emb_projection.{part}_proj.weight" for part in ("gate", "up", "down"))
_OTHERS = ("beta_scale", "alpha_scale", "mix_norm.weight")


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    found = files.matching(_TENSOR)
    if not found:
        return None
    modules = {n: found[name]["module"] for n, name in numbered(found, "layer").items()}
    unfolded = [
        layer
        for layer, module in modules.items()
        if any(files.has(f"{module}.{name}") for name in _PROJECTIONS)
    ]
    if not unfolded:
        return (_folded_table(files, modules),)
    if len(unfolded) != len(modules):
        folded = sorted(set(modules) - set(unfolded))
        raise CheckpointError(
            f"layer {min(unfolded)} of {files.path} has a word_emb_projection and layer "
            f"{folded[0]} has none: expected one in all layers or in none; is a shard missing?"
        )
    return (_computed_table(files, modules),)


def _folded_table(files: CheckpointFiles, modules: Mapping[int, str]) -> TensorTable:
    fields = [
        files.codes(f"{modules[layer]}.embeddings.weight").field(f"layer.{layer}", layer)
        for layer in sorted(modules)
    ]
    return TensorTable(NAME, MEKI.name, files.store.states, fields)


def _computed_table(files: CheckpointFiles, modules: Mapping[int, str]) -> ComputedTable:
    weights, layers = Weights(files), sorted(modules)
    eps = rms_norm_eps(files)
    embedding = _embedding(files)
    vocab, hidden = files.matrix_shape(embedding)
    weights.check_shape(embedding, (vocab, hidden))
    _, width = files.matrix_shape(f"{modules[layers[0]]}.embeddings.weight")
    for module in modules.values():
        _check_shapes(weights, module, vocab, hidden, width)
    kinds = [[embedding]] + [
        [f"{modules[layer]}.{name}" for layer in layers]
        for name in ("embeddings.weight", *_PROJECTIONS, *_OTHERS)
    ]
    fields = [SourceField(f"layer.{layer}", layer, width, "float32") for layer in layers]

    def load(field: int) -> TokenRows:
        return _layer_rows(weights, modules[layers[field]], embedding, eps)

    weight_bytes = max(weights.nbytes(_loaded(module)) for module in modules.values())
    return ComputedTable(
        NAME, MEKI.name, vocab, fields, weights, kinds, f"meki {eps}", load, weight_bytes
    )


def _loaded(module: str) -> list[str]:
    """Return the tensors of a layer that are held while its rows are computed."""
    return [f"{module}.{name}" for name in (*_PROJECTIONS, *_OTHERS)]


def _layer_rows(weights: Weights, module: str, embedding: str, eps: float) -> TokenRows:
    """Load a layer, and return the function that computes its rows."""
    static, words = weights.rows(f"{module}.embeddings.weight"), weights.rows(embedding)
    gate, up, down, beta, alpha, weight = map(weights.whole, _loaded(module))
    ffn = GatedFFN("silu", gate, up, down)
    norm = Norm("rmsnorm", eps, weight, None)

    def rows(ids: NDArray[np.int64]) -> torch.Tensor:
        mixed: torch.Tensor = norm(static(ids) + ffn(words(ids)) * beta) * alpha
        return mixed

    return rows


def _check_shapes(weights: Weights, module: str, vocab: int, hidden: int, width: int) -> None:
    inner, _ = weights.files.matrix_shape(f"{module}.{_PROJECTIONS[0]}")
    shapes = [(inner, hidden), (inner, hidden), (width, inner), (), (), (width,)]
    weights.check_shape(f"{module}.embeddings.weight", (vocab, width))
    for name, shape in zip((*_PROJECTIONS, *_OTHERS), shapes):
        weights.check_shape(f"{module}.{name}", shape)


def _embedding(files: CheckpointFiles) -> str:
    """Return the name of the token embedding, or raise `CheckpointError`."""
    names = [name for name in files.matching(_EMBEDDING) if not re.search(r"layers\.\d", name)]
    if len(names) != 1:
        raise CheckpointError(
            f"{files.path} has {len(names)} token embeddings, expected one word_emb.weight or "
            "embed_tokens.weight [vocab, hidden]: MeKi's tables are computed from it"
        )
    return names[0]


MEKI = Family("MeKi", ("…layers.N.meki_module.embeddings.weight",), _open_tables)
