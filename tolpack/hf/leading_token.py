"""The token that a model's texts begin with, such as Gemma's ``<bos>``.

Models that were trained with one predict badly without it. It is what the tokenizer of the model's
folder puts before a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tolpack.sources.json_file import read_json

_MAX_TOKENIZER_BYTES = 256 << 20


def leading_token(folder: Path, bos_token_id: int | None) -> int | None:
    """Return the id of the token that texts begin with; ``None`` if there is none.

    Parameters
    ----------
    folder : Path
        With ``tokenizer_config.json``, whose ``add_bos_token`` decides, or with the template of
        ``tokenizer.json``.
    bos_token_id : int or None
        The configuration's.
    """
    settings = _object(folder / "tokenizer_config.json")
    added = settings.get("add_bos_token")
    if isinstance(added, bool):
        return bos_token_id if added else None
    return _template_token(_object(folder / "tokenizer.json").get("post_processor"))


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if it cannot be read."""
    try:
        value = read_json(path, _MAX_TOKENIZER_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _template_token(processor: Any) -> int | None:
    """Return the first token of a ``TemplateProcessing`` of the `tokenizers` library."""
    try:
        if processor["type"] == "Sequence":
            found = (_template_token(one) for one in processor["processors"])
            return next((token for token in found if token is not None), None)
        name = processor["single"][0]["SpecialToken"]["id"]
        return int(processor["special_tokens"][name]["ids"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
