"""N-gram tables in files of their own, whose integers are packed codes."""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.errors import CheckpointError
from tolpack.ngrams import NGramHash
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.qwen4_exp import is_qwen4_exp, ngram_hash
from tolpack.sources.tensors.tensor_rows import FileRows, InputFile, JoinedRows, open_input
from tolpack.storage.inputs import InputPath


def packed_rows(
    files: CheckpointFiles, names: Sequence[str], dtype: str, value_bytes: int
) -> JoinedRows:
    """Return the rows of matrices, one matrix after the other.

    Parameters
    ----------
    files : CheckpointFiles
        Files of safetensors.
    names : sequence of str
        Names of the tensors.
    dtype : str
        The dtype that they must have, as safetensors names it.
    value_bytes : int
        Bytes of a value of it.

    Raises
    ------
    CheckpointError
        A tensor has another dtype or no rows, or is not in a ``.safetensors``.
    """
    opened: dict[InputPath, InputFile] = {}
    parts = []
    for name in names:
        info, shape = files.store.infos[name][0], files.shape(name)
        (extent, *others) = files.store.extents(name)
        if info.dtype != dtype or len(shape) != 2 or min(shape) == 0 or others or extent is None:
            raise CheckpointError(
                f"tensor {name!r} in {info.path.name} is {info.dtype} {list(shape)}, expected "
                f"{dtype} [rows, columns] in a .safetensors"
            )
        if info.path not in opened:
            opened[info.path] = open_input(info.path)
        file = opened[info.path]
        parts.append(FileRows(file, name, dtype, extent[0], shape[0], shape[1] * value_bytes))
    return JoinedRows(parts)


def beside(files: CheckpointFiles, name: str) -> CheckpointFiles:
    """Return the file `name` in the folder of `files`, if the index does not list it; else `files`.

    Raises
    ------
    CheckpointError
        It cannot be read.
    """
    path = files.path / name
    if not files.path.is_dir() or name in files.store.files or not path.exists():
        return files
    return CheckpointFiles(path, open_store(path), files.config)


def hash_of(files: CheckpointFiles, stored: Sequence[str], rows: int) -> NGramHash | None:
    """Return the hash of a table of `rows` rows: see `ngram_hash`; ``None`` without a config.

    Raises
    ------
    CheckpointError
        It gives rows that the table has not.
    """
    if not is_qwen4_exp(files):
        return None
    ngrams = ngram_hash(files, stored)
    if ngrams.table_rows > rows:
        raise CheckpointError(
            f"{files.path} has {rows:,} rows, but the heads of the config's hash have "
            f"{ngrams.table_rows:,}: they are of different models"
        )
    return ngrams


def layer_of(files: CheckpointFiles) -> int:
    """Return the layer that reads the only table, from 0: ``ple_layer_ids`` count from 1; 0 if the
    config does not say.
    """
    found = files.text_config.get("ple_layer_ids")
    alone = isinstance(found, list) and len(found) == 1 and type(found[0]) is int
    return found[0] - 1 if found and alone and 0 < found[0] < 1e5 else 0
