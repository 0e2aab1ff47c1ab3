"""MoLE's lookup experts (arXiv 2503.15798): rows for each layer and expert, all of which are used.

Before it is deployed, a model is reparameterized: the output of each expert is computed for all
tokens and kept in one matrix. Published checkpoints are those of training, without that matrix. Its
rows are then computed here, in float32: ``Expert(RMSNorm(emb[t]))`` with
``Expert(x) = W_down · GELU(W_up x)``.

| what | name | from |
|---|---|---|
| the table | `model.moe_table.weight` `[vocab, layers · experts · hidden]` | the authors' code |
| experts | `model.layers.L.experts.E.{up,down}_proj.weight` | the authors' code |
| the norm | `model.layers.L.expert_layernorm.weight`, `rms_norm_eps` of the config | the authors' code |
| emb | `model.embed_tokens.weight` | the authors' code |
| sizes | `num_hidden_layers`, `num_experts`, `hidden_size` of the config | the authors' code |
"""  # noqa: E501 (a table)

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.container.preamble import MAX_FIELDS
from tolpack.errors import CheckpointError
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.family import Family
from tolpack.sources.ffn import Norm
from tolpack.sources.protocol import SourceField, TableSource
from tolpack.sources.tensors.computed_table import ComputedTable, TokenRows, Weights, rms_norm_eps
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "experts"
_TABLE = r"(?P<model>(?:.+\.)?)moe_table\.weight"
_NORM = r"(?P<model>(?:.+\.)?)layers\.0\.expert_layernorm\.weight"
_PURPOSE = "the tables of experts"


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    tables, norms = files.matching(_TABLE), files.matching(_NORM)
    if not tables and not norms:
        return None
    layers = files.setting("num_hidden_layers", _PURPOSE, most=MAX_FIELDS)
    experts = files.setting("num_experts", _PURPOSE, most=MAX_FIELDS)
    width = files.setting("hidden_size", _PURPOSE)
    if layers * experts > MAX_FIELDS:
        raise CheckpointError(
            f"the config asks for {layers} layers of {experts} experts, which are "
            f"{layers * experts:,} fields, expected at most {MAX_FIELDS:,}: a pack holds no more"
        )
    (name, *others) = tables or norms
    if others:
        raise CheckpointError(
            f"tensors {name!r} and {others[0]!r} are of two models, expected one: remove those of "
            "the other"
        )
    if tables:
        return (_stored_table(files, name, layers, experts, width),)
    return (_computed_table(files, norms[name]["model"], layers, experts, width),)


def _stored_table(
    files: CheckpointFiles, name: str, layers: int, experts: int, width: int
) -> TensorTable:
    shape, expected = files.matrix_shape(name), layers * experts * width
    if shape[1] != expected:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(shape)}, expected [vocab, {expected}]: "
            f"num_hidden_layers {layers} · num_experts {experts} · hidden_size {width}"
        )
    codes = files.codes(name)
    fields = [
        codes.field(f"layer.{n // experts}.expert.{n % experts}", n // experts, n * width, width)
        for n in range(layers * experts)
    ]
    return TensorTable(NAME, MOLE.name, files.store.states, fields)


def _computed_table(
    files: CheckpointFiles, model: str, layers: int, experts: int, width: int
) -> ComputedTable:
    weights, eps = Weights(files), rms_norm_eps(files)
    embedding = f"{model}embed_tokens.weight"
    vocab = files.setting("vocab_size", _PURPOSE)
    weights.check_shape(embedding, (vocab, width))
    norms = [f"{model}layers.{layer}.expert_layernorm.weight" for layer in range(layers)]
    bases = [
        f"{model}layers.{layer}.experts.{expert}"
        for layer in range(layers)
        for expert in range(experts)
    ]
    for name in norms:
        weights.check_shape(name, (width,))
    for base in bases:
        _check_expert(weights, base, width)
    parts = [[f"{base}.{part}_proj.weight" for base in bases] for part in ("up", "down")]
    fields = [
        SourceField(f"layer.{n // experts}.expert.{n % experts}", n // experts, width, "float32")
        for n in range(layers * experts)
    ]

    def load(field: int) -> TokenRows:
        return _expert_rows(weights, embedding, norms[field // experts], bases[field], eps)

    kinds = [[embedding], norms, *parts]
    weight_bytes = max(weights.nbytes([norms[0], up, down]) for up, down in zip(*parts))
    return ComputedTable(
        NAME, MOLE.name, vocab, fields, weights, kinds, f"mole {eps}", load, weight_bytes
    )


def _check_expert(weights: Weights, base: str, width: int) -> None:
    up = f"{base}.up_proj.weight"
    inner, _ = weights.files.matrix_shape(up)
    weights.check_shape(up, (inner, width))
    weights.check_shape(f"{base}.down_proj.weight", (width, inner))


def _expert_rows(
    weights: Weights, embedding: str, norm_name: str, base: str, eps: float
) -> TokenRows:
    """Load an expert, and return the function that computes its rows."""
    words = weights.rows(embedding)
    norm = Norm("rmsnorm", eps, weights.whole(norm_name), None)
    up, down = (weights.whole(f"{base}.{part}_proj.weight") for part in ("up", "down"))

    def rows(ids: NDArray[np.int64]) -> torch.Tensor:
        return F.linear(F.gelu(F.linear(norm(words(ids)), up)), down)

    return rows


MOLE = Family("MoLE", ("…moe_table.weight", "…layers.N.expert_layernorm.weight"), _open_tables)
