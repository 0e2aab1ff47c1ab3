"""Differences between the rows of a pack and those of another table: ``tolpack diff``.

The vocabulary is read once, in the order in which the pack stores it and in whole blocks of its
chunks: each block is decompressed once, and memory does not grow with the table. The reference
gives the rows of the same tokens. A pack of the same order is read in order too; a checkpoint
computes them layer by layer. `tolpack.evaluation.row_errors` sums up the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tolpack.container.provenance import Provenance
from tolpack.errors import ConfigError, FormatError
from tolpack.evaluation.provenance_check import other_checkpoint, other_origin, pack_name
from tolpack.evaluation.row_errors import ErrorSums, TableDiff, squared_norms
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.pack import Pack
from tolpack.reading.edits_files import share_edits
from tolpack.runtime.array_types import Doubles, Floats, Ints
from tolpack.runtime.progress import KeptWarnings, Reporter
from tolpack.sources.arrays.npy import read_counts
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.input_kind import is_pack
from tolpack.storage.inputs import InputPath, input_path
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

# Limits of a block of rows, on each side. A checkpoint's layers are loaded again for each block, so
# blocks are large.
_BLOCK_BYTES = 128 << 20
_LEAST_BYTES, _BLOCK_ROWS = 8 << 20, 1 << 16


def diff_tables(
    a: Location | RemotePath,
    b: Location | RemotePath,
    *,
    tokenizer: Location | None = None,
    frequencies: Location | None = None,
    checkpoint_options: CheckpointOptions | None = None,
    layers: int | None = None,
    table: str | None = None,
    tensor: str | None = None,
    edits: Sequence[Location] = (),
    worst: int = 10,
    reporter: Reporter | None = None,
) -> TableDiff:
    """Compare all rows of a pack with those of another pack, of a checkpoint, or of a plain table.

    Parameters
    ----------
    a : str or Path
        A pack.
    b : str or Path
        The reference: a pack, or a checkpoint or table as of
        `tolpack.sources.open_source.open_source`, which needs torch.
    tokenizer : str or Path, optional
        For the texts of tokens; default: ``tokenizer.json`` beside `b`, else beside `a`.
    frequencies : str or Path, optional
        ``.npy`` of token counts, (vocab_size,); weights of the tokens.
    checkpoint_options : CheckpointOptions, optional
        Settings for a checkpoint that does not describe itself.
    layers : int, optional
        Layers of a two-dimensional plain table.
    table : str, optional
        Name of the table, in packs and in a checkpoint of several.
    tensor : str, optional
        Name of a tensor of a checkpoint that is the reference.
    edits : sequence of str or Path
        Files of edits, each for the one of both packs that it belongs to; of two equal packs for
        `a`.
    worst : int
        Number of tokens to list, those of the largest error.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    TableDiff
        Errors of `a` relative to `b`.

    Raises
    ------
    ConfigError
        The two have different shapes, `a` is not a pack, a value is not finite, or a setting is
        wrong.
    FormatError, FileAccessError, CheckpointError
        One of them is damaged or cannot be read; a `FormatError` names the file.
    """
    a, b, reporter = input_path(a), input_path(b), KeptWarnings(reporter)
    if worst < 0:
        raise ConfigError(f"worst is {worst}, expected 0 or more")
    if a.exists() and not is_pack(a):
        raise ConfigError(f"{a} is not a pack: name the pack first, then what it is held against")
    token_texts = _open_tokenizer(tokenizer, a, b, reporter)
    own, others = _shared(a, b, edits)
    with (
        _open(a, table, own) as pack,
        _open_reference(b, checkpoint_options, layers, table, tensor, others) as reference,
    ):
        _check_shapes(a, _shape(pack), b, reference.shape)
        _check_origin(a, _made_from(pack), b, reference, reporter)
        counts = None if frequencies is None else _counts(frequencies, pack.vocab_size)
        _report_larger_vocabulary(token_texts, pack.vocab_size, reporter)
        sums = ErrorSums(pack, reference.kept_layers, counts, worst)
        with reporter.phase("comparing", pack.vocab_size, "tok") as done:
            for number, ids, ours, theirs in _paired_rows(a, pack, reference):
                squares = squared_norms(ours, theirs)
                _check_finite(squares, ids, a, b)
                sums.add(number, ids, squares)
                done(len(ids))
    found = sums.result(a, b, None if token_texts is None else token_texts.texts)
    return replace(found, warnings=tuple(reporter.warnings))


@dataclass(frozen=True, slots=True)
class _Reference:
    """The table `b`: ``fill(ids, out)`` writes the rows of `ids` to `out`.

    ``made_from``: what a pack was made from; of others, ``digests`` returns those of the tables.
    """

    shape: tuple[int, int, int]
    kept_layers: frozenset[int]
    fill: Callable[[Ints, Floats], object]
    made_from: Provenance | None = None
    digests: Callable[[], dict[str, str]] = dict


@contextmanager
def _open_reference(
    path: InputPath,
    checkpoint_options: CheckpointOptions | None,
    layers: int | None,
    table: str | None = None,
    tensor: str | None = None,
    edits: Sequence[Location] = (),
) -> Iterator[_Reference]:
    if is_pack(path):
        if checkpoint_options is not None or layers is not None or tensor is not None:
            raise ConfigError(f"{path} is a pack: --layers, --tensor and the options of "
                              "checkpoints say how to read something else")  # fmt: skip
        with _open(path, table, edits) as pack:

            def from_pack(ids: Ints, out: Floats) -> None:
                with _path_in_errors(path):
                    pack.rows(ids, out=out)

            kept = frozenset(pack.kept_layers)
            yield _Reference(_shape(pack), kept, from_pack, _made_from(pack))
        return
    from tolpack.sources.open_source import open_source, open_tables
    from tolpack.sources.table_digests import table_digests

    opened = open_tables(path, checkpoint_options, layers, tensor)
    named = [one for one in opened if len(opened) > 1 and one.name == table]
    source = named[0] if named else open_source(path, checkpoint_options, layers, tensor)

    def from_source(ids: Ints, out: Floats) -> None:
        for layer in range(source.num_layers):  # one layer's weights at a time
            multiplier = np.float32(source.fields[layer].multiplier)
            np.multiply(source.field_rows(layer)(ids), multiplier, out=out[:, layer])

    shape = (source.vocab_size, source.num_layers, source.hidden_size)
    yield _Reference(
        shape, frozenset(range(source.num_layers)), from_source,
        digests=lambda: table_digests([source]),
    )  # fmt: skip


def _made_from(pack: Pack) -> Provenance:
    return Provenance.parse(pack.container.header.provenance)


def _check_origin(
    a: InputPath, own: Provenance, b: InputPath, reference: _Reference, reporter: Reporter
) -> None:
    """Warn if a pack and its reference do not belong together."""
    name = pack_name(a)
    if reference.made_from is not None:
        warning = other_origin(name, own, pack_name(b), reference.made_from)
    elif own.checkpoint:
        warning = other_checkpoint(name, own, str(b), reference.digests())
    else:
        return
    if warning is not None:
        reporter.warn(warning)


def _paired_rows(
    path: InputPath, pack: Pack, reference: _Reference
) -> Iterator[tuple[int, Ints, Floats, Floats]]:
    """Yield a chunk's number, ids int64 (n,), and their rows in both tables.

    Rows are float32 (n, layers, hidden), and overwritten by the next ones.
    """
    shape = (pack.num_layers, pack.hidden_size)
    # No more than the size of a small file: its header may claim any number of rows.
    block_bytes = min(_BLOCK_BYTES, max(_LEAST_BYTES, pack.nbytes))
    wanted = min(max(1, block_bytes // (4 * shape[0] * shape[1])), _BLOCK_ROWS)
    views = pack.container.chunks
    with _path_in_errors(path):
        order = pack.stored_order()
    # Whole blocks of the file, unless they are too large, so that none is decompressed twice.
    steps = [wanted - wanted % min(wanted, view.rows_per_block) for view in views]
    longest = max(min(step, view.chunk.rows) for step, view in zip(steps, views))
    ours, theirs = (np.empty((longest, *shape), np.float32) for _ in range(2))
    for number, (view, step) in enumerate(zip(views, steps)):
        end = view.first_slot + view.chunk.rows
        for start in range(view.first_slot, end, step):
            ids = order.tokens(start, min(start + step, end))
            with _path_in_errors(path):
                pack.rows(ids, out=ours[: len(ids)])
            reference.fill(ids, theirs[: len(ids)])
            yield number, ids, ours[: len(ids)], theirs[: len(ids)]


def _shape(pack: Pack) -> tuple[int, int, int]:
    return pack.vocab_size, pack.num_layers, pack.hidden_size


def _check_shapes(
    a: InputPath, ours: tuple[int, int, int], b: InputPath, theirs: tuple[int, int, int]
) -> None:
    if ours != theirs:
        words = "{} holds {} tokens × {} layers × {}".format
        raise ConfigError(
            f"{words(a, *ours)}, but {words(b, *theirs)}: only tables of one shape can be compared"
        )


def _check_finite(squares: Doubles, ids: Ints, a: InputPath, b: InputPath) -> None:
    for path, side in ((b, squares[1]), (a, squares[0])):
        wrong = np.argwhere(~np.isfinite(side))
        if len(wrong):
            token, layer = wrong[0].tolist()
            raise ConfigError(
                f"{path} holds NaN or Inf at token {ids[token]}, layer {layer}: it has no error"
            )


def _counts(path: Location, vocab_size: int) -> Ints:
    counts = read_counts(path, vocab_size)
    if not counts.any():
        raise ConfigError(f"--frequencies {path} holds zeros only: no token would have weight")
    return counts


def _open_tokenizer(
    given: Location | None, a: InputPath, b: InputPath, reporter: Reporter
) -> TextTokenizer | None:
    if given is not None:
        return TextTokenizer(given)
    found = find_tokenizer(b, None) or find_tokenizer(a, None)
    try:
        return None if found is None else TextTokenizer(found)
    except ConfigError as error:  # the user did not ask for it
        reporter.say(f"tokens are shown without their texts: {error}")
        return None


def _report_larger_vocabulary(
    tokenizer: TextTokenizer | None, vocab_size: int, reporter: Reporter
) -> None:
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        reporter.warn(
            f"tokenizer {tokenizer.path} has more tokens ({tokenizer.vocab_size:,}) than the pack "
            f"({vocab_size:,}): the texts may be another model's"
        )


def _shared(
    a: InputPath, b: InputPath, edits: Sequence[Location]
) -> tuple[Sequence[Location], Sequence[Location]]:
    """Return the edits of `a`, and those of `b`."""
    if not edits:
        return (), ()
    packs = [_location(one) for one in (a, b) if one is a or is_pack(one)]
    own, *others = share_edits(packs, edits)
    return own, others[0] if others and others[0] != own else ()


def _location(path: InputPath) -> Location:
    return path if isinstance(path, Path) else str(path)


def _open(path: InputPath, table: str | None, edits: Sequence[Location]) -> Pack:
    with _path_in_errors(path):
        return Pack(_location(path), table=table, edits=edits)


@contextmanager
def _path_in_errors(path: InputPath) -> Iterator[None]:
    """Name the file in the message of a `FormatError`: there are two files."""
    try:
        yield
    except FormatError as error:
        if error.place.startswith(f"{path}, "):
            raise
        place = f"{path}, {error.place}"
        raise type(error)(error.code, place, error.found, error.expected) from error
