"""Which tensors of a GGUF file are tables, and what their rows mean.

| tensor | table |
|---|---|
| `per_layer_token_embd.weight` of Gemma 3n and 4 | a field for each layer, `{arch}.embedding_length_per_layer_input` wide; llama.cpp multiplies rows by the root of that width when it reads them |
| `per_layer_token_embd.weight` of Qwen4Exp | rows of hashed n-grams: one field, of the layer in `{arch}.ple.layers`; the hash is in `{arch}.ple.*` |
| `blk.N.engram_embd.weight` | a table for each layer N, with one field |
| any other, by name | one field; `[vocab, layers, values]`: one for each layer |
"""  # noqa: E501 (a table)

from __future__ import annotations

import difflib
import math
import re
from itertools import islice
from pathlib import Path

from tolpack.errors import CheckpointError, ConfigError, printable
from tolpack.ngrams import NGramHash
from tolpack.sources.families.checkpoint_files import numbered
from tolpack.sources.families.description import TablesSummary, summarize
from tolpack.sources.gguf.header import GGUFTensor
from tolpack.sources.gguf.package import require_package
from tolpack.sources.gguf.splits import GGUFModel, read_model
from tolpack.sources.gguf.table import GGUFTable, TableLayout

PER_LAYER = "per_layer_token_embd.weight"
_ENGRAM = re.compile(r"blk\.(\d{1,4})\.engram_embd\.weight")
# Architectures whose per-layer embeddings are rows of the vocabulary.
_GEMMA = ("gemma3n", "gemma4")
# Names that are looked at for near ones: the search is slow.
_NEAR_NAMES = 5000


def open_gguf(
    path: Path, tensor: str | None = None, layers: int | None = None
) -> tuple[GGUFTable, ...]:
    """Open the tables of a GGUF file, or of all files of a model that was split.

    Parameters
    ----------
    path : Path
        The file, or one of the splits.
    tensor : str, optional
        Name of the tensor to open, in place of those that are recognised.
    layers : int, optional
        Layers that a row of `tensor` is cut into.

    Raises
    ------
    CheckpointError
        A file is damaged, a split is missing, or nothing in it is a table.
    ConfigError
        The ``gguf`` package is missing, or `layers` is given without `tensor`.
    """
    require_package()
    model = read_model(path)
    if tensor is not None:
        return (_named_table(model, tensor, layers),)
    if layers is not None:
        raise ConfigError("--layers is for one tensor of a GGUF file: name it with --tensor")
    if PER_LAYER in model.tensors:
        return (GGUFTable(model.tensors[PER_LAYER], _per_layer_layout(model)),)
    matches = {name: found for name in model.tensors if (found := _ENGRAM.fullmatch(name))}
    engram = numbered(matches, 1)
    if not engram:
        raise CheckpointError(_nothing_found(model))
    return tuple(
        GGUFTable(model.tensors[name], TableLayout(first_layer=layer))
        for layer, name in engram.items()
    )


def summarize_gguf(path: Path, tensor: str | None = None) -> TablesSummary:
    """Describe the tables that `open_gguf` opens; errors as there."""
    tables = open_gguf(path, tensor)
    model = read_model(path)
    arch = str(model.metadata.get("general.architecture", ""))
    return summarize(str(path), arch, model.tensors, tables)


def _named_table(model: GGUFModel, name: str, layers: int | None) -> GGUFTable:
    tensor = model.tensors.get(name)
    if tensor is None:
        names = list(islice(model.tensors, _NEAR_NAMES))
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        raise CheckpointError(
            f"{model.paths[0]} has no tensor {name!r}, expected one of its "
            f"{len(model.tensors)}: {', '.join(map(printable, near))} …"
        )
    if layers is None and name == PER_LAYER:
        return GGUFTable(tensor, _per_layer_layout(model))
    found = _ENGRAM.fullmatch(name)
    own = tensor.shape[1] if len(tensor.shape) == 3 else 1
    return GGUFTable(
        tensor, TableLayout(own if layers is None else layers, int(found[1]) if found else 0)
    )


def _per_layer_layout(model: GGUFModel) -> TableLayout:
    """Return the layout of `PER_LAYER` by the model's metadata, or raise `CheckpointError`."""
    arch = model.metadata.get("general.architecture")
    if arch not in _GEMMA:
        return _ngram_layout(model)
    tensor = model.tensors[PER_LAYER]
    width_key, count_key = f"{arch}.embedding_length_per_layer_input", f"{arch}.block_count"
    width, count = _integer(model, width_key), _integer(model, count_key)
    if len(tensor.shape) != 2 or tensor.shape[1] != width * count:
        raise CheckpointError(
            f"tensor {PER_LAYER!r} has shape {list(tensor.shape)}, expected [vocab, "
            f"{width * count}]: {count} layers ({count_key}) of {width} values ({width_key})"
        )
    return TableLayout(count, multiplier=math.sqrt(width))


def _ngram_layout(model: GGUFModel) -> TableLayout:
    """Return the layout of rows of hashed n-grams; without a hash if the metadata has none."""
    prefix = f"{model.metadata.get('general.architecture')}.ple"
    layers = model.metadata.get(f"{prefix}.layers")
    layer = layers[0] if isinstance(layers, tuple) and len(layers) == 1 else 0
    if f"{prefix}.layer_multipliers" not in model.metadata:
        return TableLayout(first_layer=layer)
    rows, ngrams = model.tensors[PER_LAYER].shape[0], _ngram_hash(model, prefix)
    if ngrams.table_rows > rows:
        raise CheckpointError(
            f"tensor {PER_LAYER!r} has {rows:,} rows, but the heads of {prefix}.head_offsets have "
            f"{ngrams.table_rows:,}: convert the model again"
        )
    return TableLayout(first_layer=layer, ngrams=ngrams)


def _ngram_hash(model: GGUFModel, prefix: str) -> NGramHash:
    sizes = _integers(model, f"{prefix}.head_vocab_sizes")
    eos = _integer(model, f"{prefix}.eos_token_id", 0)
    per_order = _integer(model, f"{prefix}.heads_per_ngram")
    try:
        return NGramHash(
            "xor",
            tuple(2 + head // per_order for head in range(len(sizes))),
            sizes,
            _integers(model, f"{prefix}.head_offsets"),
            _integers(model, f"{prefix}.layer_multipliers"),
            pad=eos,
            boundary=eos,
        )
    except ConfigError as error:
        raise CheckpointError(f"{model.paths[0]}: {prefix}.* give no hash: {error}") from error


def _integers(model: GGUFModel, key: str) -> tuple[int, ...]:
    value = model.metadata.get(key)
    if not isinstance(value, tuple):
        raise CheckpointError(
            f"{model.paths[0]}: {key} is {repr(value)[:40]}, expected a short list of integers: "
            "convert the model again"
        )
    return value


def _integer(model: GGUFModel, key: str, least: int = 1) -> int:
    value = model.metadata.get(key)
    if type(value) is not int or not least <= value < 2**31:
        raise CheckpointError(
            f"{model.paths[0]}: {key} is {repr(value)[:40]}, expected an integer from {least} on, "
            "below 2^31: convert the model again"
        )
    return value


def _nothing_found(model: GGUFModel) -> str:
    matrices = [one.name for one in model.tensors.values() if _is_table(one)]
    some = ", ".join(map(printable, matrices[:3])) or "none"
    return (
        f"{model.paths[0]} holds neither {PER_LAYER} nor blk.N.engram_embd.weight: name another "
        f"tensor with --tensor, such as token_embd.weight; tensors with rows: {some}"
    )


def _is_table(tensor: GGUFTensor) -> bool:
    return len(tensor.shape) in (2, 3)
