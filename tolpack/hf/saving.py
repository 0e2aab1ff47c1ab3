"""Folders of models whose tables are in a pack.

``config.json`` names the pack. Code that does not know tolpack must not load the folder, because it
would fill the table with random values and only warn. `transformers` loads the file that
``transformers_weights`` of the configuration names; here it names no file but what to do. The
quantizer of `tolpack.hf.quantizer` takes it away before it is looked for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tolpack.errors import ConfigError
from tolpack.torch.embedding import PackEmbedding

QUANT_METHOD = "tolpack"
REMEDY = "(the table is in a pack: pip install 'tolpack[hf]', then import tolpack.hf).safetensors"


def mended_config(config: dict[str, Any], pack_name: str) -> dict[str, Any]:
    """Return the contents of ``config.json`` for a folder with a pack of that name.

    Raises
    ------
    ConfigError
        The model is quantized by something else, which `transformers` cannot load together.
    """
    method = dict(config.get("quantization_config") or {}).get("quant_method", QUANT_METHOD)
    if method != QUANT_METHOD:
        raise ConfigError(
            f"the model is quantized by {method!r} as well, and a config.json can name one method "
            "only: load it as it is, and mount the pack by tolpack.hf.mount"
        )
    quantization = {"quant_method": QUANT_METHOD, "pack": pack_name}
    return config | {"quantization_config": quantization, "transformers_weights": REMEDY}


def save_pretrained(model: Any, save_directory: str | Path, **options: Any) -> None:
    """Save a model with a pack as ``model.save_pretrained`` would, and the pack beside it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        One that `tolpack.hf.mount` or `tolpack.hf.load` gave.
    save_directory : str or Path
        The folder.
    **options
        As of ``PreTrainedModel.save_pretrained``.

    Raises
    ------
    ConfigError
        ``push_to_hub`` is asked for, or the model is quantized by something else.
    """
    if options.get("push_to_hub"):
        raise ConfigError("push_to_hub would upload the folder without its pack: upload it later")
    (path,) = {one.pack.path for one in model.modules() if isinstance(one, PackEmbedding)}
    current = getattr(model.config, "quantization_config", None)
    mended_config({"quantization_config": current}, path)
    type(model).save_pretrained(model, save_directory, **options)
    folder = Path(save_directory)
    target = folder / Path(path).name
    if not (target.exists() and target.samefile(path)):
        shutil.copyfile(path, target)
    file = folder / "config.json"
    config = mended_config(json.loads(file.read_text(encoding="utf-8")), target.name)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
