"""Packs of random rows for the benchmarks, and files whose pages are not in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import CoderSettings, Encoding, Part
from tolpack.codecs.frames import compress, compress_runs
from tolpack.codecs.record import record_layout
from tolpack.compress.entropy.code_histograms import SampledCodes
from tolpack.compress.entropy.code_models import fit_models
from tolpack.compress.fixed.encoding_choice import frame_encoding, raw_encoding
from tolpack.container.blocks import encode_blocks
from tolpack.container.header import Chunk, Field, Header, Table
from tolpack.container.writer import PackWriter

# Codes of a pack of `--bits auto` at 1.6 bits a value have about this standard deviation.
_CODE_DEVIATION = 0.7
_LANES = 4


def make_pack(
    path: Path, layers: int, width: int, vocab: int, frame: str, rank: int | None = None
) -> None:
    """Write a pack of random rows, its tokens in a random order.

    ``raw`` and ``zstd`` have 4 bits a value, ``f16`` 16 bits in raw blocks, ``zstd-runs`` and
    ``ans`` codes of one step of components whose scales differ by 4; with `rank` rows are
    coefficients of random bases in 16 bits.
    """
    source = np.random.default_rng(0)
    stored = rank or width
    encoding = _encoding(frame, layers, stored)
    layout = record_layout(encoding.fields)
    compressor = partial(compress_runs, layout.record_bytes) if frame == "zstd-runs" else compress
    scales = np.ones(stored)
    if frame in ("zstd-runs", "ans"):
        scales = source.permutation(np.geomspace(0.5, 2, stored))

    def records(count: int = vocab) -> Iterator[np.ndarray]:
        for start in range(0, count, 1024):
            rows = min(1024, count - start)
            block = np.zeros((rows, layout.record_bytes), np.uint8)
            for layer in range(layers):
                values = source.standard_normal((rows, stored)) * scales
                layout.encode(block, layer, values.astype(np.float32))
            yield block

    with PackWriter(path, b"benchmark", 1 << 16) as writer:
        fields = [Field(f"layer.{n}", n, width) for n in range(layers)]
        for n in range(layers if rank else 0):
            basis = source.standard_normal((stored, width)).astype(np.float16) / 32
            number = writer.add_array("basis", partial(np.asarray, basis))[0]
            fields[n] = replace(fields[n], rank=rank, basis=number)
        coder = None
        if frame == "ans":
            encoding, coder = _coded(writer, encoding, next(records(256)))
        blocks, index = writer.add_chunk(
            encoding, 0,
            lambda: encode_blocks(records(), encoding, 0, writer.pack_id, compressor, coder=coder),
        )  # fmt: skip
        order = source.permutation(vocab).astype(np.uint32)
        token_map = writer.add_array("token_map", lambda: order)[0]
        chunk = Chunk(vocab, 0, blocks, index)
        table = Table("tol", vocab, tuple(fields), (chunk,), token_map)
        writer.commit(Header((table,), (encoding,), tuple(writer.sections), "benchmark"))


def _coded(
    writer: PackWriter, encoding: Encoding, sample: np.ndarray
) -> tuple[Encoding, RecordCoder]:
    """Add models of a sample of records to a pack; returns the encoding with them and its coder."""
    plain = CodeModels.of(np.array([[0, 1, 0, 16383, 0]], np.uint16), "models")
    values = np.zeros(sum(field[0].values for field in encoding.fields), np.uint8)
    codes = RecordCoder.of(encoding.fields, values, plain, _LANES, False).codes(sample)
    models, (fitted,) = fit_models(SampledCodes([codes], [1.0]))
    numbers = (
        writer.add_array("code_models", lambda: models)[0],
        writer.add_array("code_classes", lambda: fitted.classes)[0],
    )
    coded = replace(encoding, frame="ans", coder=CoderSettings(*numbers, 0, _LANES))
    checked = CodeModels.of(models, "models")
    coder = RecordCoder.of(encoding.fields, fitted.classes[0], checked, _LANES, False)
    return coded, coder


def _encoding(frame: str, layers: int, stored: int) -> Encoding:
    if frame in ("zstd-runs", "ans"):
        part = Part("step8", stored, step=1 / _CODE_DEVIATION)
        return Encoding("zstd-runs", 1, ((part,),) * layers)
    if frame == "f16":
        return raw_encoding(((Part("f16", stored),),) * layers)
    parts = ((Part("int4", stored, 64),),) * layers
    return raw_encoding(parts) if frame == "raw" else frame_encoding("zstd", parts)


def drop(path: Path) -> None:
    """Drop the file's pages from the page cache, and make sure that they are gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(fd).st_size
        with mmap.mmap(
            fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        ) as m:
            view = (ctypes.c_char * size).from_buffer(m)
            pages = -(-size // mmap.PAGESIZE)
            resident = (ctypes.c_ubyte * pages)()
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mincore(ctypes.byref(view), ctypes.c_size_t(size), resident)
            left = sum(1 for byte in bytes(resident) if byte & 1)
            del view
        if left > pages // 50:
            raise SystemExit(
                f"{left} of {pages} pages stay in the page cache: nothing is cold here"
            )
    finally:
        os.close(fd)
