"""A pack in the place of a model's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from tolpack.errors import ConfigError, FileAccessError
from tolpack.hf.saving import save_with_pack
from tolpack.hf.table_modules import TableModule, check_vocabulary, table_modules
from tolpack.pack import Pack, open_first_table
from tolpack.reading.edits_files import listed_edits
from tolpack.storage.locations import Location
from tolpack.torch.row_comparison import compare_rows, compared_ids

_Model = TypeVar("_Model")


def mount(
    model: _Model, pack: str | Path | Pack, *, io: str = "auto", edits: Sequence[Location] = ()
) -> _Model:
    """Have a loaded `transformers` model read the rows of its tables from a pack.

    Some of the tables' rows are compared with the pack's, if the model still has its weights. The
    tables' memory is free afterwards, unless something else refers to them. What the model saves
    by ``save_pretrained`` is a folder with the pack, as `tolpack.hf.strip` writes it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A Gemma 3n, Gemma 4, Qwen4Exp or MemoryLLM; changed in place.
    pack : str, Path or Pack
        A pack of all its tables; one that is open is read with its own settings. It stays open for
        as long as the model is used.
    io, edits
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
    replace_tables(model, pack, io, edits, compare=True)
    return model


def replace_tables(
    model: Any, pack: str | Path | Pack, io: str = "auto", edits: Sequence[Location] = (), *,
    compare: bool = False,
) -> list[TableModule]:  # fmt: skip
    """Do as `mount`, also on a model whose weights are not loaded yet; return what was replaced.

    With `compare`, rows are compared.
    """
    found = table_modules(model)
    with ExitStack() as stack:
        packs = open_packs(found, pack, io, stack, edits)
        for one, opened in zip(found, packs if compare else ()):
            rows = one.rows_of(model, torch.from_numpy(compared_ids(opened)))
            if rows is not None:
                compare_rows(opened, rows.numpy(), f"{one.path} of the model")
        stack.pop_all()  # they stay open
    for one, opened in zip(found, packs):
        one.replace(model, opened)
    save_with_pack(model)
    if all(one.ngram_sizes is None for one in found):
        model.resize_token_embeddings = partial(_resize_token_embeddings, model, found[0].rows)
    return found


def _resize_token_embeddings(
    model: Any, rows: int, new_num_tokens: int | None = None, *arguments: Any, **named: Any
) -> Any:
    """Refuse other sizes than the pack has; transformers would change a part of the model first."""
    check_vocabulary(rows, new_num_tokens)
    return type(model).resize_token_embeddings(model, new_num_tokens, *arguments, **named)


def open_packs(
    found: Sequence[TableModule], pack: str | Path | Pack, io: str, stack: ExitStack,
    edits: Sequence[Location] = (),
) -> list[Pack]:  # fmt: skip
    """Open the table of each module in a pack, and check that they fit.

    Parameters
    ----------
    found : sequence of TableModule
        What is asked for.
    pack : str, Path or Pack
        One that is open is returned if it reads the right table.
    io : str
        As of `tolpack.open`, for a pack that is not open.
    stack : ExitStack
        Closes what is opened here.
    edits : sequence of str or Path
        As `io`.

    Raises
    ------
    ConfigError
        The pack is of another model.
    FileAccessError, FormatError
        The pack cannot be read.
    """
    open_table: Callable[[str], Pack]
    if isinstance(pack, Pack):
        names, open_table = pack.tables, pack.open_table
    else:
        with open_first_table(pack) as first:
            names = first.tables
        open_table = partial(_open, pack, io, listed_edits(edits))
    packs = []
    for name in _names(found, names):
        if isinstance(pack, Pack) and pack.table == name:
            packs.append(pack)
        else:
            packs.append(stack.enter_context(open_table(name)))
    if len({opened.container.preamble.to_bytes() for opened in packs}) > 1:
        raise FileAccessError(
            f"{packs[0].path} has become another pack while its tables were opened: open it again"
        )
    for one, opened in zip(found, packs):
        one.check(opened)
    return packs


def _open(path: str | Path, io: str, edits: Sequence[Location], table: str) -> Pack:
    return Pack(path, io, table=table, edits=edits)


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
