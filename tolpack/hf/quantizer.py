"""The method ``tolpack`` of `transformers`: tables are replaced before weights are loaded.

Importing this module registers it, so that ``from_pretrained`` loads folders whose ``config.json``
names a pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tolpack.errors import ConfigError
from tolpack.hf.mounting import replace_tables
from tolpack.hf.saving import QUANT_METHOD, REMEDY


@register_quantization_config(QUANT_METHOD)
class TolpackConfig(QuantizationConfigMixin):
    """``quantization_config`` of a model whose table is in a pack.

    Parameters
    ----------
    pack : str or Path
        A string, as in ``config.json``, is the name of a file in the model's folder. A path may
        lie anywhere.
    io : str
        As of `tolpack.open`.
    **_
        What later versions may write.

    Raises
    ------
    ConfigError
        `pack` is no name.
    """

    def __init__(self, pack: str | Path | None = None, io: str = "auto", **_: Any) -> None:
        if not isinstance(pack, Path) and (not isinstance(pack, str) or Path(pack).name != pack):
            raise ConfigError(
                f"pack of quantization_config is {pack!r}, expected the name of a file in the "
                "model's folder (or, in Python, a pathlib.Path)"
            )
        self.quant_method: Any = QUANT_METHOD
        self.pack, self.io = pack, io

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` says."""
        return {"quant_method": self.quant_method, "pack": Path(self.pack).name}


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
        """Take away the name of a file that is not there; see `tolpack.hf.saving`.

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
            pack = _beside(checkpoint_files, pack)
        replaced = replace_tables(model, pack, self.quantization_config.io)
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = ignored | {one.tensors for one in replaced}


def _beside(checkpoint_files: list[str] | None, name: str) -> Path:
    if not checkpoint_files:
        raise ConfigError(f"there are no weights beside which the pack {name!r} could be")
    return Path(checkpoint_files[0]).with_name(name)
