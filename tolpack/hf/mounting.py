"""A pack in the place of a model's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tolpack.errors import ConfigError
from tolpack.hf.saving import save_pretrained
from tolpack.hf.table_modules import TableModule, table_modules
from tolpack.pack import Pack, open_first_table
from tolpack.torch.embedding import PackEmbedding

_Model = TypeVar("_Model")


def mount(model: _Model, pack: str | Path | Pack, *, io: str = "auto") -> _Model:
    """Have a loaded `transformers` model read the rows of its tables from a pack.

    The tables' memory is free afterwards, unless something else refers to them. What the model
    saves by ``save_pretrained`` is a folder with the pack, as `tolpack.hf.strip` writes it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A Gemma 3n, Gemma 4 or Qwen4Exp; changed in place.
    pack : str, Path or Pack
        A pack of all its tables; one that is open is read with its own settings. It stays open for
        as long as the model is used.
    io : str
        As of `tolpack.open`, for a pack that is not open.

    Returns
    -------
    transformers.PreTrainedModel
        `model`.

    Raises
    ------
    ConfigError
        The model has no table, or the pack is of another model.
    FileAccessError, FormatError
        The pack cannot be read.
    """
    replace_tables(model, pack, io)
    return model


def replace_tables(model: Any, pack: str | Path | Pack, io: str = "auto") -> list[TableModule]:
    """Do as `mount`, also on a model whose weights are not loaded yet.

    Returns
    -------
    list of TableModule
        Those that were replaced.
    """
    found = table_modules(model)
    with ExitStack() as stack:
        packs = _open_packs(found, pack, io, stack)
        for one, opened in zip(found, packs):
            one.check(opened)
        stack.pop_all()  # they stay open
    for one, opened in zip(found, packs):
        weight = model.get_submodule(one.path).weight
        embedding = PackEmbedding(opened, weight.dtype, weight.device, scale=one.scale)
        model.set_submodule(one.path, embedding)
    model.save_pretrained = partial(save_pretrained, model)
    return found


def _open_packs(
    found: Sequence[TableModule], pack: str | Path | Pack, io: str, stack: ExitStack
) -> list[Pack]:
    """Open the table of each module; those that are opened here are closed by `stack`."""
    open_table: Callable[[str], Pack]
    if isinstance(pack, Pack):
        names, open_table = pack.tables, pack.open_table
    else:
        with open_first_table(pack) as first:
            names = first.tables
        open_table = partial(_open, pack, io)
    packs = []
    for name in _names(found, names):
        if isinstance(pack, Pack) and pack.table == name:
            packs.append(pack)
        else:
            packs.append(stack.enter_context(open_table(name)))
    return packs


def _open(path: str | Path, io: str, table: str) -> Pack:
    return Pack(path, io, table=table)


def _names(found: Sequence[TableModule], names: Sequence[str]) -> list[str]:
    """Return the names of the modules' tables in a pack."""
    if len(found) == len(names) == 1:
        return list(names)
    wanted = [one.table for one in found]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ConfigError(
            f"the pack has tables {', '.join(names)}, but the model reads {', '.join(wanted)}: "
            "the pack is of another model, or of some of its tables only"
        )
    return wanted
