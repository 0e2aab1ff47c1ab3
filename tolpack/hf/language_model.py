"""A model of `transformers` as a `tolpack.model.language_model.LanguageModel`, in float32.

The model's own classes compute everything but the rows of its tables, and never load those. They
come from memories that give rows as the checkpoint has them: the multiplier of Gemma's tables is
applied behind them, as the stock module does it. So gradients and metrics are those of the stored
rows too, in whose units tables are planned and rounded.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tolpack.errors import CheckpointError, ConfigError
from tolpack.hf.leading_token import leading_token
from tolpack.hf.table_modules import TableModule
from tolpack.hf.without_tables import load_without_tables
from tolpack.model.language_model import Memory, RowChange
from tolpack.pack import Pack
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource
from tolpack.torch.embedding import PackEmbedding

# Bytes of logits, their exponentials and their gradients that exist at once.
_LOGIT_BYTES = 64 << 20
# Tokens that costs are measured on, and tokens that are asked together which rows they read.
_MEASURED_TOKENS, _ASKED_TOKENS = 64, 2048


class SourceMemory:
    """Rows of a table source, each read once per call.

    Parameters
    ----------
    source : TableSource
        The table.
    """

    def __init__(self, source: TableSource) -> None:
        self._source = source

    def __call__(self, field: int, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of a field at int64 ids of any shape: float32 (…, width)."""
        distinct, inverse = torch.unique(ids, return_inverse=True)
        return torch.from_numpy(self._source.field_rows(field)(distinct.numpy()))[inverse]


class MemoryEmbedding(nn.Module):
    """Stands in a model in place of a table, and asks a memory for all fields of its rows.

    Parameters
    ----------
    memory : callable
        See `tolpack.model.language_model.Memory`.
    table : TableModule
        The table whose place it takes.
    """

    def __init__(self, memory: Memory, table: TableModule) -> None:
        super().__init__()
        self.memory, self.table = memory, table
        self.num_embeddings, self.embedding_dim = table.rows, sum(table.widths)
        # Some models ask for its device. It has no values, and is not a parameter.
        self.weight = torch.empty(0, device="cpu")
        self.changes: Sequence[RowChange | None] | None = None
        self.rows: torch.Tensor | None = None
        self.leaf: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows that the model reads at `ids`: float32 (…, all widths).

        Where gradients are recorded, ``leaf`` holds these rows before they are multiplied, and
        ``rows`` what they were before any ``changes``.
        """
        fields = [self.memory(field, ids) for field in range(len(self.table.widths))]
        joined = torch.cat(fields, -1)
        if torch.is_grad_enabled():
            self.rows = joined if self.changes is not None else None
            if self.changes is not None:
                pairs = zip(fields, self.changes)
                joined = torch.cat([one if to is None else to(one) for one, to in pairs], -1)
            joined = self.leaf = joined.detach().requires_grad_()
        return joined if self.table.scale == 1.0 else joined * self.table.scale


class _AskedIds(Exception):  # noqa: N818 (it is not an error)
    """Leaves a model as soon as a table is asked; its argument are the ids."""


class _AskedTable(nn.Module):
    """Stands in place of a table to see the ids that it is asked for."""

    weight = torch.empty(0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        raise _AskedIds(ids)


@dataclass(frozen=True, slots=True)
class _Costs:
    macs: int
    activation_bytes: int


class TransformersModel:
    """A causal model that `transformers` runs, as it reads one of its tables.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model, in float32.
    tables : mapping of TableModule to TableSource
        All of its tables.
    path : str
        The module of the table in question.
    leading_token : int, optional
        Goes before every window; nothing is scored on it.
    """

    def __init__(
        self,
        model: Any,
        tables: Mapping[TableModule, TableSource],
        path: str,
        leading_token: int | None = None,
    ) -> None:
        self._model, self._tables, self._path = model, dict(tables), path
        self._leading = [] if leading_token is None else [leading_token]
        self._config = model.config.get_text_config()
        self._modules: dict[str, nn.Module] = {
            table.path: MemoryEmbedding(SourceMemory(source), table)
            for table, source in self._tables.items()
        }

    @property
    def vocab_size(self) -> int:
        """See `LanguageModel.vocab_size`."""
        return int(self._config.vocab_size)

    @property
    def max_position_embeddings(self) -> int | None:
        """See `LanguageModel.max_position_embeddings`."""
        found = getattr(self._config, "max_position_embeddings", None)
        return None if found is None else int(found)

    @property
    def memory(self) -> Memory | None:
        """See `LanguageModel.memory`; ``None`` with a pack mounted."""
        module = self._modules[self._path]
        return module.memory if isinstance(module, MemoryEmbedding) else None

    @property
    def widths(self) -> tuple[int, ...]:
        """See `LanguageModel.widths`."""
        return next(table.widths for table in self._tables if table.path == self._path)

    @property
    def macs_per_token(self) -> int:
        """See `LanguageModel.macs_per_token`: counted in a short run."""
        return self._costs.macs

    @property
    def activation_bytes(self) -> int:
        """See `LanguageModel.activation_bytes`: counted in a short run."""
        return self._costs.activation_bytes

    def __call__(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """See `LanguageModel.__call__`."""
        self._install(self._modules)
        # Not every kind of cache knows its length.
        begins = cache is None or not getattr(cache, "has_leading_token", False)
        ids = self._begun(token_ids) if begins else token_ids
        try:
            out = self._model(input_ids=ids, cache=cache, use_cache=cache is not None)
        except ValueError as error:  # some mixtures of layers have no cache that works
            raise CheckpointError(
                f"transformers cannot run the model step by step: {error}"
            ) from error
        if cache is not None:
            cache.has_leading_token = True
        logits: torch.Tensor = out.logits
        return logits[:, -token_ids.shape[1] :]

    def new_cache(self) -> Any:
        """See `LanguageModel.new_cache`."""
        return transformers.DynamicCache(config=self._config)

    def with_memory(self, memory: Memory) -> Self:
        """See `LanguageModel.with_memory`."""
        table = next(table for table in self._tables if table.path == self._path)
        return self._with({**self._modules, self._path: MemoryEmbedding(memory, table)})

    def with_pack(self, pack: Pack) -> Self:
        """Return the same model with its tables, or some of them, replaced by those of a pack.

        Raises
        ------
        ConfigError
            The pack is of another model.
        """
        modules, names = dict(self._modules), set(pack.tables)
        alone = len(names) == len(self._tables) == 1
        found = [table for table in self._tables if alone or table.table in names]
        if len(found) != len(names):
            raise ConfigError(
                f"the pack has tables {', '.join(pack.tables)}, but the model reads "
                f"{', '.join(table.table for table in self._tables)}: the pack is of another model"
            )
        for table in found:
            opened = pack if alone or pack.table == table.table else pack.open_table(table.table)
            table.check(opened)
            modules[table.path] = PackEmbedding(opened, scale=table.scale)
        return self._with(modules)

    def row_ids(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `LanguageModel.row_ids`: what the model asks the table's module for, of the leading
        token too.
        """
        batches = torch.split(token_ids, max(1, _ASKED_TOKENS // token_ids.shape[1]))
        return torch.cat([self._asked(batch) for batch in batches])

    @torch.no_grad()
    def nll(self, windows: torch.Tensor) -> torch.Tensor:
        """See `LanguageModel.nll`."""
        states, targets = self._states(windows[:, :-1]).flatten(0, 1), windows[:, 1:]
        parts = [_nll(self._logits(part), ids) for part, ids in self._parts(states, targets)]
        return torch.cat(parts).view(targets.shape)

    def row_gradients(
        self, windows: torch.Tensor, changes: Sequence[RowChange | None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """See `LanguageModel.row_gradients`: one backward pass to the rows as they are stored."""
        module = self._modules[self._path]
        if not isinstance(module, MemoryEmbedding):
            raise ValueError("rows of a mounted pack have no gradients")
        module.changes = changes
        try:
            gradient, rows = self._joined_gradient(module, windows)
        finally:
            module.changes = module.rows = module.leaf = None
        widths = list(self.widths)
        parts = torch.split(gradient, widths, -1)
        originals = [None] * len(widths) if rows is None else torch.split(rows, widths, -1)
        for field in reversed(range(len(widths))):
            yield field, parts[field], originals[field]

    def fingerprint(self) -> bytes:
        """See `LanguageModel.fingerprint`: configuration, versions, weights and tables."""
        return self._weights_digest + b"".join(one.fingerprint() for one in self._tables.values())

    def check_unchanged(self) -> None:
        """See `LanguageModel.check_unchanged`."""
        for source in self._tables.values():
            source.check_unchanged()

    def _with(self, modules: dict[str, nn.Module]) -> Self:
        other = copy.copy(self)
        other._modules = modules
        return other

    def _install(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules in place of the tables: models with other memories share the weights."""
        for path, module in modules.items():
            self._model.set_submodule(path, module)

    @torch.no_grad()
    def _asked(self, token_ids: torch.Tensor) -> torch.Tensor:
        self._install({**self._modules, self._path: _AskedTable()})
        try:
            self._model.model(input_ids=self._begun(token_ids), use_cache=False)
        except _AskedIds as asked:
            ids: torch.Tensor = asked.args[0]
            return ids
        raise CheckpointError(f"the model does not read its table {self._path}")

    def _states(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return what the head makes logits of, float32 (batch, length, hidden)."""
        self._install(self._modules)
        states: torch.Tensor = self._model.model(
            input_ids=self._begun(token_ids), use_cache=False
        ).last_hidden_state
        return states[:, len(self._leading) :]

    def _begun(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Put the leading token before each window."""
        leading = torch.tensor(self._leading, dtype=token_ids.dtype)
        return torch.cat([leading.expand(len(token_ids), -1), token_ids], 1)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits as the model's ``forward`` makes them of `states`."""
        logits: torch.Tensor = self._model.lm_head(states)
        cap = getattr(self._config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _parts(
        self, states: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Cut states (n, hidden) and targets so that logits of a part fit in memory."""
        size = max(1, _LOGIT_BYTES // (16 * self.vocab_size))
        return zip(torch.split(states, size), torch.split(targets.flatten(), size))

    def _joined_gradient(
        self, module: MemoryEmbedding, windows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradient of the summed loss at all fields, and the unchanged rows."""
        with torch.enable_grad():
            states, targets = self._states(windows[:, :-1]), windows[:, 1:]
        outer = [
            self._loss_gradient(part, ids)
            for part, ids in self._parts(states.detach().flatten(0, 1), targets)
        ]
        if module.leaf is None:
            raise CheckpointError(f"the model does not read its table {self._path}")
        (gradient,) = torch.autograd.grad(states, module.leaf, torch.cat(outer).view(states.shape))
        return gradient, module.rows

    def _loss_gradient(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_nll(self._logits(leaf), targets).sum(), leaf)
        return gradient

    def _zeros(self, field: int, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.widths[field])

    @cached_property
    def _weights_digest(self) -> bytes:
        model = self._model
        config = model.config.to_json_string()
        settings = f"{transformers.__version__} {self._path} {self._leading} {config}"
        digest = hashlib.sha256(settings.encode())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.digest()

    @cached_property
    def _costs(self) -> _Costs:
        """Count the multiply-adds of a forward pass, and what is kept for a backward pass."""
        tokens = min(_MEASURED_TOKENS, self.max_position_embeddings or _MEASURED_TOKENS)
        ids = torch.arange(tokens)[None] % self.vocab_size
        own = {one.untyped_storage().data_ptr() for one in self._model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        model = self.with_memory(self._zeros)
        body, head = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with torch.enable_grad(), body, saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model._states(ids)
        with torch.no_grad(), head:
            self._logits(states[0].detach())
        macs = (body.get_total_flops() + head.get_total_flops()) // 2
        return _Costs(max(1, macs // tokens), max(1, sum(kept.values()) // tokens))


def open_model(folder: str | Path, table: TableSource | None = None) -> TransformersModel:
    """Open a folder's model to run it with rows from its tables.

    Parameters
    ----------
    folder : str or Path
        A folder of Gemma 3n, Gemma 4 or Qwen4Exp, with its tables.
    table : TableSource, optional
        The table in question; default: the first one.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be run.
    """
    sources = {source.name: source for source in open_tables(folder)}
    if table is not None:
        sources[table.name] = table
    found: dict[TableModule, TableSource] = {}

    def embedding(one: TableModule) -> nn.Module:
        found[one] = _source_of(one, sources)
        return MemoryEmbedding(SourceMemory(found[one]), one)

    model = load_without_tables(folder, embedding)
    named = next(iter(found.values())).name if table is None else table.name
    path = next(one.path for one, source in found.items() if source.name == named)
    bos_token_id = model.config.get_text_config().bos_token_id
    return TransformersModel(model, found, path, leading_token(Path(folder), bos_token_id))


def _source_of(table: TableModule, sources: Mapping[str, TableSource]) -> TableSource:
    source = sources.get(table.table)
    if source is None:
        raise ConfigError(
            f"the model reads a table {table.table!r}, but its folder has {', '.join(sources)}"
        )
    found = source.rows, tuple(field.width for field in source.fields)
    if found != (table.rows, table.widths):
        raise CheckpointError(
            f"table {table.table!r} has {source.rows} rows of {sum(found[1])} values, but the "
            f"model reads {table.rows} of {sum(table.widths)}: the files are of different models"
        )
    return source


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")
