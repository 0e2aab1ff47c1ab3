"""Folders of models whose tables are in a pack.

``config.json`` names the pack. Code that does not know tolpack must not load the folder, because it
would fill the table with random values and only warn. `transformers` raises an error that quotes
``transformers_weights`` of the configuration where that is not a file of safetensors; here it says
what to do. The quantizer of `tolpack.hf.quantizer` takes it away before it is looked at.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tolpack.container.atomic_write import replacing, same_file
from tolpack.errors import ConfigError, FileAccessError
from tolpack.pack import Pack
from tolpack.runtime.files import open_stream

QUANT_METHOD = "tolpack"
REMEDY = "its table is in a pack: pip install 'tolpack[hf]', then import tolpack.hf"
# Under such names a folder has weights and settings.
_OTHERS = (".json", ".safetensors", ".bin")
_COPY_BYTES = 8 << 20


def mended_config(
    config: dict[str, Any], pack_name: str, pack_id: str, **more: Any
) -> dict[str, Any]:
    """Return the contents of ``config.json`` for a folder with a pack.

    Parameters
    ----------
    config : dict
        Those for the folder of the whole model.
    pack_name, pack_id : str
        The pack's name in the folder, and its `id_of`.
    **more
        What ``quantization_config`` says besides.

    Raises
    ------
    ConfigError
        The model is quantized by something else, which `transformers` cannot load together, or
        the pack has a name under which a folder has another file.
    """
    method = dict(config.get("quantization_config") or {}).get("quant_method", QUANT_METHOD)
    if method != QUANT_METHOD:
        raise ConfigError(
            f"the model is quantized by {method!r} as well, and a config.json can name one method "
            "only: load it as it is, and mount the pack by tolpack.hf.mount"
        )
    if pack_name.lower().endswith(_OTHERS):
        raise ConfigError(
            f"the pack is named {pack_name}, as other files of a model's folder are: rename it, "
            "such as to ple.tolpack"
        )
    quantization = {"quant_method": QUANT_METHOD, "pack": pack_name, "pack_id": pack_id, **more}
    own = {"quantization_config": quantization, "transformers_weights": REMEDY}
    text_config = config.get("text_config")
    # Models of the text part alone read no more than that.
    inner = {"text_config": text_config | own} if isinstance(text_config, dict) else {}
    return config | inner | own


def id_of(pack: Pack) -> str:
    """Return the id by which ``config.json`` knows a pack: 16 hexadecimal digits."""
    return f"{pack.container.preamble.pack_id:016x}"


def mounted_pack(model: Any) -> Pack:
    """Return a pack that a model reads.

    Raises
    ------
    ConfigError
        There are several files, which one ``config.json`` cannot name.
    """
    packs = [module.pack for module in model.modules() if _reads_a_pack(module)]
    if len({pack.container.preamble for pack in packs}) > 1:
        files = ", ".join(sorted({pack.path for pack in packs}))
        raise ConfigError(f"tables of the model are in several packs ({files}): build one of all")
    found: Pack = packs[0]
    return found


def _reads_a_pack(module: Any) -> bool:
    return isinstance(getattr(module, "pack", None), Pack)


def save_with_pack(model: Any) -> None:
    """Have ``save_pretrained`` of a model that reads a pack, and of its parts that do, do as the
    one of this module.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and any(map(_reads_a_pack, part.modules())):
            part.save_pretrained = partial(save_pretrained, part)  # type: ignore[method-assign]


def save_pretrained(
    model: Any, save_directory: str | Path, is_main_process: bool = True, **options: Any
) -> None:
    """Save a model with a pack as ``model.save_pretrained`` would, and the pack beside it.

    The pack is written first, and ``config.json`` names it from the beginning: whatever fails, no
    folder is left that loads with a random table.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        One that `tolpack.hf.mount` or `tolpack.hf.load` gave, or a part of it.
    save_directory : str or Path
        The folder.
    is_main_process, **options
        As of ``PreTrainedModel.save_pretrained``.

    Raises
    ------
    ConfigError
        ``push_to_hub`` is asked for, the model is quantized by something else, the pack has edits
        in files of their own, or a name under which a folder has another file.
    FileAccessError
        The pack's file is gone or is another pack by now, or it cannot be written.
    """
    if options.get("push_to_hub"):
        raise ConfigError("push_to_hub would upload the folder without its pack: upload it later")
    pack = mounted_pack(model)
    if pack.edit_files:
        raise ConfigError(
            f"{pack.path} is mounted with edits, and a folder has one pack: make one of them by "
            "tolpack.merge, and mount that"
        )
    target = Path(save_directory) / Path(pack.path).name
    naming = {"pack_name": target.name, "pack_id": id_of(pack)}
    current = getattr(model.config, "quantization_config", None)
    mended_config({"quantization_config": current}, **naming)
    adapters_alone = getattr(model, "_hf_peft_config_loaded", False)
    if is_main_process and not adapters_alone:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(pack, target)
    with _config_written(model.config, naming):
        type(model).save_pretrained(
            model, save_directory, is_main_process=is_main_process, **options
        )


@contextmanager
def _config_written(config: Any, naming: dict[str, str]) -> Iterator[None]:
    """Have a configuration write itself as `mended_config` within the block.

    Its ``save_pretrained`` drops ``transformers_weights`` before it writes.
    """

    def write(path: str, use_diff: bool = True) -> None:
        vars(config).pop("to_json_file", None)  # it is not a setting
        mended = mended_config(json.loads(config.to_json_string(use_diff=use_diff)), **naming)
        with replacing(Path(path)) as file:
            file.write(json.dumps(mended, indent=2).encode() + b"\n")

    vars(config)["to_json_file"] = write
    try:
        yield
    finally:
        vars(config).pop("to_json_file", None)


def _copy(pack: Pack, target: Path) -> None:
    """Copy the file of an open pack, if that is still the same pack; readers of `target` keep what
    they read.
    """
    remedy = "save while the file is there, or mount the right pack again"
    expected = pack.container.preamble.to_bytes()
    try:
        source = open_stream(pack.path)
    except FileAccessError as error:
        raise FileAccessError(f"the mounted pack cannot be copied: {error}; {remedy}") from error
    with source:
        start = source.read(len(expected))
        if start != expected:
            raise FileAccessError(f"{pack.path} is no longer the pack that is mounted: {remedy}")
        if same_file(target, pack.path):
            return
        with replacing(target, pack.nbytes) as written:
            written.write(start)
            shutil.copyfileobj(source, written, _COPY_BYTES)
