"""How far the rows of a pack are from another table's: ``tolpack diff``.

The vocabulary is walked once, in the order in which the pack stores it and in whole blocks of its
chunks, so that each of them is read once and memory does not grow with the table. The other table
is asked for the same tokens: a pack of the same order is read in order too, a checkpoint computes
their rows layer by layer. Errors are squared and summed in float64.

``relative error`` is always √(Σ‖a − b‖² / Σ‖b‖²), b being the reference: of a layer, of a chunk, of
a token over all layers, or of all with each token counted as often as it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tolpack.container.preamble import MAGIC
from tolpack.errors import ConfigError, FormatError
from tolpack.pack import Pack
from tolpack.progress import Reporter
from tolpack.reference.text import TextTokenizer, find_tokenizer
from tolpack.sources.npy import read_counts

if TYPE_CHECKING:  # it loads torch, which two packs do not need
    from tolpack.sources.checkpoint import Reading

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Rows that are compared together, of each side: layers of a checkpoint are loaded for each such
# block, which must be worth it.
_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One layer: its error, and the row of the largest one with its token.

    ``dropped``: ``"A"``, ``"B"`` or ``"both"`` where it is not stored, and so read as zeros.
    """

    layer: int
    dropped: str | None
    relative_error: float | None
    worst_row_error: float
    worst_token: int | None
    worst_text: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkDifference:
    """One chunk of A: its tokens, which are of similar frequency, and their error.

    ``bytes`` as stored; ``share`` of all counts, 0 … 1.
    """

    tokens: int
    encoding: str
    bytes: int
    share: float | None
    relative_error: float | None


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """One token: its error over all layers, and the layer that both sides store where it is
    largest.
    """

    token_id: int
    chunk: int
    relative_error: float
    layer: int | None
    layer_error: float | None
    count: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found. Errors are fractions, not percentages, and ``None`` where the reference
    is zeros and the pack is not.

    ``equal``: every value is. ``differing_tokens``: tokens of which any value differs;
    ``zero_tokens``: of them, those whose reference is zeros. ``weighted_error``: each token counted
    as often as it occurs; ``None`` without counts.
    """

    a: str
    b: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    equal: bool
    differing_tokens: int
    zero_tokens: int
    relative_error: float | None
    weighted_error: float | None
    layers: tuple[LayerDifference, ...]
    chunks: tuple[ChunkDifference, ...]
    worst: tuple[TokenDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def compare(
    a: str | Path,
    b: str | Path,
    *,
    tokenizer: str | Path | None = None,
    frequencies: str | Path | None = None,
    reading: Reading | None = None,
    layers: int | None = None,
    worst: int = 10,
    reporter: Reporter | None = None,
) -> Comparison:
    """Compare all rows of a pack with those of another pack, of a checkpoint, or of a plain table.

    Parameters
    ----------
    a : str or Path
        A pack.
    b : str or Path
        The reference: a pack, or what `tolpack.sources.table.open_source` opens, which needs torch.
    tokenizer : str or Path, optional
        For the texts of tokens; default: ``tokenizer.json`` beside `b`, or beside `a`, if there is
        one.
    frequencies : str or Path, optional
        ``.npy`` of token counts, (vocab_size,).
    reading : Reading, optional
        What a checkpoint does not say itself.
    layers : int, optional
        Layers of a two-dimensional plain table.
    worst : int
        How many tokens of the largest error to name.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    ConfigError
        The two do not have the same shape, `a` is no pack, a value is not finite, or a setting is
        wrong.
    FormatError, FileAccessError, CheckpointError
        One of them is damaged or cannot be read; a `FormatError` names the file.
    """
    a, b, reporter = Path(a), Path(b), reporter or Reporter()
    if worst < 0:
        raise ConfigError(f"worst is {worst}, expected 0 or more")
    if a.exists() and not is_pack(a):
        raise ConfigError(f"{a} is no pack: name the pack first, then what it is held against")
    names = _open_names(tokenizer, a, b, reporter)
    with _open(a) as pack, _open_reference(b, reading, layers) as reference:
        _check_shapes(a, _shape(pack), b, reference.shape)
        counts = None if frequencies is None else _counts(frequencies, pack.vocab_size)
        if names is not None and names.vocab_size > pack.vocab_size:
            reporter.say(f"tokenizer {names.path} has more tokens ({names.vocab_size}) than {a}: "
                         "the texts may be another model's")  # fmt: skip
        tally = _Tally(pack, reference.kept, counts, worst)
        with reporter.phase("comparing", pack.vocab_size, "tok") as done:
            for number, ids, ours, theirs in _walk(a, pack, reference):
                squares = _squares(ours, theirs)
                _check_finite(squares, ids, a, b)
                tally.add(number, ids, squares)
                done(len(ids))
    return tally.result(a, b, names)


def is_pack(path: str | Path) -> bool:
    """Whether a file is called ``.tolpack``, or begins as packs do."""
    if Path(path).suffix == ".tolpack":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _Reference:
    """The other side: ``fill(ids, out)`` puts the rows of `ids` into `out`."""

    shape: tuple[int, int, int]
    kept: frozenset[int]
    fill: Callable[[Ints, Floats], object]


@contextmanager
def _open_reference(
    path: Path, reading: Reading | None, layers: int | None
) -> Iterator[_Reference]:
    if is_pack(path):
        if reading is not None or layers is not None:
            raise ConfigError(f"{path} is a pack: --layers and the options of checkpoints say "
                              "how to read something else")  # fmt: skip
        with _open(path) as pack:

            def from_pack(ids: Ints, out: Floats) -> None:
                with _naming(path):
                    pack.rows(ids, out=out)

            yield _Reference(_shape(pack), frozenset(pack.kept_layers), from_pack)
        return
    from tolpack.sources.table import open_source

    source = open_source(path, reading, layers)

    def from_source(ids: Ints, out: Floats) -> None:
        for layer in range(source.num_layers):  # one layer's weights at a time
            out[:, layer] = source.layer(layer)(ids)

    shape = (source.vocab_size, source.num_layers, source.hidden_size)
    yield _Reference(shape, frozenset(range(source.num_layers)), from_source)


def _walk(
    path: Path, pack: Pack, reference: _Reference
) -> Iterator[tuple[int, Ints, Floats, Floats]]:
    """Yield chunk, ids int64 (n,), and the rows of both sides, float32 (n, layers, hidden), which
    are overwritten by the next ones.
    """
    shape = (pack.num_layers, pack.hidden_size)
    wanted = max(1, _BLOCK_BYTES // (4 * shape[0] * shape[1]))
    views = pack.container.chunks
    with _naming(path):
        order = pack.most_frequent(pack.vocab_size)
    # Whole blocks of the file: one is not decompressed twice.
    steps = [max(1, wanted // view.rows_per_block) * view.rows_per_block for view in views]
    longest = max(min(step, view.chunk.rows) for step, view in zip(steps, views))
    ours, theirs = (np.empty((longest, *shape), np.float32) for _ in range(2))
    for number, (view, step) in enumerate(zip(views, steps)):
        slots = order[view.first_slot : view.first_slot + view.chunk.rows]
        for start in range(0, len(slots), step):
            ids = slots[start : start + step]
            with _naming(path):
                pack.rows(ids, out=ours[: len(ids)])
            reference.fill(ids, theirs[: len(ids)])
            yield number, ids, ours[: len(ids)], theirs[: len(ids)]


def _squares(a: Floats, b: Floats) -> Doubles:
    """Return ‖a − b‖² and ‖b‖² of each token and layer: float64 (2, tokens, layers)."""
    found = np.empty((2, *a.shape[:2]))
    for layer in range(a.shape[1]):
        theirs = b[:, layer].astype(np.float64)
        with np.errstate(invalid="ignore"):  # Inf − Inf, refused afterwards
            error = a[:, layer] - theirs
        for place, values in zip(found, (error, theirs)):
            np.einsum("nh,nh->n", values, values, out=place[:, layer])
    return found


def _relative(squares: Doubles) -> Doubles:
    """Return errors of squares (2, …): 0 where nothing differs, NaN where only b is zeros."""
    error, reference = squares
    found = np.where(error > 0, np.nan, 0.0)
    np.divide(error, reference, out=found, where=reference > 0)
    return np.asarray(np.sqrt(found))


class _Tally:
    """Sums over blocks of tokens, and the worst ones so far."""

    def __init__(self, pack: Pack, kept: frozenset[int], counts: Ints | None, worst: int) -> None:
        self._pack, self._counts, self._worst_count = pack, counts, worst
        layers, views = pack.num_layers, pack.container.chunks
        sides = {"A": frozenset(pack.kept_layers), "B": kept}
        self._missing = [[side for side in "AB" if n not in sides[side]] for n in range(layers)]
        self._shared = np.array(sorted(sides["A"] & sides["B"]), np.int64)
        self._layers, self._chunks = np.zeros((2, layers)), np.zeros((2, len(views)))
        self._weighted, self._chunk_counts = np.zeros(2), np.zeros(len(views))
        self._row_errors, self._row_tokens = np.zeros(layers), np.full(layers, -1, np.int64)
        self._worst: list[TokenDifference] = []
        self._differing = self._zeros = 0

    def add(self, chunk: int, ids: Ints, squares: Doubles) -> None:
        """Count tokens `ids`, int64 (n,), of a chunk: `_squares`."""
        rows = squares.sum(axis=2)
        self._layers += squares.sum(axis=1)
        self._chunks[:, chunk] += rows.sum(axis=1)
        if self._counts is not None:
            counts = self._counts[ids].astype(np.float64)
            self._weighted += rows @ counts
            self._chunk_counts[chunk] += counts.sum()
        self._differing += int(np.count_nonzero(rows[0]))
        self._zeros += int(np.count_nonzero((rows[0] > 0) & (rows[1] == 0)))
        by_layer = np.nan_to_num(_relative(squares), nan=-1.0)
        first = by_layer.argmax(axis=0)
        largest = by_layer.max(axis=0)
        larger = largest > self._row_errors
        self._row_errors[larger], self._row_tokens[larger] = largest[larger], ids[first][larger]
        self._keep_worst(chunk, ids, _relative(rows), by_layer)

    def _keep_worst(self, chunk: int, ids: Ints, errors: Doubles, by_layer: Doubles) -> None:
        some = np.flatnonzero(errors > 0)
        some = some[np.argsort(-errors[some], kind="stable")[: self._worst_count]]
        for n in some.tolist():
            shared = by_layer[n, self._shared]
            layer = error = None
            if shared.max(initial=-1.0) >= 0:
                layer, error = int(self._shared[shared.argmax()]), float(shared.max())
            token = int(ids[n])
            count = None if self._counts is None else int(self._counts[token])
            self._worst.append(TokenDifference(token, chunk, float(errors[n]), layer, error, count))
        self._worst.sort(key=lambda one: -one.relative_error)
        del self._worst[self._worst_count :]

    def result(self, a: Path, b: Path, names: TextTokenizer | None) -> Comparison:
        """Return what was found, the named tokens with their texts."""

        def text(token: int | None) -> str | None:
            return None if names is None or token is None else names.text(token)

        pack, counted = self._pack, self._counts is not None
        layers = tuple(
            replace(one, worst_text=text(one.worst_token)) for one in self._layer_errors()
        )
        worst = tuple(replace(one, text=text(one.token_id)) for one in self._worst)
        return Comparison(
            str(a),
            str(b),
            *_shape(pack),
            equal=self._differing == 0,
            differing_tokens=self._differing,
            zero_tokens=self._zeros,
            relative_error=_or_none(_relative(self._layers.sum(axis=1))),
            weighted_error=_or_none(_relative(self._weighted)) if counted else None,
            layers=layers,
            chunks=tuple(self._chunk_errors()),
            worst=worst,
        )

    def _layer_errors(self) -> Iterator[LayerDifference]:
        for layer, error in enumerate(_relative(self._layers)):
            missing, token = self._missing[layer], int(self._row_tokens[layer])
            yield LayerDifference(
                layer,
                "both" if len(missing) == 2 else "".join(missing) or None,
                _or_none(error),
                float(self._row_errors[layer]),
                None if token < 0 else token,
            )

    def _chunk_errors(self) -> Iterator[ChunkDifference]:
        shares = self._chunk_counts / max(self._chunk_counts.sum(), 1)
        for view, share, error in zip(
            self._pack.container.chunks, shares.tolist(), _relative(self._chunks)
        ):
            yield ChunkDifference(
                view.chunk.rows,
                view.encoding.frame,
                view.length_bytes,
                None if self._counts is None else share,
                _or_none(error),
            )


def _or_none(error: Any) -> float | None:
    return None if np.isnan(error) else float(error)


def _shape(pack: Pack) -> tuple[int, int, int]:
    return pack.vocab_size, pack.num_layers, pack.hidden_size


def _check_shapes(
    a: Path, ours: tuple[int, int, int], b: Path, theirs: tuple[int, int, int]
) -> None:
    if ours != theirs:
        words = "{} holds {} tokens × {} layers × {}".format
        raise ConfigError(
            f"{words(a, *ours)}, but {words(b, *theirs)}: only tables of one shape can be compared"
        )


def _check_finite(squares: Doubles, ids: Ints, a: Path, b: Path) -> None:
    for path, side in ((b, squares[1]), (a, squares[0])):
        wrong = np.argwhere(~np.isfinite(side))
        if len(wrong):
            token, layer = wrong[0].tolist()
            raise ConfigError(
                f"{path} holds NaN or Inf at token {ids[token]}, layer {layer}: it has no error"
            )


def _counts(path: str | Path, vocab_size: int) -> Ints:
    counts = read_counts(path, vocab_size)
    if not counts.any():
        raise ConfigError(f"--frequencies {path} holds zeros only: no token would have weight")
    return counts


def _open_names(
    given: str | Path | None, a: Path, b: Path, reporter: Reporter
) -> TextTokenizer | None:
    if given is not None:
        return TextTokenizer(given)
    found = find_tokenizer(b, None) or find_tokenizer(a, None)
    try:
        return None if found is None else TextTokenizer(found)
    except ConfigError as error:  # nobody asked for it
        reporter.say(f"tokens are shown without their texts: {error}")
        return None


def _open(path: Path) -> Pack:
    with _naming(path):
        return Pack(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file into the message of a `FormatError`, as there are two."""
    try:
        yield
    except FormatError as error:
        place = f"{path}, {error.place}"
        raise type(error)(error.code, place, error.found, error.expected) from error
