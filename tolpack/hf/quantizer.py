"""The method ``tolpack`` of `transformers`: tables are replaced before weights are loaded.

Importing this module registers it, so that ``from_pretrained`` loads folders whose ``config.json``
names a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.hub import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from tolpack.errors import ConfigError
from tolpack.hf.mounting import replace_tables
from tolpack.hf.saving import QUANT_METHOD, REMEDY, id_of, mounted_pack
from tolpack.hf.table_modules import skip_tensors
from tolpack.pack import Pack


class TolpackConfig(QuantizationConfigMixin):
    """``quantization_config`` of a model whose table is in a pack.

    For a folder that names a pack already, `transformers` would ignore it and refuses it here:
    `tolpack.hf.load` takes another pack.

    Parameters
    ----------
    pack : str or Path
        A string, as in ``config.json``, is the name of a file in the model's folder. A path may
        lie anywhere.
    io, edits
        As of `tolpack.open`; ``config.json`` has no edits.
    pack_id : str, optional
        The pack's id, 16 hexadecimal digits; no other one is taken.
    **_
        What later versions may write.

    Raises
    ------
    ConfigError
        `pack` is not a name.
    """

    def __init__(
        self, pack: str | Path | None = None, io: str = "auto", pack_id: str | None = None,
        edits: Sequence[str] = (), **_: Any,
    ) -> None:  # fmt: skip
        is_name = isinstance(pack, str) and pack != "" and Path(pack).name == pack
        if pack is None or not (is_name or isinstance(pack, Path)):
            raise ConfigError(
                f"pack of quantization_config is {pack!r}, expected the name of a file in the "
                "model's folder (or, in Python, a pathlib.Path)"
            )
        self.quant_method: Any = QUANT_METHOD
        self.pack, self.io, self.pack_id, self.edits = pack, io, pack_id, tuple(edits)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` says."""
        own = {"quant_method": self.quant_method, "pack": Path(self.pack).name}
        return own if self.pack_id is None else own | {"pack_id": self.pack_id}

    def check(self, pack: Pack) -> None:
        """Refuse a pack of another id.

        Raises
        ------
        ConfigError
            It has another one.
        """
        if self.pack_id not in (None, id_of(pack)):
            raise ConfigError(
                f"{pack.path} has pack_id {id_of(pack)}, but config.json says {self.pack_id!r}: "
                "it is another pack than the folder was written with; copy that one again, or "
                "choose this one by tolpack.hf.load(folder, pack)"
            )


@register_quantization_config(QUANT_METHOD)
class FolderConfig(TolpackConfig):
    """The ``quantization_config`` that a ``config.json`` has.

    Given another one, `transformers` would take this one and only warn, unless the names of their
    classes differ: then it raises an error that quotes them.
    """


FolderConfig.__name__ = (
    "TolpackConfig of config.json (to load it with another pack: tolpack.hf.load(folder, pack))"
)


@register_quantizer(QUANT_METHOD)
class TolpackQuantizer(HfQuantizer):
    """Puts modules that read a pack into a model that has no weights yet."""

    quantization_config: TolpackConfig
    is_compileable = True
    is_trainable = True

    def is_serializable(self) -> bool:
        """Whether the model can be saved; see `tolpack.hf.saving`."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Take away what stands in the place of a file's name; see `tolpack.hf.saving`.

        This is the method that sees the configuration before weights are looked for.
        """
        if getattr(config, "transformers_weights", None) == REMEDY:
            config.transformers_weights = None
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        pack = self.quantization_config.pack
        if not isinstance(pack, Path):
            pack = _beside(model.name_or_path, checkpoint_files, pack)
        replace_tables(model, pack, self.quantization_config.io, self.quantization_config.edits)
        self.quantization_config.check(mounted_pack(model))
        skip_tensors(model)


def _beside(name_or_path: str, checkpoint_files: list[str] | None, name: str) -> Path:
    """Return the path of a pack that lies beside the weights, downloaded if they were."""
    if not checkpoint_files:
        raise ConfigError(f"there are no weights beside which the pack {name!r} could be")
    path = Path(checkpoint_files[0]).with_name(name)
    if path.exists() or Path(name_or_path).is_dir():
        return path
    # Downloads are cached in a folder that has the name of the revision.
    return Path(cached_file(name_or_path, name, revision=path.parent.name) or path)
