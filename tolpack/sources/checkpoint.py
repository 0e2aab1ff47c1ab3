"""A MemoryLLM, Flex-MemoryLLM or dense checkpoint in tolpack's schema (``docs/checkpoints.md``).

`open_checkpoint` finds the configuration and the tensors, checks every shape against the
configuration once, and gives tensors by their schema name without the optional ``model.`` prefix.
What was matched can be printed with `Checkpoint.describe`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.config import ModelConfig, parse_config, read_config
from tolpack.sources.tensors import (
    FLOAT_DTYPES,
    TensorStore,
    open_pt,
    open_safetensors,
    shard_paths,
)

_FINGERPRINT_ROWS = 256
MEMORY_PARTS = ("gate_proj", "up_proj", "down_proj")


class Checkpoint:
    """Weights by schema name, with their configuration.

    Parameters
    ----------
    store : TensorStore
        Tensors under the names of the file.
    config : ModelConfig
        The model's settings.
    path : Path
        For messages only; never written into a pack.
    """

    def __init__(self, store: TensorStore, config: ModelConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self._store = store
        self._names = {name.removeprefix("model."): name for name in store.shapes}
        if len(self._names) != len(store.shapes):
            raise CheckpointError(
                f"{path} holds tensors both with and without the 'model.' prefix: keep one set"
            )

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds schema name `name`."""
        return name in self._names

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """Return tensor `name` as stored (fp32, bf16 or fp16), checked to be finite.

        Raises
        ------
        CheckpointError
            The tensor is missing, or has another shape or dtype, or holds NaN or Inf.
        """
        self.check(name, *shape)
        tensor = self._store.load(self._names[name])
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor {name!r} is {tensor.dtype}, expected float32, bfloat16 or float16"
            )
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"tensor {name!r} is {tensor.layout} on {tensor.device}, expected a dense tensor "
                "with its data: convert it and save again"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor {name!r} holds NaN or Inf: the checkpoint is damaged")
        return tensor

    def fingerprint(self, names: Iterable[str] | None = None) -> bytes:
        """Return 32 bytes from evenly spaced rows of tensors `names` (default: of all).

        An identity, not an integrity check: it tells two checkpoints apart.
        """
        digest = hashlib.sha256()
        for name in sorted(self._names if names is None else names):
            tensor = self._store.load(self._names[name])
            rows = tensor.reshape(-1) if tensor.ndim < 2 else tensor
            step = max(1, len(rows) // _FINGERPRINT_ROWS)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(rows[::step].float().contiguous().numpy().tobytes())
        return digest.digest()

    def refuse_bias(self, *names: str) -> None:
        """Raise `CheckpointError` if one of ``{name}.bias`` exists: it would be left out."""
        for name in names:
            if self.has(f"{name}.bias"):
                raise CheckpointError(
                    f"tensor {name + '.bias'!r} has no place in this architecture, and results "
                    "without it would be wrong: remove it if it is zero"
                )

    def check(self, name: str, *shape: int) -> None:
        """Raise `CheckpointError` unless tensor `name` is there with `shape`."""
        if name not in self._names:
            near = [n for n in self._names if n.split(".")[-2:] == name.split(".")[-2:]][:3]
            hint = f"; similar names: {', '.join(near)}" if near else ""
            raise CheckpointError(
                f"tensor {name!r} is missing from {self.path}{hint} (names: docs/checkpoints.md)"
            )
        found = self._store.shapes[self._names[name]]
        if found != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(found)}, but the config asks for {list(shape)}: "
                "correct config.json or the checkpoint"
            )

    def stored_bytes(self, name: str) -> int:
        """Bytes of tensor `name` as stored."""
        tensor = self._store.load(self._names[name])
        return tensor.numel() * tensor.element_size()

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the tables are made of, by schema name, all checked.

        Raises
        ------
        CheckpointError
            The model is dense, or a tensor is missing or misshapen.
        """
        config = self.config
        if not config.has_memory:
            raise CheckpointError(
                f"{self.path} is a dense model (model_type {config.model_type!r}): its FFNs read "
                "the residual stream, so no lookup table exists. If it is a MemoryLLM, set "
                "model_type to 'memoryllm' or 'flex_memoryllm' in its config"
            )
        hidden = config.hidden_size
        inner = config.require("memory_intermediate_size", "the memory FFNs")
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, hidden)}
        for layer in range(config.num_hidden_layers):
            base = f"layers.{layer}"
            shapes[f"{base}.memory_layernorm.weight"] = (hidden,)
            if self.has(f"{base}.memory_layernorm.bias"):
                shapes[f"{base}.memory_layernorm.bias"] = (hidden,)
            for part, shape in zip(MEMORY_PARTS, [(inner, hidden)] * 2 + [(hidden, inner)]):
                shapes[f"{base}.memory_mlp.{part}.weight"] = shape
        for name, shape in shapes.items():
            self.check(name, *shape)
        self._refuse_extra_layers()
        return shapes

    def describe(self) -> list[str]:
        """Lines that say what was matched: pattern, shape and dtype, one per kind of tensor."""
        kinds: dict[str, list[str]] = {}
        for name in self.memory_shapes():
            pattern = ".".join("N" if part.isdigit() else part for part in name.split("."))
            kinds.setdefault(pattern, []).append(name)
        lines = []
        for pattern, names in kinds.items():
            tensor = self._store.load(self._names[names[0]])
            dtype = str(tensor.dtype).removeprefix("torch.")
            count = f" × {len(names)}" if "N" in pattern.split(".") else ""
            lines.append(f"{pattern:<40} {list(tensor.shape)!s:<14} {dtype}{count}")
        return lines

    def _refuse_extra_layers(self) -> None:
        layers = self.config.num_hidden_layers
        for name in self._names:
            number = name.removeprefix("layers.").split(".")[0]
            if name.startswith("layers.") and number.isdecimal() and int(number[:9]) >= layers:
                raise CheckpointError(
                    f"{self.path} holds {name!r}, but the config says num_hidden_layers = "
                    f"{layers}: correct config.json"
                )


def open_checkpoint(path: str | Path, config: str | Path | None = None) -> Checkpoint:
    """Open a ``.pt``/``.pth``, a ``.safetensors`` or a folder with ``config.json``.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    config : str or Path, optional
        A ``config.json`` that replaces the checkpoint's own.

    Raises
    ------
    CheckpointError
        Nothing usable there; the message says what to do.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    embedded: object = None
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if path.is_dir():
        store = open_safetensors(shard_paths(path))
    elif path.suffix == ".safetensors":
        store = open_safetensors([path])
    elif path.suffix in (".pt", ".pth"):
        store, embedded = open_pt(path)
    else:
        raise ConfigError(
            f"cannot tell what {path} is: expected .pt, .pth, .safetensors, or a folder with "
            "config.json and .safetensors (tables: .npy, .safetensors, .h5)"
        )
    return Checkpoint(store, _find_config(config, embedded, beside, path), path)


def _find_config(
    given: str | Path | None, embedded: object, beside: Path, path: Path
) -> ModelConfig:
    if given is not None:
        return read_config(Path(given))
    if embedded is not None:
        return parse_config(embedded)
    if path.suffix not in (".pt", ".pth") and beside.exists():
        return read_config(beside)
    raise CheckpointError(f"{path} carries no config: give one with --config config.json")
