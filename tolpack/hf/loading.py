"""Models loaded without the tables that a pack replaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tolpack.errors import CheckpointError, ConfigError
from tolpack.hf.saving import QUANT_METHOD
from tolpack.storage.inputs import local_input
from tolpack.storage.locations import absolute, is_url

# Options of from_pretrained that also say where the configuration and the tokenizer are.
_PLACE = (
    "revision", "token", "cache_dir", "local_files_only", "force_download", "trust_remote_code",
    "subfolder",
)  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
)  # fmt: skip


def load(
    folder: str | Path,
    pack: str | Path | None = None,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    io: str = "auto",
    edits: Sequence[str | Path] = (),
    **options: Any,
) -> tuple[Any, Any]:
    """Load a causal language model whose table is in a pack.

    The table is never in memory: its tensors are skipped if the folder has them.

    Parameters
    ----------
    folder : str or Path
        What ``from_pretrained`` takes.
    pack : str or Path, optional
        Default: the one that ``config.json`` names, which lies in the folder.
    dtype, device_map
        As of ``AutoModelForCausalLM.from_pretrained``.
    io, edits
        As of `tolpack.open`.
    **options
        Further ones of ``from_pretrained``.

    Returns
    -------
    model : transformers.PreTrainedModel
        Ready to use.
    tokenizer : transformers.PreTrainedTokenizerBase or None
        ``None`` if a folder has none.

    Raises
    ------
    ConfigError
        No pack is named, the model has no table, the pack is of another model, or the folder is
        quantized by something else.
    CheckpointError
        Weights are missing, which `transformers` would fill with random values.
    FileAccessError, FormatError
        The pack cannot be read.
    """
    if is_url(folder):
        folder = local_input(folder, "a model of transformers")
    place = {name: options[name] for name in _PLACE if name in options}
    config = AutoConfig.from_pretrained(folder, **place)
    config.quantization_config = _settings(config, pack, io, folder)
    if edits:
        config.quantization_config["edits"] = [absolute(one) for one in edits]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, device_map=device_map, output_loading_info=True,
        **options,
    )  # fmt: skip
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" * (len(missing) > 3)
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing[:3])}{more} of {type(model).__name__}: copy all "
            "files of the model"
        )
    return model, _tokenizer(folder, place)


def _settings(config: Any, pack: str | Path | None, io: str, folder: str | Path) -> dict[str, Any]:
    """Return the ``quantization_config`` to load with."""
    named = dict(getattr(config, "quantization_config", None) or {"quant_method": QUANT_METHOD})
    if named.get("quant_method") != QUANT_METHOD:
        raise ConfigError(
            f"{folder} is quantized by {named.get('quant_method')!r}: load it as it is, and mount "
            "the pack by tolpack.hf.mount"
        )
    if pack is not None:
        path = local_input(pack, "the pack of a model of transformers")
        return {"quant_method": QUANT_METHOD, "io": io, "pack": path.absolute()}
    if "pack" not in named:
        raise ConfigError(f"config.json of {folder} names no pack: give pack='model.tolpack'")
    return named | {"io": io}


def _tokenizer(folder: str | Path, place: dict[str, Any]) -> Any:
    path = Path(folder)
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, **place)
