"""A model's folder without its table, and with a pack: what one would upload."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tolpack.container.atomic_write import same_file
from tolpack.errors import CheckpointError, ConfigError, FileAccessError
from tolpack.hf.mounting import open_packs
from tolpack.hf.saving import QUANT_METHOD, id_of, mended_config
from tolpack.hf.shards import INDEX, index_without, write_without
from tolpack.hf.table_modules import TableModule, architecture
from tolpack.pack import Pack, open_first_table
from tolpack.runtime.files import open_stream, sync_folder
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.json_file import read_json
from tolpack.sources.open_source import open_files, open_tables
from tolpack.sources.protocol import TableSource
from tolpack.storage.inputs import local_input, local_output
from tolpack.torch.row_comparison import compare_rows, compared_ids

# Files that may hold the table once more, in another format; the index is written again.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".tolpack",
    ".index.json",
)  # fmt: skip
_MAX_CONFIG_BYTES = 16 << 20
# In the configurations of this module's folders; no other way of saving a model keeps it.
_MARK = {"written_by": "tolpack strip"}
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StripResult:
    """What `strip` wrote.

    ``removed_tensors`` took ``removed_bytes``; ``nbytes`` is the size of the new folder,
    ``pack_bytes`` that of the pack in it; ``left_out`` are files of weights in other formats.
    """

    path: str
    removed_tensors: tuple[str, ...]
    removed_bytes: int
    pack: str
    pack_bytes: int
    nbytes: int
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return asdict(self)


def strip(
    folder: str | Path,
    output: str | Path,
    pack: str | Path,
    *,
    verify: bool = True,
    force: bool = False,
    reporter: Reporter | None = None,
) -> StripResult:
    """Write a model's folder without its table, and with the pack that replaces it.

    The new folder appears when it is complete. `tolpack.hf.load` loads it, and so does
    ``from_pretrained`` where ``tolpack.hf`` is imported; elsewhere ``from_pretrained`` refuses it.

    Parameters
    ----------
    folder : str or Path
        A folder with ``config.json`` and ``.safetensors``.
    output : str or Path
        The new folder.
    pack : str or Path
        A pack of all tables of `folder`.
    verify : bool
        Whether all checksums of the pack are compared first.
    force : bool
        Whether a folder that `strip` wrote is replaced. No file in it may have another origin.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    StripResult
        Names and sizes.

    Raises
    ------
    ConfigError
        The pack is damaged or of another model, the model is of no known architecture or is
        quantized, or `output` is one of the inputs.
    CheckpointError
        `folder` is damaged or has no table.
    FileAccessError, FormatError
        A file cannot be read or written, or `output` is there.
    """
    folder, pack = (local_input(one, "what strip takes") for one in (folder, pack))
    output = Path(os.path.abspath(local_output(output)))
    _check_output(output, (folder, pack), force=force)
    files = open_files(folder, CheckpointOptions())
    with open_first_table(pack) as first:
        config = mended_config(_read_config(folder), pack.name, id_of(first), **_MARK)
    reporter = Reporter() if reporter is None else reporter
    dropped = _dropped(files)
    _check_pack(pack, open_tables(folder), reporter, verify=verify)
    writer = _FolderWriter(folder, files, dropped, reporter)
    with _replacing_folder(output) as partial:
        writer.write_weights(partial)
        left_out = writer.copy_others(partial)
        left_out = tuple(name for name in left_out if not same_file(folder / name, pack))
        if os.path.lexists(partial / pack.name):
            raise ConfigError(f"{folder} has a {pack.name} that is not the pack: rename the pack")
        writer.copy(pack, partial / pack.name)
        writer.write_json(partial / "config.json", config)
        nbytes = sum(one.stat().st_size for one in partial.rglob("*") if one.is_file())
    return StripResult(
        str(output), tuple(dropped), sum(dropped.values()), pack.name, pack.stat().st_size, nbytes,
        left_out,
    )  # fmt: skip


def _check_output(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output by which something would be lost."""
    target = output.resolve()
    for one in (path.resolve() for path in inputs):
        if target == one or target in one.parents or one in target.parents:
            raise ConfigError(f"output {output} and input {one} overlap: give another folder")
    if not os.path.lexists(output):
        return
    if not force:
        raise FileAccessError(f"{output} is there: use --force to replace it, or another name")
    if output.is_symlink():
        raise FileAccessError(f"{output} is a link: give the folder {target} itself")
    written = _quantization(output)
    if not written.items() >= {"quant_method": QUANT_METHOD, **_MARK}.items():
        raise FileAccessError(f"{output} is not a folder that strip wrote: give another name")


def _quantization(folder: Path) -> dict[str, Any]:
    """Return what a folder's configuration says of its pack, if it can be read."""
    try:
        found = _read_config(folder).get("quantization_config")
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json", _MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object: copy it again")
    return config


def _dropped(files: CheckpointFiles) -> dict[str, int]:
    """Return the tensors of the tables, with their bytes."""
    others = [name for name in files.store.files if not name.endswith(".safetensors")]
    if others or not files.path.is_dir():
        raise ConfigError(
            f"{files.path} holds {', '.join(others[:3]) or 'no folder'}: strip needs a folder of "
            ".safetensors, as save_pretrained writes it"
        )
    pattern = architecture(files.text_config.get("model_type", files.model_type)).tensors
    found = {}
    for name in files.store.infos:
        if re.search(pattern, name):
            extents = [extent for extent in files.store.extents(name) if extent is not None]
            found[name] = sum(length for _, length in extents)
    if not found:
        raise CheckpointError(f"{files.path} has no tensors of a table: is it stripped already?")
    return found


def _check_pack(
    path: Path, tables: Sequence[TableSource], reporter: Reporter, *, verify: bool
) -> None:
    """Refuse a pack that is damaged, or of another model."""
    if verify:
        with (
            open_first_table(path) as first,
            reporter.phase("verifying", first.nbytes, "B") as done,
        ):
            damages = first.verify(done)
        if damages:
            raise ConfigError(
                f"{path} is damaged in {sum(one.places for one in damages)} places, which `tolpack "
                "verify` lists: build it again"
            )
    expected = [
        TableModule(
            f"table {table.name!r}", table.name, table.rows,
            tuple(field.width for field in table.fields), table.fields[0].multiplier,
            None if table.ngrams is None else table.ngrams.sizes,
        )
        for table in tables
    ]  # fmt: skip
    with ExitStack() as stack:
        for table, opened in zip(tables, open_packs(expected, path, "auto", stack)):
            _compare(table, opened)


def _compare(table: TableSource, pack: Pack) -> None:
    """Refuse a pack whose rows have nothing to do with the table's."""
    if pack.ngrams != table.ngrams:
        raise ConfigError(f"the pack hashes n-grams otherwise than table {table.name!r}")
    ids = compared_ids(pack)
    fields = [table.field_rows(n)(ids) for n in range(len(table.fields))]
    compare_rows(pack, np.concatenate(fields, axis=1), f"table {table.name!r}")


class _FolderWriter:
    """Writes the files of the new folder."""

    def __init__(
        self, folder: Path, files: CheckpointFiles, dropped: dict[str, int], reporter: Reporter
    ) -> None:
        self._folder, self._files, self._dropped = folder, files, dropped
        self._reporter = reporter

    def write_weights(self, target: Path) -> None:
        """Write the shards that hold other tensors, and their index."""
        by_file: dict[str, list[str]] = {}
        for name, infos in self._files.store.infos.items():
            by_file.setdefault(infos[0].path.name, []).append(name)
        kept = {file: names for file, names in by_file.items() if set(names) - set(self._dropped)}
        with self._reporter.phase("writing shards", len(kept), "file") as done:
            for file, names in kept.items():
                source = self._folder / file
                if self._dropped.keys().isdisjoint(names):
                    self.copy(source, target / file)
                else:
                    with open(target / file, "xb") as written:
                        write_without(source, written, self._dropped)
                        _sync(written)
                done(1)
        if (self._folder / INDEX).exists():
            self.write_json(target / INDEX, self._index())

    def copy_others(self, target: Path, folder: Path | None = None) -> tuple[str, ...]:
        """Copy all that is not weights, and return the names of what is."""
        done, left_out = {*self._files.store.files, "config.json", INDEX}, list[str]()
        for path in sorted((folder or self._folder).iterdir()):
            linked = path.is_symlink() and path.is_dir()  # it may lead back here
            if path.name.startswith(".") or linked or (folder is None and path.name in done):
                continue
            if path.is_dir():
                (target / path.name).mkdir()
                left_out += self.copy_others(target / path.name, path)
            elif path.name.endswith(_WEIGHTS):
                left_out.append(path.relative_to(self._folder).as_posix())
            else:
                self.copy(path, target / path.name)
        return tuple(left_out)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a regular file."""
        with open_stream(source) as read, open(target, "xb") as written:
            shutil.copyfileobj(read, written, _COPY_BYTES)
            _sync(written)

    def write_json(self, target: Path, value: object) -> None:
        """Write a JSON file."""
        with open(target, "xb") as written:
            written.write(json.dumps(value, indent=2).encode() + b"\n")
            _sync(written)

    def _index(self) -> dict[str, Any]:
        infos = self._files.store.infos
        values = sum(int(np.prod(infos[name][0].shape)) for name in self._dropped)
        return index_without(
            self._folder / INDEX, self._dropped, sum(self._dropped.values()), values
        )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _replacing_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name `output` if the block ends without an error."""
    partial, old = (output.with_name(output.name + end) for end in (".partial", ".old"))
    try:
        partial.mkdir()
    except OSError as error:
        raise FileAccessError(
            f"cannot make {partial}: {error.strerror}; another strip writes it, or one that was "
            "killed left it, or its folder cannot be written"
        ) from error
    try:
        yield partial
        replaced = os.path.lexists(output)
        if replaced:
            _check_replaced(output, partial, old)
            os.rename(output, old)
        try:
            os.rename(partial, output)
        except BaseException:
            if replaced:
                os.rename(old, output)
            raise
        sync_folder(output.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, FileAccessError):
            raise FileAccessError(f"cannot write {output}: {error.strerror or error}") from error
        raise
    if replaced:
        _remove(old, output)


def _check_replaced(output: Path, partial: Path, old: Path) -> None:
    """Refuse to replace a folder if a file would be lost that strip has not written."""
    if os.path.lexists(old):
        raise FileAccessError(f"{old} is in the way: rename it, or remove it")
    kept, written = _files(partial), {"config.json", str(_quantization(output).get("pack"))}
    lost = sorted(_files(output) - kept - written)
    if lost:
        raise FileAccessError(
            f"{output} holds {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}, which strip "
            "does not write for this model: move it elsewhere, or give another name"
        )


def _files(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir()}


def _remove(old: Path, output: Path) -> None:
    """Remove the folder that was replaced."""
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise FileAccessError(
            f"{output} is written, but {old}, which it replaces, cannot be removed: "
            f"{error.strerror}: remove it"
        ) from error
