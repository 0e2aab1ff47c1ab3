"""Where the tables of an architecture are in its `transformers` model.

Names of modules and their order of values are those of transformers 5.24.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tolpack.errors import ConfigError
from tolpack.pack import Pack


@dataclass(frozen=True, slots=True)
class TableModule:
    """A module whose rows may come from a pack.

    ``path``: dotted name in the model; ``table``: the table's name in packs that were built from
    the model's folder; ``widths``: values of each field in a row; ``scale``: by which the module
    multiplies its rows; ``ngram_sizes``: rows of each head of an n-gram hash.
    """

    path: str
    table: str
    rows: int
    widths: tuple[int, ...]
    scale: float = 1.0
    ngram_sizes: tuple[int, ...] | None = None

    @property
    def tensors(self) -> str:
        """Regular expression for the tensors that it is loaded from, without the model's prefix."""
        shard = r"(?:shard(?:_|s\.)\d+\.)?"
        return rf"(?:^|\.){re.escape(self.path.removeprefix('model.'))}\.{shard}weight$"

    def check(self, pack: Pack) -> None:
        """Refuse a pack of another table.

        Raises
        ------
        ConfigError
            Rows, fields, multiplier or n-grams differ.
        """
        widths = pack.widths
        # A pack of the tensor alone has one field, all values of a row.
        same = widths in (self.widths, (sum(self.widths),))
        if pack.vocab_size != self.rows or not same:
            raise ConfigError(
                f"the pack has {pack.vocab_size:,} rows of {_fields(widths)}, but {self.path} of "
                f"the model has {self.rows:,} of {_fields(self.widths)}: the pack is of another "
                "model; build one from this model's folder"
            )
        multiplier = pack.decoder.multiplier
        if multiplier not in (1.0, self.scale):
            raise ConfigError(
                f"the pack multiplies its rows by {multiplier:g}, but {self.path} of the model by "
                f"{self.scale:g}: the pack is of another model"
            )
        sizes = None if pack.ngrams is None else pack.ngrams.sizes
        if sizes is not None and self.ngram_sizes is not None and sizes != self.ngram_sizes:
            raise ConfigError(
                f"heads of the pack have {sizes} rows, but those of {self.path} of the model have "
                f"{self.ngram_sizes}: the pack is of another model or another of its layers"
            )


def table_modules(model: Any) -> list[TableModule]:
    """Return the modules of a `transformers` model that a pack can replace.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Also one on the meta device, and one that has a pack mounted.

    Returns
    -------
    list of TableModule
        In the order of the model's layers.

    Raises
    ------
    ConfigError
        There is none.
    """
    config = model.config.get_text_config()
    find = _ARCHITECTURES.get(config.model_type)
    found = [] if find is None else list(find(model, config))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} (model_type {config.model_type!r}) has no table that a pack "
            f"can replace; tables are known of {', '.join(_ARCHITECTURES)}"
        )
    return found


def _gemma(model: Any, config: Any) -> Iterator[TableModule]:
    """Find the per-layer embeddings: a vector for each layer, one after the other."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "embed_tokens_per_layer":
            width = config.hidden_size_per_layer_input
            yield TableModule(
                path, "embed_tokens_per_layer", module.num_embeddings,
                (width,) * config.num_hidden_layers, scale=width**0.5,
            )  # fmt: skip


def _qwen4_exp(model: Any, config: Any) -> Iterator[TableModule]:
    """Find the n-gram embeddings: a table for each layer that has one."""
    found = [path for path, _ in model.named_modules() if path.endswith(".ngram_embedding")]
    for path in found:
        module, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
        name = "ngram_embedding" if len(found) == 1 else f"layer.{parent.layer_idx}"
        sizes = tuple(parent.head_vocab_sizes)
        yield TableModule(
            path, name, module.num_embeddings, (module.embedding_dim,), ngram_sizes=sizes
        )


# By the model_type of the text part's configuration.
_ARCHITECTURES: dict[str, Callable[[Any, Any], Iterator[TableModule]]] = {
    "gemma3n_text": _gemma,
    "gemma4_text": _gemma,
    "qwen4_exp_text": _qwen4_exp,
}


def _fields(widths: tuple[int, ...]) -> str:
    if len(set(widths)) == 1:
        return f"{len(widths)} × {widths[0]} values"
    return f"{' + '.join(map(str, widths[:8]))}{' + …' * (len(widths) > 8)} values"
