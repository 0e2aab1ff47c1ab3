"""STEM's embeddings (arXiv 2601.10639): rows that take the place of the up projection.

| what | name | from |
|---|---|---|
| the tables | `stem_embeddings.J.weight` `[vocab, d_ff]`; J counts the chosen layers | the authors' code |
| the chosen layers, from 0 | `stem_layers` of the config, or of `model` in it (`params.json`) | the authors' code |

The authors' trainer keeps the tables in `consolidated_stem.pth` and the settings in `params.json`
beside it: give both, the second with ``--config``. What a model does where `stem_layers` is absent
differs between versions of that code, so it is not guessed.
"""  # noqa: E501 (a table)

from __future__ import annotations

from tolpack.errors import CheckpointError
from tolpack.sources.families.checkpoint_files import CheckpointFiles, numbered
from tolpack.sources.families.family import Family
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.tensor_table import TensorTable

NAME = "stem_embeddings"
_TENSOR = rf"(?:.+\.)?{NAME}\.(?P<number>\d{{1,4}})\.weight"


def _open_tables(files: CheckpointFiles) -> tuple[TableSource, ...] | None:
    found = numbered(files.matching(_TENSOR), "number")
    if not found:
        return None
    layers = _layers(files)
    if list(found) != list(range(len(layers))):
        raise CheckpointError(
            f"{files.path} has {len(found)} tensors {NAME}.J.weight with the numbers "
            f"{str(list(found))[:60]}, expected 0 … {len(layers) - 1}: one for each of stem_layers "
            "of the config; is a shard missing?"
        )
    fields = [
        files.codes(name).field(f"layer.{layer}", layer)
        for name, layer in zip(found.values(), layers)
    ]
    return (TensorTable(NAME, STEM.name, files.store.states, fields),)


def _layers(files: CheckpointFiles) -> tuple[int, ...]:
    """Return the layers that have a table, ascending, or raise `CheckpointError`."""
    inner = files.config.get("model")
    config = inner if isinstance(inner, dict) else files.text_config
    found = config.get("stem_layers")
    right = isinstance(found, list) and all(type(n) is int and 0 <= n < 2**31 for n in found)
    if not right or not found or found != sorted(set(found)):
        raise CheckpointError(
            f"config field 'stem_layers' is {repr(found)[:60]}, expected the layers with an "
            "embedding, from 0, ascending: add it to config.json, or give the model's params.json "
            "with --config"
        )
    return tuple(found)


STEM = Family("STEM", (f"…{NAME}.N.weight",), _open_tables)
