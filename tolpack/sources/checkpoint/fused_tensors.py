"""How a schema tensor lies in what is stored: whole, turned, fused with others, or in pieces.

A rule of a key map says which rows of a stored tensor a schema tensor is; its size follows from
the configuration. A tensor-parallel trainer leaves one piece of a tensor in each file; along which
dimension they join follows from the shape that the whole should have. Results are views of the
mapped files wherever the rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.config import ModelConfig
from tolpack.sources.checkpoint.key_map import Part
from tolpack.sources.checkpoint.schema import expected_shape, pattern_of

_IN_PLACE = ((".mlp.", ".memory_mlp."), (".post_attention_layernorm.", ".memory_layernorm."))


def memory_in_place(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Let a plain MemoryLLM keep a dense model's names.

    It has one FFN per layer; if nothing is called the memory, that FFN is, with its norm.
    """
    moved = dict(parts)
    for here, there in _IN_PLACE:
        if any(there in name for name in moved):
            continue
        moved = {
            name.replace(here, there): _renamed(part, here, there) for name, part in moved.items()
        }
    return moved


def stored_shape(config: ModelConfig, name: str, part: Part) -> tuple[int, ...]:
    """Shape that the stored tensor with schema tensor `name` in it should have."""
    shape = (sum(_rows_of_targets(config, name, part)), *expected_shape(config, name)[1:])
    return shape[::-1] if part.rule.transpose else shape


def take(
    config: ModelConfig, name: str, part: Part, pieces: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return schema tensor `name` out of the `pieces` of the tensor that it is stored in.

    Pieces must make `stored_shape`. A copy if there are several, or if rows go by head groups.
    """
    dimension = joined_dimension([tuple(p.shape) for p in pieces], stored_shape(config, name, part))
    if dimension is None and any(not torch.equal(piece, pieces[0]) for piece in pieces[1:]):
        raise CheckpointError(
            f"tensor {part.stored!r} differs between the files that hold it: they are pieces of "
            "different checkpoints; copy all of one"
        )
    tensor = pieces[0] if dimension is None else torch.cat(list(pieces), dimension)
    tensor = tensor.T if part.rule.transpose else tensor
    sizes = _rows_of_targets(config, name, part)
    start, rows = sum(sizes[: part.number]), sizes[part.number]
    if not part.rule.grouped:
        return tensor[start : start + rows]
    groups = config.kv_heads()
    by_group = tensor.reshape(groups, -1, *tensor.shape[1:])
    mine = by_group[:, start // groups : (start + rows) // groups]
    return mine.reshape(rows, *tensor.shape[1:])


def take_rows(
    pieces: Sequence[torch.Tensor], whole: tuple[int, ...], ids: torch.Tensor
) -> torch.Tensor:
    """Return rows `ids` (n,) of the joined tensor, (n, …), without joining the rest."""
    dimension = joined_dimension([tuple(p.shape) for p in pieces], whole)
    if dimension is None:
        return pieces[0][ids]
    if dimension > 0:
        return torch.cat([piece[ids] for piece in pieces], dimension)
    rows = torch.empty(len(ids), *whole[1:], dtype=pieces[0].dtype)
    start = 0
    for piece in pieces:
        inside = (ids >= start) & (ids < start + len(piece))
        rows[inside] = piece[ids[inside] - start]
        start += len(piece)
    return rows


def joined_dimension(shapes: Sequence[tuple[int, ...]], whole: tuple[int, ...]) -> int | None:
    """Dimension along which pieces of `shapes` make `whole`; ``None`` if each is all of it.

    Raises
    ------
    ValueError
        They do not make `whole`.
    """
    if all(shape == whole for shape in shapes):
        return None
    for dimension in range(len(whole)) if all(len(s) == len(whole) for s in shapes) else ():
        others = {shape[:dimension] + shape[dimension + 1 :] for shape in shapes}
        length = sum(shape[dimension] for shape in shapes)
        if others == {whole[:dimension] + whole[dimension + 1 :]} and length == whole[dimension]:
            return dimension
    raise ValueError(f"pieces {[list(shape) for shape in shapes]} do not make {list(whole)}")


def _rows_of_targets(config: ModelConfig, name: str, part: Part) -> list[int]:
    number = name.split(".")[1] if pattern_of(name) != name else ""
    if len(part.rule.targets) == 1:
        return [expected_shape(config, name)[0]]
    targets = (target.replace("{N}", number) for target in part.rule.targets)
    return [expected_shape(config, target)[0] for target in targets]


def _renamed(part: Part, here: str, there: str) -> Part:
    targets = tuple(target.replace(here, there) for target in part.rule.targets)
    return replace(part, rule=replace(part.rule, targets=targets))
