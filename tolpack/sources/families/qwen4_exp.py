"""The n-gram embedding of Qwen4Exp: one table for each layer that has one, in shards.

``Qwen4ExpTextNGramEmbedding`` of transformers 5.24 joins the shards in the order of their numbers.
Its hash is in the checkpoint as three tensors, which follow from the configuration. Layers in
``ple_layer_ids`` count from 1, and those in tensor names from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tolpack.errors import CheckpointError, ConfigError
from tolpack.ngrams import NGramHash, qwen4_exp_hash
from tolpack.sources.checkpoint.config import shown_value
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.family import Family
from tolpack.sources.protocol import TableSource, TransformersFolder
from tolpack.sources.tensors.tensor_fields import StoredCodes
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "ngram_embedding"
_TENSOR = (
    r"(?P<module>(?:.+\.)?layers\.(?P<layer>\d{1,5})\.ple\.ple_embedding)\.ngram_embedding"
    r"\.(?:shard(?:_|s\.)(?P<shard>\d{1,6})\.)?weight"
)
_MODEL_TYPES = ("qwen4_exp", "qwen4_exp_text")
_HASH_TENSORS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")
_PURPOSE = "the n-gram embedding"


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    found: dict[tuple[int, str], dict[str, int]] = {}
    for name, match in files.matching(_TENSOR).items():
        shards = found.setdefault((int(match["layer"]), match["module"]), {})
        shards[name] = int(match["shard"] or 0)
    expected = [layer - 1 for layer in _ple_layer_ids(files)]
    if not found and not (is_qwen4_exp(files) and expected):
        return None
    layers = sorted(layer for layer, _ in found)
    if layers != expected:
        raise CheckpointError(
            f"{files.path} has n-gram embeddings of layers {layers}, but ple_layer_ids of the "
            f"config asks for {expected}, counted from 0: a shard is missing, or the config is of "
            f"another model; {files.config_remedy}"
        )
    alone = len(found) == 1
    model = files.transformers_model([name for shards in found.values() for name in shards])
    return tuple(
        _open_table(files, NAME if alone else f"layer.{layer}", layer, index, module, shards, model)
        for index, ((layer, module), shards) in enumerate(sorted(found.items()))
    )


def _open_table(
    files: CheckpointFiles, name: str, layer: int, index: int, module: str,
    shards: dict[str, int], model: TransformersFolder | None,
) -> TensorTable:  # fmt: skip
    """Open the table of one layer, the `index`-th that has one."""
    names = sorted(shards, key=lambda one: shards[one])
    numbers = [shards[one] for one in names]
    if numbers != list(range(len(names))):
        gap = next(n for n, number in enumerate([*numbers, -1]) if n != number)
        raise CheckpointError(
            f"{module}.ngram_embedding has shards {numbers[0]} … {numbers[-1]}, but number {gap} "
            "is missing, or there twice: copy all files of the model"
        )
    ngrams = ngram_hash(files, [f"{module}.{one}" for one in _HASH_TENSORS], index)
    codes = files.codes(*names)
    _check_shape(files, codes, ngrams)
    fields = [codes.field(f"layer.{layer}", layer)]
    return TensorTable(name, QWEN4_EXP.name, files.store.states, fields, ngrams, model)


def _check_shape(files: CheckpointFiles, codes: StoredCodes, ngrams: NGramHash) -> None:
    """Raise `CheckpointError` unless the rows are those of the hash, padded, and as wide as the
    configuration says.
    """
    divisor = files.setting("make_ngram_vocab_size_divisible_by", _PURPOSE, default=128)
    rows = math.ceil(ngrams.table_rows / divisor) * divisor
    width = _embed_dim(files) // ngrams.heads
    if (codes.rows.rows, codes.width) != (rows, width):
        shards = files.text_config.get("split_ngram_parts")
        raise CheckpointError(
            f"{codes.names}: {len(codes.rows.parts)} tensors (split_ngram_parts of the config: "
            f"{shown_value(shards)}) have {codes.rows.rows:,} rows of {codes.width} values, "
            f"expected {rows:,} of {width}: the sizes of all heads, and padding to a multiple of "
            f"{divisor}; a shard is missing or of another model, or the config is"
        )


def is_qwen4_exp(files: CheckpointFiles) -> bool:
    """Whether the configuration is that of such a model."""
    return files.model_type in _MODEL_TYPES


def ngram_hash(files: CheckpointFiles, stored: Sequence[str], index: int = 0) -> NGramHash:
    """Return the hash: from its tensors if they are there, else from the configuration.

    Parameters
    ----------
    files : CheckpointFiles
        The checkpoint.
    stored : sequence of str
        Names of the tensors: multipliers, sizes of the heads, and their first rows; or none.
    index : int
        Which of the layers that have a table.

    Raises
    ------
    CheckpointError
        A setting is missing, or the tensors do not fit the configuration.
    """
    settings = {
        name: files.setting(name, _PURPOSE, default=default)
        for name, default in (
            ("ngram_size", 3),
            ("heads_per_ngram", 8),
            ("ngram_vocab_size_base", 20_000_000),
        )
    }
    computed = qwen4_exp_hash(
        vocab_size=files.setting("vocab_size", _PURPOSE),
        eos_token_id=_eos_token_id(files),
        seed=files.setting("seed", _PURPOSE, default=1234, least=0, most=2**63 - 1),
        ple_layer_index=index,
        **settings,
    )
    if not stored or not all(map(files.has, stored)):
        return computed
    multipliers, sizes, offsets = (files.integers(name) for name in stored)
    lengths = len(multipliers), len(sizes), len(offsets)
    expected = len(computed.multipliers), len(computed.sizes), len(computed.offsets)
    if lengths != expected:
        raise CheckpointError(
            f"{', '.join(stored)} have {lengths} values, but the config asks for {expected}: they "
            "are of different models"
        )
    orders, pad, boundary = computed.orders, computed.pad, computed.boundary
    try:
        return NGramHash("xor", orders, sizes, offsets, multipliers, pad, boundary)
    except ConfigError as error:
        raise CheckpointError(
            f"{files.path}: {', '.join(stored)} give no hash: {error}; copy the file again"
        ) from error


def _ple_layer_ids(files: CheckpointFiles) -> list[int]:
    """Return the layers that have a table, from 1, ascending and each once."""
    layers = files.text_config.get("ple_layer_ids") or []
    if not isinstance(layers, list) or not all(type(n) is int and 0 < n < 1e5 for n in layers):
        raise CheckpointError(
            f"config field 'ple_layer_ids' is {shown_value(layers)}, expected layers from 1"
        )
    return sorted(set(layers))


def _embed_dim(files: CheckpointFiles) -> int:
    default = files.setting("hidden_size", _PURPOSE)
    return files.setting("ple_embed_dim", _PURPOSE, default=default)


def _eos_token_id(files: CheckpointFiles) -> int:
    """Return the id over which n-grams do not reach: the first one, as in transformers."""
    found = files.text_config.get("eos_token_id")
    if isinstance(found, list) and found:
        found = found[0]
    if type(found) is not int or not 0 <= found < 2**31:
        raise CheckpointError(
            f"config field 'eos_token_id' is {shown_value(found)}, expected a token id for "
            f"{_PURPOSE}: copy the model's own config.json"
        )
    return found


QWEN4_EXP = Family(
    "Qwen4Exp (n-gram embedding)",
    (
        "…layers.N.ple.ple_embedding.ngram_embedding.shard_N.weight",
        "…layers.N.ple.ple_embedding.ngram_embedding.weight",
    ),
    _open_tables,
)
