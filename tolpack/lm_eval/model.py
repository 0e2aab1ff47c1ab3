"""The model type ``tolpack`` of lm-eval: a model of transformers with a pack in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from tolpack.errors import ConfigError
from tolpack.lm_eval.loading import load_model
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.storage.inputs import local_input
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath


@register_model("tolpack")
class TolpackLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model of transformers, loaded by tolpack.

    Everything but loading is `HFLM`'s. On lm-eval's command line these are the ``--model_args``,
    like ``pretrained=FOLDER,pack=model.tolpack``.

    Parameters
    ----------
    pretrained : str or Path
        A folder of transformers, or a checkpoint of a MemoryLLM or Flex-MemoryLLM.
    pack : str or Path, optional
        A pack of its table; default: the one that ``config.json`` names, else the model's own
        weights.
    tokenizer : str or Path, optional
        A ``tokenizer.json``, or a folder of transformers; default: the one of the folder, else
        ``tokenizer.json`` beside the checkpoint.
    dtype : str
        As of transformers; ``"auto"`` is the one that weights are stored in.
    device : str, optional
        Where the model runs; default: the CPU.
    io : str
        As of `tolpack.Pack`.
    edits : str, Path, or a sequence of them
        Files of edits of the pack.
    batch_size : int or str
        Sequences in a batch, or ``"auto"``.
    checkpoint_options : CheckpointOptions, optional
        For a MemoryLLM that does not describe itself.
    options : dict
        All others are `HFLM`'s, such as ``max_length`` and ``add_bos_token``.

    Raises
    ------
    CheckpointError, ConfigError, FormatError, FileAccessError
        The model or the pack cannot be read, or they do not belong together.
    """

    def __init__(
        self,
        pretrained: str | Path,
        pack: str | Path | None = None,
        tokenizer: Location | RemotePath | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        io: str = "auto",
        edits: Location | Sequence[Location] = (),
        batch_size: int | str = 1,
        checkpoint_options: CheckpointOptions | None = None,
        **options: Any,
    ) -> None:
        # lm-eval's command line says cuda by default, also where there is none.
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        path = local_input(pretrained, "a model of lm-eval")
        model, found = load_model(
            path, pack, tokenizer, dtype=dtype, device=device, io=io,
            edits=[edits] if isinstance(edits, (str, Path)) else edits,
            checkpoint_options=checkpoint_options,
        )  # fmt: skip
        super().__init__(
            pretrained=model, tokenizer=found, dtype=None, batch_size=batch_size, **options
        )

    @property
    def prefix_token_id(self) -> int:
        """Token before a text without a context.

        Raises
        ------
        ConfigError
            The tokenizer names no token that begins or ends a text, and none was given.
        """
        found: int | None = super().prefix_token_id
        if found is None:
            raise ConfigError(
                "the tokenizer names no token that begins or ends a text: give the one that a text "
                "without a context follows, like --model_args prefix_token_id=0"
            )
        return found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """See `HFLM`; a tokenizer that names no such token adds none."""
        if add_special_tokens is None and super().prefix_token_id is None:
            add_special_tokens = False
        ids: list[int] = super().tok_encode(string, add_special_tokens, **options)
        return ids
