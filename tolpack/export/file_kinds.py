"""Which kind of file a name means, and whether it can hold what is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tolpack.errors import ConfigError
from tolpack.export.gguf_file import GGUFFile
from tolpack.export.tensor_files import (
    NUMPY_DTYPES,
    Hdf5File,
    NpyFile,
    SafetensorsFile,
    Tensor,
    TensorFile,
)

# What `--dtype` may be.
DTYPES = (*NUMPY_DTYPES, "stored")
_FILES: dict[str, type[TensorFile]] = {
    ".npy": NpyFile,
    ".safetensors": SafetensorsFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
    ".gguf": GGUFFile,
}
# A key of the header of safetensors files, which no tensor can be called.
_METADATA_KEY = "__metadata__"


def tensor_file(path: str | Path) -> type[TensorFile]:
    """Return the kind of file for the suffix of `path`, or raise `ConfigError`."""
    suffix = Path(path).suffix
    if suffix not in _FILES:
        raise ConfigError(
            f"{path} does not name a table: expected a name that ends in {', '.join(_FILES)}"
            + (" (tolpack build makes packs)" if suffix == ".tolpack" else "")
        )
    return _FILES[suffix]


def check_dtype(path: str | Path, dtype: str) -> None:
    """Raise `ConfigError` if the format of `path` cannot be written in `dtype`."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    kind, suffix = tensor_file(path), Path(path).suffix
    if dtype in kind.choices:
        return
    if kind.choices == ("stored",):
        raise ConfigError(f"{suffix} is for --dtype stored only: use .safetensors for {dtype}")
    if dtype == "stored":
        raise ConfigError(f"{suffix} cannot hold stored values: use .safetensors, .gguf or .npy")
    raise ConfigError(f"{suffix} has no {dtype}: use .safetensors, or float32, which is exact")


def check_tensors(path: Path, tensors: Sequence[Tensor], tables: Sequence[str]) -> None:
    """Raise `ConfigError` if the format of `path` cannot hold these tensors of `tables`."""
    kind, names = tensor_file(path), [tensor.name for tensor in tensors]
    if len(tensors) > 1 and not kind.holds_several:
        remedy = "use .safetensors, which holds all"
        if len(tables) > 1:
            remedy += ", or choose a table by table=NAME, or --table NAME"
        what = _listed("tables", tables) if len(tables) > 1 else _listed("tensors", names)
        raise ConfigError(f"{path.suffix} holds one tensor, and these are {what}: {remedy}")
    for tensor in tensors:
        if tensor.dtype not in kind.dtypes:
            others = [s for s, one in _FILES.items() if "stored" in one.choices]
            holding = [suffix for suffix in others if tensor.dtype in _FILES[suffix].dtypes]
            raise ConfigError(
                f"tensor {tensor.name!r} is {tensor.dtype}, which {path.suffix} has not: use "
                f"{' or '.join(holding)}, or --dtype float32"
            )
    name, count = Counter([*names, _METADATA_KEY]).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"two tensors would be called {name!r}: convert each table by itself, by table=NAME, "
            "or --table NAME"
        )


def _listed(what: str, names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what}, {', '.join(map(repr, names[:most]))}{more}"
