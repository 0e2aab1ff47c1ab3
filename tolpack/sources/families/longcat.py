"""LongCat-Flash-Lite: the tables of its n-gram embeddings, one after the other, as one table.

The model calls them ``ngram_embeddings.embedders.N``, its sparse variant ``oe_embed_tokensN``, and
their numbers of rows follow from its configuration. A table may be padded with rows that no n-gram
touches. Ids are hashed as ``NgramEmbedding`` of the model's own code does: texts end at EOS.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from tolpack.errors import CheckpointError, ConfigError
from tolpack.ngrams import NGramHash, longcat_hash
from tolpack.sources.checkpoint.config import shown_value
from tolpack.sources.families.checkpoint_files import CheckpointFiles, numbered
from tolpack.sources.families.family import Family
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "ngram_embeddings"
_TENSOR = rf"(?:.+\.)?(?:{NAME}\.embedders\.|oe_embed_tokens)(\d{{1,4}})\.weight"
_MODEL_TYPES = ("longcat_flash_ngram",)
_PURPOSE = "the n-gram embeddings"


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    found = numbered(files.matching(_TENSOR), 1)
    if not found and files.model_type not in _MODEL_TYPES:
        return None
    ngrams = _ngram_hash(files)
    names = list(found.values())
    if list(found) != list(range(ngrams.heads)):
        raise CheckpointError(
            f"{files.path} has n-gram embeddings {list(found)}, but the config asks for "
            f"0 … {ngrams.heads - 1}, each once: a shard is missing, or the config is of another "
            "model"
        )
    rows = [files.matrix_shape(name)[0] for name in names]
    for name, count, size in zip(names, rows, ngrams.sizes):
        if count < size:
            raise CheckpointError(
                f"tensor {name!r} has {count:,} rows, but the config asks for {size:,}: the files "
                "are of different models"
            )
    fields = [files.codes(*names).field(NAME, 0)]
    ngrams = replace(ngrams, offsets=(0, *accumulate(rows[:-1])))
    return (TensorTable(NAME, LONGCAT.name, files.store.states, fields, ngrams),)


def _ngram_hash(files: CheckpointFiles) -> NGramHash:
    """Return the hash that the configuration describes, in either spelling."""
    config = files.text_config
    if config.get("ngram_exclude_sp_token"):
        raise CheckpointError(
            "config field 'ngram_exclude_sp_token' is set: the hash of models that leave special "
            "tokens out is not known; --tensor NAME makes a table of one n-gram embedding"
        )
    sizes = "ngram" if config.get("oe_vocab_size_ratio") is None else "oe"
    counts = "emb" if config.get("oe_neighbor_num") is None else "oe"
    try:
        return longcat_hash(
            vocab_size=files.setting("vocab_size", _PURPOSE),
            eos_token_id=files.setting("eos_token_id", _PURPOSE, least=0),
            ngram_vocab_size_ratio=_ratio(files, f"{sizes}_vocab_size_ratio"),
            emb_neighbor_num=files.setting(f"{counts}_neighbor_num", _PURPOSE),
            emb_split_num=files.setting(f"{counts}_split_num", _PURPOSE),
        )
    except ConfigError as error:
        raise CheckpointError(f"the config describes no n-gram hash: {error}") from error


def _ratio(files: CheckpointFiles, name: str) -> float:
    """Return rows of a table for each token id, which need not be an integer."""
    value = files.text_config.get(name)
    if isinstance(value, (int, float)) and value is not True and 0 < value <= 2**20:
        return value
    raise CheckpointError(
        f"config field {name!r} is {shown_value(value)}, expected a number for {_PURPOSE}: copy "
        "the model's own config.json"
    )


LONGCAT = Family(
    "LongCat-Flash-Lite (n-gram embeddings)",
    ("…ngram_embeddings.embedders.N.weight", "…oe_embed_tokensN.weight"),
    _open_tables,
)
