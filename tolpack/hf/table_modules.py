"""Where the tables of an architecture are in its `transformers` model.

Names of modules and their order of values are those of transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tolpack.errors import ConfigError
from tolpack.pack import Pack
from tolpack.torch import ToLMemory
from tolpack.torch.embedding import PackEmbedding


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

    def replace(self, model: Any, pack: Pack) -> None:
        """Put `pack` in the module's place, with its dtype."""
        weight = model.get_submodule(self.path).weight
        # The module that is replaced has its factor in its first dtype, whatever it is cast to.
        scale = torch.tensor(self.scale, dtype=weight.dtype, device="cpu").item()
        embedding = PackEmbedding(pack, weight.dtype, weight.device, scale=scale)
        model.set_submodule(self.path, embedding)

    def rows_of(self, model: Any, ids: torch.Tensor) -> torch.Tensor | None:
        """Return rows float32 (ids, width) of the module, without its factor.

        None: its weights are not in memory, or a pack has its place.
        """
        weight = model.get_submodule(self.path).weight
        if not isinstance(weight, torch.Tensor) or weight.is_meta:
            return None
        return weight.detach()[ids.to(weight.device)].float().cpu()

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
        # The model's own may be rounded to bfloat16.
        if multiplier != 1.0 and not math.isclose(multiplier, self.scale, rel_tol=2**-7):
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


class MemoryFFNs(TableModule):
    """The memory FFNs of all layers of a MemoryLLM, which one pack replaces together."""

    def replace(self, model: Any, pack: Pack) -> None:
        """Put `pack` in their place."""
        weight = model.get_input_embeddings().weight
        device = "cpu" if weight.device.type == "meta" else weight.device
        model.set_memory(ToLMemory(pack, weight.dtype, device))

    def rows_of(self, model: Any, ids: torch.Tensor) -> torch.Tensor | None:
        """Return the rows that the FFNs compute."""
        weights = [*model.get_input_embeddings().parameters(), *model.parameters()]
        if model.memory is not None or any(weight.is_meta for weight in weights):
            return None
        with torch.no_grad():
            ids = ids.to(weights[0].device)
            rows = [model.memory_rows(n, ids).float().cpu() for n in range(len(self.widths))]
        return torch.cat(rows, 1)


@dataclass(frozen=True, slots=True)
class Architecture:
    """``find``: the modules in a model of this configuration; ``tensors``: regular expression for
    the names of the tensors that they are loaded from.
    """

    find: Callable[[Any, Any], Iterator[TableModule]]
    tensors: str


def architecture(model_type: str) -> Architecture:
    """Return the architecture of a ``model_type`` of the text part's configuration.

    Raises
    ------
    ConfigError
        It is not known.
    """
    found = _ARCHITECTURES.get(model_type)
    if found is None:
        raise ConfigError(
            f"of model_type {model_type!r} no table is known that a pack can replace; known are "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return found


def check_vocabulary(rows: int, new_num_tokens: int | None) -> None:
    """Refuse to resize the vocabulary of a model with a pack, whose `rows` stay.

    Raises
    ------
    ConfigError
        `new_num_tokens` is another number.
    """
    if new_num_tokens not in (None, rows):
        raise ConfigError(
            f"the mounted pack has rows of {rows:,} tokens, not of {new_num_tokens:,}: resize the "
            "model before a pack is built from it and mounted"
        )


def skip_tensors(model: Any) -> None:
    """Have `from_pretrained` leave out the tensors of a model's tables, if files hold them."""
    ignored = set(model._keys_to_ignore_on_load_unexpected or ())
    tensors = architecture(model.config.get_text_config().model_type).tensors
    model._keys_to_ignore_on_load_unexpected = ignored | {tensors}


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
    found = list(architecture(config.model_type).find(model, config))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no table: its configuration says that there is none"
        )
    return found


def _gemma(model: Any, config: Any) -> Iterator[TableModule]:
    """Find the per-layer embeddings: a vector for each layer, one after the other."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "embed_tokens_per_layer":
            width = config.hidden_size_per_layer_input
            buffer: Any = getattr(module, "embed_scale", None)
            unknown = buffer is None or buffer.device.type == "meta"
            yield TableModule(
                path, "embed_tokens_per_layer", module.num_embeddings,
                (width,) * config.num_hidden_layers,
                scale=math.sqrt(width) if unknown else float(buffer),
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


def _memoryllm(model: Any, config: Any) -> Iterator[TableModule]:
    """Find the memory FFNs."""
    widths = (config.hidden_size,) * config.num_hidden_layers
    yield MemoryFFNs("model.layers", "ffn", config.vocab_size, widths)


_GEMMA = Architecture(_gemma, r"(?:^|\.)embed_tokens_per_layer\.weight$")
_MEMORYLLM = Architecture(_memoryllm, r"(?:^|\.)layers\.\d+\.memory_(?:mlp|layernorm)\.")
# By the model_type of the text part's configuration.
_ARCHITECTURES = {
    "gemma3n_text": _GEMMA,
    "gemma4_text": _GEMMA,
    "qwen4_exp_text": Architecture(
        _qwen4_exp,
        r"(?:^|\.)layers\.\d+\.ple\.ple_embedding\.ngram_embedding\.(?:shard(?:_|s\.)\d+\.)?weight$",
    ),
    "memoryllm": _MEMORYLLM,
    "flex_memoryllm": _MEMORYLLM,
}


def _fields(widths: tuple[int, ...]) -> str:
    if len(set(widths)) == 1:
        return f"{len(widths)} × {widths[0]} values"
    return f"{' + '.join(map(str, widths[:8]))}{' + …' * (len(widths) > 8)} values"
