"""Per-layer embeddings (PLE) of Gemma 3n and Gemma 4.

A row of ``embed_tokens_per_layer`` holds a vector for each layer, one after the other. The model
multiplies it by √hidden_size_per_layer_input (``Gemma3nTextScaledWordEmbedding`` and
``Gemma4TextScaledWordEmbedding`` of transformers 5.24). Gemma 3n reads row 0 for ids beyond the
table.
"""

from __future__ import annotations

import math

from tolpack.container.preamble import MAX_FIELDS
from tolpack.errors import CheckpointError
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.family import Family
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "embed_tokens_per_layer"
_TENSOR = rf"(?:.+\.)?{NAME}\.weight"
_MODEL_TYPES = ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text")
_PURPOSE = f"the shape of {NAME}"


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    names = list(files.matching(_TENSOR))
    if not names and (files.model_type not in _MODEL_TYPES or not _has_table(files)):
        return None
    if len(names) != 1:
        found = f"{len(names)}: {', '.join(names[:3])}" if names else "none"
        raise CheckpointError(
            f"{files.path} has {found} of tensors …{NAME}.weight, expected one"
            f"{'; is a shard missing?' if not names else ''}"
        )
    codes = files.codes(names[0])
    width = files.setting("hidden_size_per_layer_input", _PURPOSE)
    layers = files.setting("num_hidden_layers", _PURPOSE, most=MAX_FIELDS)
    # The configuration's default in transformers, which some files leave out.
    vocab = files.setting("vocab_size_per_layer_input", _PURPOSE, default=262_144)
    if files.shape(names[0]) != (vocab, layers * width):
        raise CheckpointError(
            f"tensor {names[0]!r} has shape {list(files.shape(names[0]))}, but the config asks for "
            f"[vocab_size_per_layer_input {vocab}, num_hidden_layers {layers} · "
            f"hidden_size_per_layer_input {width}]: the files are of different models"
        )
    fields = [
        codes.field(f"layer.{n}", n, n * width, width, multiplier=math.sqrt(width))
        for n in range(layers)
    ]
    model = files.transformers_model(names)
    # Each vector is gated before it is added to the stream, and still the next layers' can make up
    # for its errors: docs/lab-notes.md.
    return (
        TensorTable(
            NAME, GEMMA.name, files.store.states, fields, model=model, fields_compensate=True
        ),
    )


def _has_table(files: CheckpointFiles) -> bool:
    """Whether the config says that there is one: Gemma 4 comes without, too."""
    return files.text_config.get("hidden_size_per_layer_input") not in (None, 0)


GEMMA = Family("Gemma 3n, Gemma 4 (PLE)", (f"…{NAME}.weight",), _open_tables)
