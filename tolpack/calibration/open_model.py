"""Opening the model that reads a table, to measure its losses."""

from __future__ import annotations

import importlib.util
import math

from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.language_model import LanguageModel
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import local_input
from tolpack.workspace.limits import Limits, model_bytes

TRANSFORMERS = "a model of transformers"


def open_model(source: TableSource, limits: Limits) -> LanguageModel:
    """Open the model that reads a table.

    Raises
    ------
    CheckpointError
        It cannot be run.
    ConfigError
        It could be run if a library were installed.
    """
    checkpoint = source.checkpoint
    if checkpoint is not None:
        check_decoder(checkpoint)
        fits = checkpoint.decoder_bytes() <= limits.decoder_bytes
        return Decoder(checkpoint, resident=fits, compute=source.compute)
    if source.transformers_model is None:
        raise CheckpointError("no weights of one are beside the table")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("it needs transformers: pip install 'tolpack[hf]'")
    if not limits.model_bytes:
        needed = math.ceil(model_bytes(source) / 1e8) / 10
        raise CheckpointError(
            f"in float32 it takes {needed}GB more than the build: give more --max-memory"
        )
    from tolpack.hf import language_model

    try:
        return language_model.open_model(
            local_input(source.transformers_model.path, TRANSFORMERS), source
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
