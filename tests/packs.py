"""Small packs for tests: written straight with `PackWriter`, forged bit by bit, decoded slowly.

`write` makes a pack from a `Recipe`; `reference_rows` decodes one value at a time from the file's
bytes with nothing of tolpack, so that the two can be held against each other; `forge` changes a
pack's header or preamble and computes the checksums again, so that a test meets the check behind
them.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from coded_rows import (
    add_classes,
    add_coded_basis,
    add_models,
    decode_payload,
    in_trellis,
    record_coder,
)

from tolpack.codecs.encodings import CoderSettings, Encoding, Part, record_words
from tolpack.codecs.frames import compress as plain_compress
from tolpack.codecs.frames import compress_planes, compress_runs
from tolpack.codecs.part_values import encode_values
from tolpack.codecs.record import record_layout
from tolpack.container.blocks import encode_blocks
from tolpack.container.header import Chunk, Field, Header, Section, Table
from tolpack.container.ngram_header import NGrams
from tolpack.container.writer import PackWriter
from tolpack.ngrams import NGramHash

PREAMBLE = struct.Struct("<8sHHIQQQQQII")
PREAMBLE_KEYS = (
    "magic", "major", "minor", "header_length", "file_length", "required_features",
    "optional_features", "pack_id", "reserved", "header_crc32", "crc32",
)  # fmt: skip
KEY = bytes(range(1, 33))


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its parts, and whether it has a basis of ``rank``, a mean, or nothing at all.

    ``coded``: the codec and group size of a coded basis; ``width``: if not the recipe's;
    ``basis_lanes``: of an entropy-coded basis.
    """

    parts: tuple[Part, ...] = ()
    rank: int | None = None
    mean: bool = False
    dropped: bool = False
    coded: tuple[str, int] | None = None
    width: int | None = None
    basis_lanes: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A chunk: its rows, frame and block size, and other parts than the layers' if given.

    ``lanes``, ``trellis``: with frame ``ans``.
    """

    rows: int
    frame: str = "raw"
    rows_per_block: int = 1
    parts: tuple[tuple[Part, ...], ...] | None = None
    lanes: int = 1
    trellis: bool = False
    length_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that `write` needs to know."""

    width: int
    layers: tuple[Layer, ...]
    runs: tuple[Run, ...]
    shuffled: bool = False
    multiplier: float = 1.0
    header_room: int = 4032
    magnitude: float = 1.0
    # The model's layer of each field, if not its number; the hash of a table of n-grams; the
    # table's name, and further tables.
    layer_numbers: tuple[int, ...] | None = None
    ngrams: NGramHash | None = None
    name: str = "tols"
    more: tuple[Recipe, ...] = ()
    map_dtype: str = "uint32"
    alignment: int = 4096

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return sum(run.rows for run in self.runs)

    @property
    def kept(self) -> tuple[Layer, ...]:
        """Layers with stored values."""
        return tuple(layer for layer in self.layers if not layer.dropped)


@dataclass(slots=True)
class Sample:
    """A written pack and what went into it; ``values`` by kept layer, rows in slot order.

    ``slots`` and ``values`` are those of the first table, ``more`` those of the others.
    """

    path: Path
    recipe: Recipe
    header: Header
    slots: np.ndarray
    values: list[np.ndarray] = field(default_factory=list)
    more: list[tuple[np.ndarray, list[np.ndarray]]] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()


def int4(values: int, group: int = 4) -> Part:
    return Part("int4", values, group)


def int8(values: int, group: int = 4) -> Part:
    return Part("int8", values, group)


def _f32(value: float) -> float:
    return float(np.float32(value))


def step8(values: int, step: float) -> Part:
    return Part("step8", values, step=_f32(step))


def step16(values: int, step: float) -> Part:
    return Part("step16", values, step=_f32(step))


def _layers(part: Part, count: int) -> tuple[Layer, ...]:
    return tuple(Layer((part,)) for _ in range(count))


_F8 = Part("f8e4m3", 11, 4)
_F8_E8M0 = Part("f8e4m3-e8m0", 37, 32)
_MIXED = (
    Layer((int8(3, 2), int4(8, 4), Part("f32", 2))),
    Layer((int8(3, 2), int4(8, 4), Part("f32", 2))),
    Layer((int4(13, 6),)),
    Layer((Part("bf16", 6), Part("f16", 7))),
)

RECIPES = {
    "smallest": Recipe(1, (Layer((Part("f32", 1),)),), (Run(1),)),
    "f32": Recipe(5, _layers(Part("f32", 5), 3), (Run(7, "raw", 2),), shuffled=True),
    "f16": Recipe(6, _layers(Part("f16", 6), 2), (Run(5),)),
    "bf16": Recipe(7, _layers(Part("bf16", 7), 2), (Run(9, "zstd", 4),)),
    "f8e4m3": Recipe(11, _layers(_F8, 2), (Run(6, "raw", 4), Run(3, "zstd", 2))),
    "int8": Recipe(9, _layers(int8(9), 3), (Run(10, "raw", 3),), shuffled=True),
    "int4": Recipe(9, _layers(int4(9), 3), (Run(10, "zstd", 3),), shuffled=True),
    "int4-odd-remainder": Recipe(7, _layers(int4(7, 4), 2), (Run(5, "raw", 2),)),
    "mixed-parts": Recipe(13, _MIXED, (Run(8, "raw", 3), Run(9, "zstd", 2)), shuffled=True),
    "hot-and-cold": Recipe(
        8,
        _layers(int8(8), 2),
        (Run(3), Run(7, "zstd", 4, ((int4(8),), (int4(8),))), Run(4, "raw", 8)),
        shuffled=True,
    ),
    "dropped": Recipe(
        6,
        (Layer(dropped=True), Layer((int4(6),)), Layer(dropped=True), Layer((int8(6),))),
        (Run(6, "raw", 4),),
    ),
    "basis": Recipe(
        12,
        (Layer((int8(3, 2), int4(2, 2)), rank=5), Layer((int4(4),), rank=4, mean=True)),
        (Run(9, "raw", 2), Run(6, "zstd", 4)),
        shuffled=True,
    ),
    "everything": Recipe(
        8,
        (
            Layer((int4(8),)),
            Layer(dropped=True),
            Layer((int8(3, 2),), rank=3, mean=True),
            Layer((Part("f16", 8),), mean=True),
        ),
        (Run(3, "raw", 2), Run(5, "zstd", 2), Run(4)),
        shuffled=True,
    ),
    "multiplier": Recipe(4, _layers(Part("f16", 4), 2), (Run(4),), multiplier=16.0),
    "tiny-values": Recipe(8, _layers(int8(8), 1), (Run(4),), magnitude=1e-30),
    "long-index": Recipe(3, (Layer((int8(3, 2),)),), (Run(3), Run(1030, "zstd", 2)), shuffled=True),
    "steps": Recipe(
        9,
        (Layer((step8(9, 0.02),)), Layer((step8(9, 0.05),), mean=True), Layer((step16(9, 1e-4),))),
        (
            Run(4, "raw", 3),
            Run(9, "zstd", 4, ((step8(9, 0.07),), (step8(9, 0.07),), (step16(9, -0.001),))),
        ),
        shuffled=True,
    ),
    "coded-basis": Recipe(
        7,
        (
            Layer((step16(2, 0.001), step8(3, 0.03)), rank=5, mean=True, coded=("int8", 8)),
            Layer((step8(4, 0.03),), rank=4, coded=("int4", 4)),
            Layer((int8(3, 2),), rank=3),
        ),
        (Run(5, "zstd", 2), Run(6, "raw", 4)),
        shuffled=True,
    ),
    "runs": Recipe(
        300,
        (
            Layer((step8(300, 1.5),)),
            Layer((step16(9, 0.001), step8(291, 0.05))),
            Layer((step8(300, 60.0),)),
            Layer((step8(300, 4.0),)),
        ),
        (Run(9, "zstd-runs", 4), Run(5, "zstd-runs", 1)),
        shuffled=True,
    ),
    "planes": Recipe(
        40,
        (
            Layer((Part("bf16", 40),)),
            Layer((Part("f32", 7), Part("f16", 33))),
            Layer((Part("q8_0", 40, 32),)),
            Layer((Part("f8e4m3", 40, 8),)),
            Layer((step16(9, 0.001), int4(31, 8))),
            Layer((Part("bf16", 30), Part("q4_0", 10, 4))),
        ),
        (Run(9, "zstd-planes", 4), Run(3, "zstd-planes", 1)),
        shuffled=True,
    ),
    "planes-bf16": Recipe(33, _layers(Part("bf16", 33), 3), (Run(20, "zstd-planes", 6),)),
    "huge-values": Recipe(8, _layers(int4(8), 1), (Run(4),), magnitude=1e30),
    "f8e4m3-e8m0": Recipe(37, _layers(_F8_E8M0, 2), (Run(6, "raw", 4), Run(3, "zstd", 2))),
    "f8e4m3-step": Recipe(
        9, tuple(Layer((Part("f8e4m3-step", 9, step=_f32(s)),)) for s in (0.017, 2e-5)), (Run(5),)
    ),
    "q8_0": Recipe(70, _layers(Part("q8_0", 70, 32), 2), (Run(5, "raw", 2),), shuffled=True),
    "q4_0": Recipe(71, _layers(Part("q4_0", 71, 32), 2), (Run(5, "zstd", 2),), shuffled=True),
}
# Golden packs of what the format allows and this library does not write: bases that are all coded,
# and all the forms that a frame may have.
GOLDEN_ONLY = {
    "coded-int8": Recipe(
        6,
        (
            Layer((step16(3, 0.001),), rank=3, coded=("int8", 4)),
            Layer((step16(2, 0.001),), rank=2, mean=True, coded=("int8", 6)),
        ),
        (Run(7, "raw", 4),),
    ),
    "coded-int4": Recipe(
        7, (Layer((int8(4, 2),), rank=4, coded=("int4", 4)),), (Run(5, "zstd", 2),), shuffled=True
    ),
    "frame-forms": Recipe(40, _layers(Part("f16", 40), 1), (Run(26, "zstd", 4),)),
}
_XOR = NGramHash(
    "xor", orders=(2, 2, 3), sizes=(5, 7, 11), offsets=(0, 5, 13),
    multipliers=(76632096046245, 4839876093313, 2**62 + 1), pad=2, boundary=1,
    compressed_ids=np.array([0, 1, 2, 3, 0, 4, 3, 5, 6], np.uint32),
)  # fmt: skip
_SUM = NGramHash(
    "sum", orders=(1, 2, 4), sizes=(3, 4, 5), offsets=(9, 5, 0), multipliers=(1, 9, 81, 729), pad=0
)
# What 1.2 added to the shape of a table.
RECIPES |= {
    "other-layers": Recipe(
        6,
        (Layer((int4(6),)), Layer(dropped=True), Layer((int8(6),)), Layer((int4(6),), mean=True)),
        (Run(4, "raw", 3), Run(5, "zstd", 2)),
        shuffled=True,
        layer_numbers=(12, 3, 3, 4095),
    ),
    "ngrams": Recipe(
        8, (Layer((int8(8),)),), (Run(24, "raw", 2),), ngrams=_XOR, layer_numbers=(14,)
    ),
}
# What 1.4 added: rows and bases coded by models, and sections that begin at multiples of 64.
_ANS_PARTS = (
    (step8(7, 0.2),), (step16(3, 0.0003), step8(4, 0.1)), (step8(7, 0.5),),
)  # fmt: skip
RECIPES |= {
    "ans": Recipe(
        7,
        (
            Layer((step8(7, 0.3),)),
            Layer(dropped=True),
            Layer((step16(3, 0.0001), step8(4, 0.05))),
            Layer((step8(7, 0.5),), mean=True),
        ),
        (
            Run(3, "raw", 2),
            Run(5, "ans", 2),
            Run(520, "ans", 1, _ANS_PARTS),
            Run(9, "ans", 1, _ANS_PARTS, length_bytes=2),
            Run(4, "ans", 1000, _ANS_PARTS, lanes=3, length_bytes=4),
        ),
        shuffled=True,
    ),
    "ans-trellis": Recipe(
        11,
        (
            Layer((step16(2, 0.01), step8(5, 0.05)), rank=7),
            Layer((step8(11, 0.1),)),
            Layer((step8(3, 0.02),), rank=3, mean=True),
        ),
        (Run(9, "ans", 2, lanes=4, trellis=True), Run(7, "ans", 1, lanes=16, trellis=True)),
        shuffled=True,
        map_dtype="uint16",
        header_room=2100,
        alignment=64,
    ),
    "ans-basis": Recipe(
        14,
        (
            Layer((step8(5, 0.05),), rank=5, mean=True, coded=("int8", 14), basis_lanes=2),
            Layer((step8(3, 0.05),), rank=3, coded=("int8", 14), basis_lanes=2),
            Layer((step8(4, 0.05),), rank=4, coded=("int8", 14)),
        ),
        (Run(7, "raw", 2),),
        shuffled=True,
        map_dtype="uint16",
    ),
    "token-chunks": Recipe(
        6,
        _layers(int8(6), 2),
        (Run(3), Run(5, "zstd", 2), Run(1), Run(4, "raw", 3), Run(2, "zstd", 2)),
        shuffled=True,
        map_dtype="uint8",
    ),
    "alignment": Recipe(
        5,
        (
            Layer((int4(5),)),
            Layer((int8(3, 2),), rank=3, mean=True),
            Layer((Part("f16", 5),)),
        ),
        (Run(3, "raw", 2), Run(5, "zstd", 2), Run(4)),
        shuffled=True,
        header_room=1700,
        alignment=64,
    ),
}
# The same, where no array holds all layers of a row, or one table is not all.
SHAPES = {
    "mixed-widths": Recipe(
        6,
        (
            Layer((int4(6),)),
            Layer((int8(10),), width=10, mean=True),
            Layer(dropped=True, width=3),
            Layer((int8(2, 2),), width=4, rank=2),
        ),
        (Run(5, "raw", 2), Run(4, "zstd", 3)),
        shuffled=True,
    ),
    "two-tables": Recipe(
        5,
        (Layer((Part("f16", 5),)), Layer((int4(5),))),
        (Run(6, "raw", 2), Run(1100, "zstd", 2)),
        shuffled=True,
        name="layer.1",
        more=(
            Recipe(
                8,
                (Layer((int8(8),)),),
                (Run(4, "raw", 2), Run(1060, "zstd", 2)),
                ngrams=_SUM,
                layer_numbers=(14,),
                name="layer.14",
            ),
            Recipe(5, _layers(int4(5), 1), (Run(3),), multiplier=0.5, name="layer.15"),
        ),
    ),
}
# Those whose rows are multiplied by a basis: an order of summation is free.
WITH_BASIS = {
    name for name, one in RECIPES.items() if any(layer.rank is not None for layer in one.layers)
}
# What the hostile-header tests change: every kind of section, two chunks, a dropped layer.
TARGET = Recipe(
    8,
    (Layer((int4(8),)), Layer(dropped=True), Layer((int8(3, 2),), rank=3, mean=True)),
    (Run(3, "raw", 2), Run(3, "zstd", 2)),
    shuffled=True,
)


def write(
    path: Path,
    recipe: Recipe,
    *,
    seed: int = 0,
    key: bytes = KEY,
    compress: Callable[[bytes], bytes] = plain_compress,
    resume: bool = False,
    stop_after: int | None = None,
) -> Sample:
    """Write `recipe` as a pack; with `stop_after`, fail after that many sections instead."""
    encodings: list[Encoding] = []
    tables, contents = [], []
    room, alignment = recipe.header_room, recipe.alignment
    with _Writer(path, key, room, resume=resume, alignment=alignment) as writer:
        writer.stop_after = stop_after
        writer.check_stop()
        for number, one in enumerate((recipe, *recipe.more)):
            rng = np.random.default_rng(seed + number)
            permutation = rng.permutation(one.rows)
            slots = permutation if one.shuffled else np.arange(one.rows)
            if one.map_dtype == "uint8":
                slots = _sorted_in_chunks(slots, one)
            values = [_stored_values(rng, one, layer) for layer in one.kept]
            table = _write_arrays(writer, one, slots, rng)
            chunks = _write_chunks(writer, one, values, seed + number, compress, encodings, number)
            tables.append(replace(table, chunks=chunks))
            contents.append((slots, values))
        sections = tuple(writer.sections)
        header = Header(tuple(tables), tuple(encodings), sections, "tests", alignment=alignment)
        writer.commit(header)
    return Sample(path, recipe, header, *contents[0], contents[1:])


def _write_arrays(
    writer: PackWriter, recipe: Recipe, slots: np.ndarray, rng: np.random.Generator
) -> Table:
    """Add the arrays of a table; its chunks are yet to come."""
    bases = [_basis(rng, recipe, layer) for layer in recipe.layers]
    widths = [layer.width or recipe.width for layer in recipe.layers]
    means = [rng.normal(size=width).astype(np.float32) for width in widths]
    token_map = ngrams = id_map = None
    if recipe.shuffled:
        token_map, _ = writer.add_array("token_map", lambda: _token_map(slots, recipe))
    if recipe.ngrams is not None:
        if recipe.ngrams.compressed_ids is not None:
            id_map, _ = writer.add_array("id_map", lambda: recipe.ngrams.compressed_ids)
        ngrams = NGrams.of(recipe.ngrams, id_map)
    fields, classes = [], _classes_of_bases(writer, recipe)
    for number, layer in enumerate(recipe.layers):
        basis = mean = None
        if layer.rank is not None:
            basis = _add_basis(writer, layer, bases[number], (*classes, number))
        if layer.mean:
            mean, _ = writer.add_array("mean", lambda n=number: means[n])
        stored = {"rank": layer.rank, "basis": basis, "mean": mean, "dropped": layer.dropped}
        reader = number if recipe.layer_numbers is None else recipe.layer_numbers[number]
        fields.append(Field(f"layer {number}", reader, widths[number], **stored))
    name, multiplier = recipe.name, recipe.multiplier
    return Table(name, recipe.rows, tuple(fields), (), token_map, multiplier, ngrams)


def _token_map(slots: np.ndarray, recipe: Recipe) -> np.ndarray:
    if recipe.map_dtype != "uint8":
        return slots.astype(recipe.map_dtype)
    bits = map_bits(len(recipe.runs))
    numbers = [n for n, run in enumerate(recipe.runs) for _ in range(run.rows)]
    whole = sum(numbers[slot] << bits * token for token, slot in enumerate(slots))
    return np.frombuffer(whole.to_bytes(-(-bits * len(slots) // 8), "little"), np.uint8)


def map_bits(chunks: int) -> int:
    """Bits of the number of a chunk in a token map."""
    return 1 if chunks < 3 else 2 if chunks < 5 else 4 if chunks < 17 else 8


def _sorted_in_chunks(slots: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Slots of which those of a chunk ascend with the token ids."""
    tokens, start, found = np.argsort(slots), 0, np.empty_like(slots)
    for run in recipe.runs:
        found[np.sort(tokens[start : start + run.rows])] = np.arange(start, start + run.rows)
        start += run.rows
    return found


def _classes_of_bases(writer: PackWriter, recipe: Recipe) -> tuple[Any, ...]:
    """Add classes for the rows of entropy-coded bases, one row of classes for each layer."""
    ranks = [layer.rank or 0 for layer in recipe.layers if layer.basis_lanes is not None]
    return add_classes(writer, len(recipe.layers), max(ranks), 0) if ranks else ()


def _add_basis(
    writer: PackWriter, layer: Layer, basis: np.ndarray, classes: tuple[Any, ...]
) -> int:
    if layer.coded is None:
        return writer.add_array("basis", lambda: basis)[0]
    part = Part(layer.coded[0], basis.shape[1], layer.coded[1])
    if layer.basis_lanes is not None:
        return add_coded_basis(writer, basis, part, classes, layer.basis_lanes)
    rows = np.concatenate(encode_values(basis.astype(np.float32), part), axis=1)
    return writer.add_array("coded_basis", lambda: rows, part)[0]


class Stopped(Exception):
    """Raised by `write` where a build is to be cut off."""


class _Writer(PackWriter):
    """Stops, as a kill would, right after the journal line of a given number of sections."""

    stop_after: int | None = None
    length_bytes: int | None = None

    def _length_bytes(self, lengths: Sequence[int]) -> int:
        return self.length_bytes or super()._length_bytes(lengths)

    def check_stop(self) -> None:
        if self.stop_after is not None and len(self.sections) >= self.stop_after:
            raise Stopped

    def _write_section(self, described: Section, parts: Iterable[bytes]) -> None:
        super()._write_section(described, parts)
        self.check_stop()


def _stored_values(rng: np.random.Generator, recipe: Recipe, layer: Layer) -> np.ndarray:
    count = layer.rank or layer.width or recipe.width
    values = rng.normal(size=(recipe.rows, count)) * recipe.magnitude
    values[rng.random(values.shape) < 0.1] = 0
    return values.astype(np.float32)


def _basis(rng: np.random.Generator, recipe: Recipe, layer: Layer) -> np.ndarray:
    return rng.normal(size=(layer.rank or 1, layer.width or recipe.width)).astype(np.float16)


def _write_chunks(
    writer: _Writer,
    recipe: Recipe,
    values: list[np.ndarray],
    seed: int,
    compress: Callable[[bytes], bytes],
    encodings: list[Encoding],
    table: int,
) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    start, coded = 0, _coded_runs(writer, recipe, seed)
    for number, run in enumerate(recipe.runs):
        parts = run.parts or tuple(layer.parts for layer in recipe.kept)
        encoding, coder = Encoding(run.frame, run.rows_per_block, parts), None
        if number in coded:
            settings, classes = coded[number]
            encoding = replace(encoding, coder=settings)
            coder = record_coder(encoding, classes)
        if encoding not in encodings:
            encodings.append(encoding)
        part = [array[start : start + run.rows] for array in values]
        records = encode_records(encoding, part, seed)
        if run.trellis:
            records = in_trellis(coder, records)
        compressor = compress
        if run.frame == "zstd-runs":
            compressor = partial(compress_runs, records.shape[1])
        elif run.frame == "zstd-planes" and compress is plain_compress:
            words = record_words(parts)
            compressor = lambda data, words=words: compress_planes(words, data, 1)[0]  # noqa: E731
        writer.length_bytes = run.length_bytes
        blocks, index = writer.add_chunk(
            encoding,
            start,
            partial(
                encode_blocks, [records], encoding, start, writer.pack_id, compressor, table,
                coder=coder,
            ),
            table,
        )  # fmt: skip
        chunks.append(Chunk(run.rows, encodings.index(encoding), blocks, index))
        start += run.rows
    return tuple(chunks)


def _coded_runs(
    writer: PackWriter, recipe: Recipe, seed: int
) -> dict[int, tuple[CoderSettings, np.ndarray]]:
    """Add models and classes for the chunks of frame ``ans``: by chunk, its coder and classes."""
    runs = [number for number, run in enumerate(recipe.runs) if run.frame == "ans"]
    if not runs:
        return {}
    values = sum(layer.rank or layer.width or recipe.width for layer in recipe.kept)
    models = add_models(writer)
    number, classes = add_classes(writer, len(runs), values, seed)
    return {
        run: (
            CoderSettings(models, number, row, recipe.runs[run].lanes, recipe.runs[run].trellis),
            classes,
        )
        for row, run in enumerate(runs)
    }


def encode_records(encoding: Encoding, values: list[np.ndarray], seed: int = 0) -> np.ndarray:
    """Encode kept fields' values; fp8 parts get random codes (not NaN) and scales."""
    rng = np.random.default_rng(seed)
    layout = record_layout(encoding.fields)
    records = np.zeros((len(values[0]), layout.record_bytes), np.uint8)
    for kept, array in enumerate(values):
        if not any(part.codec.startswith("f8e4m3") for part in encoding.fields[kept]):
            layout.encode(records, kept, array)
    for run in layout.runs:
        if run.part.codec.startswith("f8e4m3"):
            codes = rng.integers(0, 127, (len(records), run.count * run.part.code_bytes), np.uint8)
            codes |= rng.integers(0, 2, codes.shape, np.uint8) << 7
            size = len(records), run.count * run.part.scale_bytes
            if run.part.codec == "f8e4m3-e8m0":
                scales = rng.integers(110, 140, size, np.uint8)
            else:
                scales = rng.normal(size=(size[0], size[1] // 4)).astype("<f4").view(np.uint8)
            records[:, run.scale_offset_bytes :][:, : scales.shape[1]] = scales
            records[:, run.code_offset_bytes :][:, : codes.shape[1]] = codes
    return records


def hand_framed(
    data: bytes, *, window: int | None = None, dictionary: int = 0, size: int = 4, extra: int = 0
) -> bytes:
    """Return a zstd frame of a raw block, an RLE block of the last byte, and `extra` empty ones.

    Its header has a `window` byte or is a single segment, a dictionary id of 0 in `dictionary`
    bytes, and the content size in `size` bytes.
    """
    flags = (1, 2, 4, 8).index(size) << 6 | (window is None) << 5 | (0, 1, 2, 4).index(dictionary)
    head = b"\x28\xb5\x2f\xfd" + bytes([flags]) + (b"" if window is None else bytes([window]))
    head += bytes(dictionary) + (len(data) - 256 * (size == 2)).to_bytes(size, "little")
    blocks = [((len(data) - 1) << 3, data[:-1]), (1 << 3 | 1 << 1, data[-1:]), *[(0, b"")] * extra]
    for left, (bits, content) in enumerate(blocks, 1 - len(blocks)):
        head += (bits | (left == 0)).to_bytes(3, "little") + content
    return head


def frame_forms() -> Callable[[bytes], bytes]:
    """Return a compressor that gives every frame another form, all of them allowed (SPEC §8)."""
    forms = iter((
        zstandard.ZstdCompressor(write_checksum=True).compress,
        partial(hand_framed, window=0, size=2),
        partial(hand_framed, window=0, dictionary=1),
        partial(hand_framed, dictionary=2, size=8),
        partial(hand_framed, dictionary=4, size=2),
        partial(hand_framed, extra=3),
        partial(hand_framed, size=1),
    ))  # fmt: skip
    return lambda data: next(forms)(data)


# ---- decoding, one value at a time --------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return a pack's preamble fields, header object, and the bytes behind the header."""
    preamble = dict(zip(PREAMBLE_KEYS, PREAMBLE.unpack(data[:64])))
    end = 64 + preamble["header_length"]
    return preamble, json.loads(data[64:end]), data[end:]


def reference_rows(data: bytes, number: int = 0) -> np.ndarray:
    """Decode a whole table by token id, slowly: float64 (tokens, layers, width).

    Of fields of different widths (tokens, values), one field after the other.
    """
    preamble, header, _ = split(data)
    table = header["tables"][number]
    widths = [spec["width"] for spec in table["fields"]]
    slots: list[int] = list(range(table["rows"]))
    if "token_map" in table:
        slots = [int(v) for v in _array(data, header, table["token_map"])]
        if header["sections"][table["token_map"]]["dtype"] == "uint8":
            slots = _slots_of_chunks(slots, table)
    records = _records(data, header, preamble["pack_id"], number)
    out: list[list[list[float]]] = []
    for slot in slots:
        encoding, record = records[slot]
        stored = reference_record(encoding["fields"], record)
        kept, row = iter(stored), []
        for spec in table["fields"]:
            values = [0.0] * spec["width"]
            if not spec.get("dropped"):
                values = _expand(data, header, spec, next(kept))
                values = [_f32(v * table.get("multiplier", 1.0)) for v in values]
            row.append(values)
        out.append(row)
    if len(set(widths)) == 1:
        return np.array(out)
    return np.array([[value for values in row for value in values] for row in out])


def _slots_of_chunks(stored: list[int], table: dict[str, Any]) -> list[int]:
    """Slots by a map of chunks, token by token."""
    rows = [chunk["rows"] for chunk in table["chunks"]]
    bits, free = map_bits(len(rows)), [sum(rows[:n]) for n in range(len(rows))]
    slots = []
    for token in range(table["rows"]):
        number = stored[token * bits // 8] >> token * bits % 8 & (1 << bits) - 1
        slots.append(free[number])
        free[number] += 1
    assert free == [sum(rows[: n + 1]) for n in range(len(rows))]
    return slots


def reference_row_ids(data: bytes, token_ids: Iterable[int], number: int = 0) -> np.ndarray:
    """Hash the n-grams of a text for table `number`, in Python's integers: int64 (ids, heads)."""
    header = split(data)[1]
    spec = header["tables"][number]["ngrams"]
    ids = list(token_ids)
    if "id_map" in spec:
        known = _array(data, header, spec["id_map"])
        ids = [int(known[one]) for one in ids]
    found = []
    for at in range(len(ids)):
        row = []
        for order, size, offset in zip(spec["orders"], spec["sizes"], spec["offsets"]):
            terms, ended = [], False
            for k in range(order):
                ended |= at - k < 0 or (k > 0 and ids[at - k] == spec.get("boundary"))
                terms.append((spec["pad"] if ended else ids[at - k]) * spec["multipliers"][k])
            mixed = sum(terms)
            if spec["mixing"] == "xor":
                mixed = 0
                for term in terms:
                    mixed ^= (term + 2**63) % 2**64 - 2**63
            row.append(offset + mixed % size)
        found.append(row)
    return np.array(found, np.int64)


def _array(data: bytes, header: dict[str, Any], number: int) -> np.ndarray:
    section = header["sections"][number]
    raw = data[section["offset_bytes"] :][: section["length_bytes"]]
    assert zlib.crc32(raw) == section["crc32"]
    if section["kind"] == "coded_basis":
        part = {**section, "values": section["shape"][1]}
        scales, codes = _sizes(part)
        if section.get("frame") == "ans":
            raw = _decoded_basis(data, header, section, raw)
        rows = [raw[n : n + scales + codes] for n in range(0, len(raw), scales + codes)]
        count = range(part["values"])
        decoded = [[reference_value(part, r[:scales], r[scales:], n) for n in count] for r in rows]
        return np.array(decoded, dtype=np.float64)
    kinds = {"uint8": "<B", "uint16": "<H", "uint32": "<I", "float16": "<e", "float32": "<f"}
    values = [v for (v,) in struct.iter_unpack(kinds[section["dtype"]], raw)]
    return np.array(values, dtype=np.float64).reshape(section["shape"])


def _records(
    data: bytes, header: dict[str, Any], pack_id: int, table: int
) -> list[tuple[Any, bytes]]:
    found: list[tuple[Any, bytes]] = []
    for chunk in header["tables"][table]["chunks"]:
        encoding = header["encodings"][chunk["encoding"]]
        size = sum(_sizes(part)[0] + _sizes(part)[1] for f in encoding["fields"] for part in
                   f["parts"])  # fmt: skip
        per_block = encoding["rows_per_block"]
        lengths = _block_lengths(data, header, chunk, encoding, size)
        at = header["sections"][chunk["blocks"]]["offset_bytes"]
        first = len(found)
        for number, length in enumerate(lengths):
            checksum = 2 if encoding["frame"] == "ans" else 4
            end = at + length - checksum
            block, stored = data[at:end], data[end : at + length]
            place = first + number * per_block + table * 2**48
            start = zlib.crc32(struct.pack("<QQ", pack_id, place))
            assert zlib.crc32(block, start).to_bytes(4, "little")[:checksum] == stored
            count = min(per_block, chunk["rows"] - number * per_block)
            if encoding["frame"] == "ans":
                block = _decoded_records(data, header, encoding, block, count)
            elif encoding["frame"] != "raw":
                block = zstandard.ZstdDecompressor().decompress(block)
                if encoding["frame"] == "zstd-runs":
                    columns = _expanded(block, count * size)
                    block = b"".join(columns[n::count] for n in range(count))
                if encoding["frame"] == "zstd-planes":
                    block = _from_planes(block, encoding["fields"], count)
                assert len(block) == count * size
            found += [(encoding, block[n * size : (n + 1) * size]) for n in range(count)]
            at += length
    return found


def _coder(
    data: bytes, header: dict[str, Any], entry: dict[str, Any]
) -> tuple[list[list[int]], list[int], int, bool]:
    """Models, classes, lanes, and whether there is a trellis."""
    models, classes = (
        _array(data, header, entry[key]).astype(int) for key in ("models", "classes")
    )
    row = classes[entry["class_row"]].tolist()
    return models.tolist(), row, entry["lanes"], entry.get("trellis") == 8


def _decoded_records(
    data: bytes, header: dict[str, Any], encoding: dict[str, Any], payload: bytes, rows: int
) -> bytes:
    """The records of a payload of frame ans."""
    models, classes, lanes, trellis = _coder(data, header, encoding)
    counts = [[part["values"] for part in field["parts"]] for field in encoding["fields"]]
    left, fields = iter(classes), []
    for own in counts:
        fields.append([next(left) for _ in range(sum(own))])
    out = bytearray()
    for codes in decode_payload(payload, rows, fields, models, lanes, trellis):
        values = iter(codes)
        by_part = {
            (f, n): [next(values) for _ in range(count)]
            for f, own in enumerate(counts)
            for n, count in enumerate(own)
        }
        for n in range(max(map(len, counts))):
            for f, own in enumerate(counts):
                if n < len(own):
                    wide = encoding["fields"][f]["parts"][n]["codec"] == "step16"
                    out += struct.pack(f"<{own[n]}{'h' if wide else 'b'}", *by_part[f, n])
    return bytes(out)


def _decoded_basis(
    data: bytes, header: dict[str, Any], section: dict[str, Any], raw: bytes
) -> bytes:
    """The rows of an entropy-coded basis, as one that is coded alone has them."""
    models, classes, lanes, _ = _coder(data, header, section)
    rank, width = section["shape"]
    fields = [[classes[row]] * width for row in range(rank)]
    codes = decode_payload(raw[2 * rank :], 1, fields, models, lanes, False)[0]
    return b"".join(
        raw[2 * n : 2 * n + 2] + struct.pack(f"<{width}b", *codes[n * width : (n + 1) * width])
        for n in range(rank)
    )


def _expanded(content: bytes, size: int) -> bytes:
    """What the content of a zstd-runs frame stands for, symbol by symbol."""
    count = int.from_bytes(content[:4], "little")
    literals = iter(content[4 + count :])
    out = bytearray()
    for symbol in content[4 : 4 + count]:
        high, low = symbol >> 4, symbol & 15
        out += bytes(16 << high if low == 0 else high)
        if low:
            out.append(next(literals) if low == 8 else low if low < 8 else 240 + low)
    assert next(literals, None) is None
    return bytes(out.ljust(size, b"\0"))


def _from_planes(content: bytes, fields: list[dict[str, Any]], rows: int) -> bytes:
    """The records that the content of a zstd-planes frame stands for, word by word."""
    words: dict[tuple[int, int], list[int]] = {}
    end = 0
    for area in (0, 1):
        for _, part in _record_order(fields):
            size = _word_sizes(part["codec"])[area]
            for _ in range(_sizes(part)[area] // size):
                words.setdefault((area, size), []).append(end)
                end += size
    records, at = bytearray(rows * end), 0
    for area, size in itertools.product((0, 1), (4, 2, 1)):
        places = [row * end + place for row in range(rows) for place in words.get((area, size), [])]
        for n, place in enumerate(places):
            number = sum(content[at + k * len(places) + n] << 8 * k for k in range(size))
            if size > 1:
                number = number >> 1 | (number & 1) << (8 * size - 1)
            records[place : place + size] = number.to_bytes(size, "little")
        at += size * len(places)
    return bytes(records)


def _word_sizes(codec: str) -> tuple[int, int]:
    """Bytes of a scale (1 if there is none) and of a code, 1 for those that fill no 2 or 4."""
    scale = {"f8e4m3": 4, "int8": 2, "int4": 2, "q8_0": 2, "q4_0": 2}.get(codec, 1)
    return scale, {"f32": 4, "f16": 2, "bf16": 2, "step16": 2}.get(codec, 1)


def _record_order(fields: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Parts in the order of a record, with the number of their field."""
    depth = max(len(f["parts"]) for f in fields)
    return [
        (number, f["parts"][n])
        for n in range(depth)
        for number, f in enumerate(fields)
        if n < len(f["parts"])
    ]


def _block_lengths(
    data: bytes, header: dict[str, Any], chunk: dict[str, Any], encoding: Any, size: int
) -> list[int]:
    blocks = math.ceil(chunk["rows"] / encoding["rows_per_block"])
    if encoding["frame"] == "raw":
        return [math.ceil((size * encoding["rows_per_block"] + 4) / 64) * 64] * blocks
    at = header["sections"][chunk["index"]]["offset_bytes"]
    lengths: list[int] = []
    each, shortest = 4, 0
    if encoding["frame"] == "ans":
        size = header["sections"][chunk["index"]]["length_bytes"]
        each = {12 * math.ceil(blocks / 512) + n * blocks: n for n in (1, 2, 4)}[size]
    while len(lengths) < blocks:
        count = min(512, blocks - len(lengths))
        stored = struct.unpack(f"<{count}{' BH I'[each]}", data[at + 8 : at + 8 + each * count])
        if each == 1:
            shortest = int.from_bytes(data[at + 6 : at + 8], "little")
        lengths += [shortest + length for length in stored]
        at += 12 + each * count
    return lengths


def _sizes(part: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a part's scales and of its codes."""
    values, codec = part["values"], part["codec"]
    bits = {"f32": 32, "f16": 16, "bf16": 16, "int4": 4, "step16": 16, "q4_0": 4}.get(codec, 8)
    scale = {"f8e4m3": 4, "f8e4m3-e8m0": 1, "int8": 2, "int4": 2, "q8_0": 2, "q4_0": 2}
    scale = scale.get(codec, 0)
    groups = math.ceil(values / part["group_size"]) if scale else 0
    return groups * scale, math.ceil(values * bits / 8)


def reference_record(fields: list[dict[str, Any]], record: bytes) -> list[list[float]]:
    """Decode one record: the stored values of each kept field, one at a time."""
    order = _record_order(fields)
    scale_at, code_at = 0, sum(_sizes(part)[0] for _, part in order)
    out: list[list[float]] = [[] for _ in fields]
    for number, part in order:
        scale_bytes, code_bytes = _sizes(part)
        scales = record[scale_at : scale_at + scale_bytes]
        codes = record[code_at : code_at + code_bytes]
        out[number] += [reference_value(part, scales, codes, n) for n in range(part["values"])]
        scale_at, code_at = scale_at + scale_bytes, code_at + code_bytes
    return out


def reference_value(part: dict[str, Any], scales: bytes, codes: bytes, n: int) -> float:
    """Decode value number `n` of a part."""
    codec = part["codec"]
    if codec == "f32":
        return struct.unpack_from("<f", codes, 4 * n)[0]
    if codec == "f16":
        return struct.unpack_from("<e", codes, 2 * n)[0]
    if codec == "bf16":
        return bfloat16(codes[2 * n : 2 * n + 2])
    if codec in ("step8", "step16"):
        one = struct.unpack_from("<b", codes, n) if codec == "step8" else None
        (code,) = one or struct.unpack_from("<h", codes, 2 * n)
        return _f32(code * _f32(part["step"]))
    if codec == "f8e4m3-step":
        return _f32(e4m3(codes[n]) * _f32(part["step"]))
    group = part["group_size"]
    number, inside = divmod(n, group)
    if codec == "f8e4m3":
        return _f32(e4m3(codes[n]) * struct.unpack_from("<f", scales, 4 * number)[0])
    if codec == "f8e4m3-e8m0":
        return _f32(e4m3(codes[n]) * 2.0 ** (scales[number] - 127))
    two = scales[2 * number : 2 * number + 2]
    scale = struct.unpack("<e", two)[0] if codec.startswith("q") else bfloat16(two)
    if codec in ("int8", "q8_0"):
        return _f32(struct.unpack_from("<b", codes, n)[0] * scale)
    half = (min(group, part["values"] - number * group) + 1) // 2
    byte = codes[number * (group // 2) + inside % half]
    return _f32(((byte >> 4 if inside >= half else byte & 15) - 8) * scale)


def bfloat16(two: bytes) -> float:
    """Decode two bytes of bfloat16."""
    return struct.unpack("<f", b"\0\0" + two)[0]


def e4m3(code: int) -> float:
    """Decode one fp8 code: sign, four bits of exponent (bias 7), three of mantissa, no infinity."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def _expand(
    data: bytes, header: dict[str, Any], spec: dict[str, Any], stored: list[float]
) -> list[float]:
    values = stored
    if "basis" in spec:
        values = list(np.array(stored) @ _array(data, header, spec["basis"]))
    if "mean" in spec:
        mean = _array(data, header, spec["mean"])
        values = [_f32(value + m) for value, m in zip(values, mean)]
    return values


# ---- forging -------------------------------------------------------------------------------------


def forge(
    data: bytes,
    edit: Callable[[dict[str, Any]], object] | None = None,
    *,
    text: bytes | None = None,
    **preamble: Any,
) -> bytes:
    """Change a pack's header (by `edit`, or to `text`) and preamble; checksums are made again.

    The header keeps its length, padded with spaces, unless it outgrows it; ``crc32`` and
    ``header_crc32`` among `preamble` override the right checksums.
    """
    fields, header, rest = split(data)
    room = fields["header_length"]
    if edit is not None:
        edit(header)
        text = json.dumps(header, separators=(",", ":")).encode()
    body = data[64 : 64 + room] if text is None else text.ljust(room)
    length = len(data) - room + len(body)
    fields |= {"header_length": len(body), "file_length": length, "header_crc32": zlib.crc32(body)}
    fields |= preamble
    head = PREAMBLE.pack(*fields.values())[:60]
    crc = preamble.get("crc32", zlib.crc32(head))
    return head + struct.pack("<I", crc) + body + rest


def reseal_block(data: bytes, offset: int, length: int, place: int, payload: bytes) -> bytes:
    """Put `payload` and its right checksum into the block of `length` bytes at `offset`."""
    pack_id = split(data)[0]["pack_id"]
    crc = zlib.crc32(struct.pack("<QQ", pack_id, place) + payload)
    block = payload + struct.pack("<I", crc)
    assert len(block) == length
    return data[:offset] + block + data[offset + length :]


def from_scratch(
    header: dict[str, Any], file_length: int, required_features: int, **preamble: Any
) -> bytes:
    """Return preamble, header and zeros up to `file_length` bytes at most one megabyte."""
    text = json.dumps(header, separators=(",", ":")).encode()
    fields = dict.fromkeys(PREAMBLE_KEYS, 0)
    fields |= {"magic": b"\x89TOLPACK", "major": 1, "header_length": len(text)}
    fields |= {"file_length": file_length, "required_features": required_features}
    fields |= {"header_crc32": zlib.crc32(text)} | preamble
    head = PREAMBLE.pack(*fields.values())[:60]
    data = head + struct.pack("<I", zlib.crc32(head)) + text
    return data.ljust(min(file_length, 1 << 20), b"\0")


def plain_header(rows: int, width: int, per_block: int, length: int) -> dict[str, Any]:
    """Return the header of one f32 field in one raw chunk, for `from_scratch` (features: 1)."""
    parts = {"parts": [{"codec": "f32", "values": width}]}
    spec = {"name": "a", "layer": 0, "width": width, "dtype": "float32"}
    chunk = {"rows": rows, "encoding": 0, "blocks": 0}
    return {
        "producer": "tests",
        "tables": [{"name": "t", "rows": rows, "fields": [spec], "chunks": [chunk]}],
        "encodings": [{"frame": "raw", "rows_per_block": per_block, "fields": [parts]}],
        "sections": [{"kind": "blocks", "offset_bytes": 4096, "length_bytes": length}],
    }


@contextmanager
def memory_limit(megabytes: int = 64) -> Iterator[None]:
    """Fail if the block allocates more than this at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= megabytes << 20, f"{peak / 2**20:.0f} MiB were allocated"
