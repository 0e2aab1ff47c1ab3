"""The tensors of the schema that a checkpoint holds, each with its place and its shape.

Names come from the key map, shapes from the configuration, and what is stored from the files. They
meet here, once, before any value is read. A tensor that is of no use is kept with the reason, which
is raised when the tensor is asked for: a build does not need what only a decoder reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.config import ModelConfig
from tolpack.sources.checkpoint.key_map import TensorSlice
from tolpack.sources.checkpoint.schema import expected_shape, pattern_of
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES, TensorInfo

# A plain MemoryLLM may keep a dense model's names: it has one FFN per layer, the memory.
_DENSE_NAMES = ((".mlp.", ".memory_mlp."), (".post_attention_layernorm.", ".memory_layernorm."))


@dataclass(frozen=True, slots=True)
class SchemaTensor:
    """A tensor of the schema: its shape, and the rows of a stored tensor that it is.

    ``shape`` is what the configuration asks for, empty if a field for it is missing;
    ``stored_shape`` is that of the stored tensor, with all that is fused in it. It begins at row
    ``first_row`` there, or, by ``head_groups`` groups of attention heads, with that share of each.
    ``dtype`` is the stored one. ``problem`` says why the tensor cannot be used, if it cannot.
    """

    slice: TensorSlice
    dtype: str
    shape: tuple[int, ...] = ()
    stored_shape: tuple[int, ...] = ()
    first_row: int = 0
    head_groups: int | None = None
    problem: str | None = None

    @property
    def stored(self) -> str:
        """Name in the checkpoint."""
        return self.slice.stored

    @property
    def nbytes(self) -> int:
        """Bytes as stored, of this tensor alone."""
        size = DTYPE_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def find_schema_tensors(
    config: ModelConfig,
    slices: Mapping[str, TensorSlice],
    infos: Mapping[str, Sequence[TensorInfo]],
) -> dict[str, SchemaTensor]:
    """Return the tensors of the schema by name, those that are of no use included.

    Parameters
    ----------
    config : ModelConfig
        The model's settings.
    slices : mapping
        Where each tensor of the schema is, by name.
    infos : mapping
        The stored tensors' shapes and dtypes, one for each piece, by stored name.
    """
    if config.model_type == "memoryllm":
        slices = _without_dense_names(slices)
    return {name: _find(config, name, slices[name], infos) for name in slices}


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


def _without_dense_names(slices: Mapping[str, TensorSlice]) -> dict[str, TensorSlice]:
    """Call a dense model's FFNs and their norms the memory, unless something is called that."""
    renamed = dict(slices)
    for dense, memory in _DENSE_NAMES:
        if not any(memory in name for name in renamed):
            renamed = {
                name.replace(dense, memory): replace(
                    place, targets=tuple(one.replace(dense, memory) for one in place.targets)
                )
                for name, place in renamed.items()
            }
    return renamed


def _find(
    config: ModelConfig,
    name: str,
    place: TensorSlice,
    infos: Mapping[str, Sequence[TensorInfo]],
) -> SchemaTensor:
    stored = infos[place.stored]
    found = SchemaTensor(place, stored[0].dtype)
    try:
        shapes = [expected_shape(config, target) for target in place.targets]
        found = replace(found, shape=shapes[place.number])
        groups = config.kv_heads() if place.grouped else None
    except CheckpointError as error:
        return replace(found, problem=str(error))
    rows = [shape[0] for shape in shapes]
    whole = (sum(rows), *found.shape[1:])
    found = replace(
        found,
        stored_shape=whole[::-1] if place.transpose else whole,
        first_row=sum(rows[: place.number]),
        head_groups=groups,
    )
    return replace(found, problem=_problem(found, stored))


def _problem(tensor: SchemaTensor, infos: Sequence[TensorInfo]) -> str | None:
    """Say why what is stored is not what the configuration asks for."""
    for info in infos:
        if info.dtype not in DTYPE_BYTES:
            return (
                f"tensor {tensor.stored!r} is {info.dtype} in {info.path.name}, expected dense "
                "float32, bfloat16 or float16: convert it and save again"
            )
    try:
        joined_dimension([info.shape for info in infos], tensor.stored_shape)
    except ValueError:
        return _misshapen(tensor, infos)
    if len(infos) > 1 and tensor.slice.fused:
        return (
            f"tensor {tensor.stored!r} is fused and split over {len(infos)} files, so its rows "
            "are in no known order: save it whole"
        )
    return None


def _misshapen(tensor: SchemaTensor, infos: Sequence[TensorInfo]) -> str:
    expected, first = tensor.stored_shape, infos[0].shape
    patterns = [pattern_of(target) for target in tensor.slice.targets]
    fused = f" for {' and '.join(patterns)}" if tensor.slice.fused else ""
    if len(infos) > 1:
        found = f"has pieces of shapes {', '.join(str(list(info.shape)) for info in infos)}"
    else:
        found = f"has shape {list(first)}"
    transposed = first == expected[::-1] and len(expected) == 2
    hint = " (or, as it is stored the other way round, transpose it)" if transposed else ""
    if any(info.path.name.startswith("consolidated.") for info in infos):
        hint += " (or, as these are pieces of tensors, add the file that is missing)"
    return (
        f"tensor {tensor.stored!r} {found}, but the config asks for {list(expected)}{fused}: "
        f"correct config.json or the checkpoint{hint}"
    )
