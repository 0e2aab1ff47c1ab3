"""Engram (arXiv 2601.07372): a table for each layer that has one, in two spellings.

=================  ============================================  ===========================
checkpoint         tensors of layer N                            settings
=================  ============================================  ===========================
DeepSeek-V4.1      ``layers.N.engram.embed.weight``, ``.scale``  ``text_config.engram_…``
the authors' demo  ``N.engram.multi_head_embedding.embedding``,  ``engram_config``
                   ``.offsets``
=================  ============================================  ===========================

Both hash compressed token ids, which follow from the ``tokenizer.json`` beside the configuration.
The demo is not a released model. Where its settings stand is a choice made here: an object
``engram_config`` with the names of its class ``EngramConfig``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.ngrams import NGramHash, engram_hashes
from tolpack.sources.checkpoint.config import shown_value
from tolpack.sources.families.checkpoint_files import CheckpointFiles, numbered
from tolpack.sources.families.compressed_ids import compressed_token_ids
from tolpack.sources.families.family import Family
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.tensor_table import TensorTable

_TENSOR = r"(?:.+\.)?(?P<layer>\d{1,5})\.engram\.(?:embed|multi_head_embedding\.embedding)\.weight"
_PURPOSE = "the n-gram hash of Engram"
_MAX_NUMBERS = 64
# By argument of `engram_hashes`: the setting's name.
_DEEPSEEK = {
    "max_ngram_size": "engram_max_ngram_size",
    "n_heads": "engram_n_heads",
    "pad_id": "engram_pad_token_id",
}
_DEMO = {
    "max_ngram_size": "max_ngram_size",
    "n_heads": "n_head_per_ngram",
    "pad_id": "pad_id",
    "seed": "seed",
}


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    found = numbered(files.matching(_TENSOR), "layer")
    if not found and not files.text_config.get("engram_layer_ids"):
        return None
    layers, hashes = _ngram_hashes(files)
    if list(found) != sorted(layers):
        raise CheckpointError(
            f"{files.path} has Engram tables of layers {list(found)}, but the config "
            f"asks for {sorted(layers)}: a shard is missing, or the config is of another model"
        )
    return tuple(_open_table(files, name, layer, hashes[layer]) for layer, name in found.items())


def _open_table(files: CheckpointFiles, name: str, layer: int, ngrams: NGramHash) -> TensorTable:
    """Open the table of one layer."""
    rows, _ = files.matrix_shape(name)
    if rows < ngrams.table_rows:
        raise CheckpointError(
            f"tensor {name!r} has {rows:,} rows, but the config asks for {ngrams.table_rows:,}: "
            "the files are of different models"
        )
    stored = name.replace(".embedding.weight", ".offsets")
    if stored != name and files.has(stored) and files.integers(stored) != ngrams.offsets:
        raise CheckpointError(
            f"tensor {stored!r} holds other offsets than follow from the config: the files are of "
            "different models"
        )
    fields = [files.codes(name).field(f"layer.{layer}", layer)]
    return TensorTable(f"layer.{layer}", ENGRAM.name, files.store.states, fields, ngrams)


def _ngram_hashes(files: CheckpointFiles) -> tuple[list[int], dict[int, NGramHash]]:
    """Return the layers in the order of the configuration, and the hash of each."""
    demo = files.config.get("engram_config")
    settings, names, layer_ids = files, _DEEPSEEK, "engram_layer_ids"
    if isinstance(demo, dict):
        settings, names = CheckpointFiles(files.path, files.store, demo), _DEMO
        layer_ids = "layer_ids"
    layers = _numbers(settings, layer_ids)
    bases = _numbers(settings, "engram_vocab_size")
    values = {key: settings.setting(name, _PURPOSE, least=0) for key, name in names.items()}
    compressed_ids = _compressed_ids(files, settings)
    image = files.config.get("image_token_id")
    has_images = type(image) is int and 0 <= image < len(compressed_ids)
    try:
        hashes = engram_hashes(
            layer_ids=layers,
            compressed_ids=compressed_ids,
            engram_vocab_size=bases if len(bases) > 1 else bases[0],
            boundary=image if has_images else None,
            **values,
        )
    except ConfigError as error:
        raise CheckpointError(f"the config describes no n-gram hash: {error}") from error
    _check_rows(settings, [ngrams.table_rows for ngrams in hashes])
    return layers, dict(zip(layers, hashes))


def _check_rows(settings: CheckpointFiles, rows: list[int]) -> None:
    """Raise `CheckpointError` if the settings say that tables have other rows."""
    said = settings.text_config.get("engram_num_embeddings", rows)
    if said != rows:
        raise CheckpointError(
            f"config field 'engram_num_embeddings' is {shown_value(said)}, but the n-gram hash "
            f"that it describes has tables of {rows} rows: copy the model's own config.json"
        )


def _compressed_ids(files: CheckpointFiles, settings: CheckpointFiles) -> NDArray[np.uint32]:
    """Return the compressed ids that follow from the tokenizer, as many as the settings say."""
    folder = files.path if files.path.is_dir() else files.path.parent
    found = compressed_token_ids(folder / "tokenizer.json")
    count = int(found.max()) + 1
    expected = settings.text_config.get("engram_compressed_vocab_size", count)
    if count != expected:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {count:,} different texts, but the config asks for "
            f"{shown_value(expected)} (engram_compressed_vocab_size): copy the model's own "
            "tokenizer.json"
        )
    return found


def _numbers(files: CheckpointFiles, name: str) -> list[int]:
    """Return a setting that is an integer or a list of integers, as a list."""
    value = files.text_config.get(name)
    values: list[int] = value if isinstance(value, list) else [value]  # type: ignore[list-item]
    good = all(type(one) is int and 0 <= one < 2**31 for one in values)
    if not good or not 1 <= len(values) <= _MAX_NUMBERS:
        raise CheckpointError(
            f"config field {name!r} is {shown_value(value)}, expected 1 … {_MAX_NUMBERS} integers "
            f"for {_PURPOSE}: copy the model's own config.json"
        )
    return values


ENGRAM = Family(
    "Engram (DeepSeek-V4.1, demo)",
    ("…layers.N.engram.embed.weight", "…N.engram.multi_head_embedding.embedding.weight"),
    _open_tables,
)
