"""Models loaded with other modules in place of their tables, from folders that have the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tolpack.errors import CheckpointError, TolpackError
from tolpack.hf.table_modules import TableModule, skip_tensors, table_modules


def load_without_tables(folder: str | Path, module: Callable[[TableModule], nn.Module]) -> Any:
    """Load a model in float32 with other modules in place of its tables, whose tensors are skipped.

    Parameters
    ----------
    folder : str or Path
        A folder on this machine.
    module : callable
        Gives the module to put in the place of a table.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, without gradients of weights.

    Raises
    ------
    CheckpointError
        `transformers` cannot load it, or weights are missing.
    ConfigError
        The model has no table.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        text_config = config.get_text_config()
        model, info = _with_modules(kind, module).from_pretrained(
            folder, config=text_config if isinstance(text_config, kind.config_class) else config,
            dtype=torch.float32, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except TolpackError:
        raise
    except Exception as error:  # whatever a configuration makes of a constructor
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of {type(model).__name__}, such as "
            f"{missing[0]!r}: copy all files of the model"
        )
    return model.eval().requires_grad_(False)


def _with_modules(kind: Any, module: Callable[[TableModule], nn.Module]) -> Any:
    """Return a model's class whose models have `module` in place of tables from the beginning."""

    def init(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        for one in table_modules(self):
            self.set_submodule(one.path, module(one))
        skip_tensors(self)

    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})
