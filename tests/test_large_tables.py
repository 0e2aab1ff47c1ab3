"""Tables of 4·10⁸ rows of 264 bytes: what opening and a lookup cost does not grow with them.

The files are sparse: a header, and a few blocks with right checksums.
"""

import os
import struct
import zlib

import numpy as np
import pytest
from packs import from_scratch, memory_limit, plain_header, reference_record

import tolpack
from tolpack.errors import ChecksumError
from tolpack.evaluation.pack_description import describe_pack
from tolpack.pack import open_first_table

ROWS = 400_000_008
PER_BLOCK = 15
RECORD, BLOCK = 264, 3968  # 15 · 264 + 4, rounded up to 64
PACK_ID = 0x1122334455667788
PART = {"codec": "f8e4m3", "values": 256, "group_size": 128}
# Blocks that are written: the first, the last, and one behind 2^31 rows · bytes.
BLOCKS = (0, 12_345_678, ROWS // PER_BLOCK)
NGRAMS = {
    "mixing": "xor", "orders": [2, 3], "sizes": [199_999_991, 200_000_017],
    "offsets": [0, 199_999_991], "multipliers": [76632096046245, 4839876093313, 35959672319349],
    "pad": 2,
}  # fmt: skip


def header_of(tables):
    """Return the header of tables of that many rows, and the bytes of the file."""
    header = plain_header(ROWS, 256, PER_BLOCK, 0)
    header["encodings"][0]["fields"] = [{"parts": [PART]}]
    table, blocks = header["tables"][0], -(-ROWS // PER_BLOCK)
    chunk = table["chunks"][0]
    header["tables"] = [
        {**table, "name": f"layer.{n}", "ngrams": NGRAMS, "chunks": [{**chunk, "blocks": n}]}
        for n in range(tables)
    ]
    length, step = blocks * BLOCK, -(-blocks * BLOCK // 4096) * 4096
    header["sections"] = [
        {"kind": "blocks", "offset_bytes": 4096 + n * step, "length_bytes": length}
        for n in range(tables)
    ]
    return header, 4096 + (tables - 1) * step + length


def content(table, block):
    """Return the records of a block: codes that differ by table and block, and scales."""
    rng = np.random.default_rng([table, block])
    records = rng.integers(0, 120, (PER_BLOCK, RECORD), np.uint8)
    records[:, :8] = rng.random((PER_BLOCK, 2)).astype("<f4").view(np.uint8)
    rows = min(PER_BLOCK, ROWS - block * PER_BLOCK)
    return records[:rows]


def sparse(path, tables):
    """Write a sparse pack; only the blocks of `BLOCKS` are there."""
    header, length = header_of(tables)
    required = 1 << 3 | (1 << 25 if tables > 1 else 0)
    start = from_scratch(header, length, required, pack_id=PACK_ID)
    with open(path, "wb") as file:
        os.ftruncate(file.fileno(), length)
        file.write(start[:4096])
        for table, section in enumerate(header["sections"]):
            for block in BLOCKS:
                payload = content(table, block).tobytes().ljust(BLOCK - 4, b"\0")
                place = struct.pack("<QQ", PACK_ID, block * PER_BLOCK + (table << 48))
                file.seek(section["offset_bytes"] + block * BLOCK)
                file.write(payload + struct.pack("<I", zlib.crc32(place + payload)))
    return path


def expected(table, row):
    """Decode a row value by value."""
    record = content(table, row // PER_BLOCK)[row % PER_BLOCK].tobytes()
    return np.array(reference_record([{"parts": [PART]}], record)[0], np.float32)


@pytest.fixture(scope="module", params=[1, 2])
def path(request, tmp_path_factory):
    """A pack of one such table, and one of two."""
    path = sparse(tmp_path_factory.mktemp("large") / "p.tolpack", request.param)
    yield path
    path.unlink()


def tables_of(path):
    """Return the numbers of the tables."""
    return range(round(path.stat().st_size / (ROWS // PER_BLOCK * BLOCK)))


@pytest.mark.parametrize("io", ["auto", "pread", "mmap", "direct"])
def test_opening_and_lookups_do_not_grow_with_the_table(io, path):
    """Two small reads at most, a block for each row, and memory for these alone."""
    ids = [0, BLOCKS[1] * PER_BLOCK + 7, ROWS - 1]
    for table in tables_of(path):
        with (
            memory_limit(4),
            tolpack.open(path, io=io, table=f"layer.{table}", cache="1MB") as pack,
        ):
            stats = pack.stats()
            assert stats["open_reads"] <= 2
            assert stats["open_bytes"] <= 8192
            assert pack.vocab_size == ROWS
            assert pack.resident_bytes < 4096
            pack.prefetch(ids)
            rows = pack.rows(ids)
            for row, number in zip(rows, ids):
                assert np.array_equal(row[0], expected(table, number))
            assert np.array_equal(pack.rows([ids[1]]), rows[1:2])
            assert pack.extents([ids[1]])[0, 1] == BLOCK
            assert pack.most_frequent(2).tolist() == [0, 1]
            assert pack.slots(ids).tolist() == ids
            with pytest.raises(ChecksumError):  # a block that was never written
                pack.rows([PER_BLOCK])


def test_texts_reach_all_rows(path):
    """Rows of n-grams lie anywhere in the table, and are found without its size mattering."""
    with memory_limit(4), tolpack.open(path, table="layer.0") as pack:
        numbers = pack.row_ids(np.arange(5000))
        assert numbers.shape == (5000, 2)
        assert numbers[:, 0].max() < 199_999_991 <= numbers[:, 1].min()
        assert numbers.max() > 0.99 * ROWS


def test_a_block_of_the_other_table_is_refused(tmp_path):
    """The tables differ in 2^48 places, not in slots."""
    path = sparse(tmp_path / "p.tolpack", 2)
    header, _ = header_of(2)
    first, second = (section["offset_bytes"] for section in header["sections"])
    with open(path, "r+b") as file:
        file.seek(second)
        block = file.read(BLOCK)
        file.seek(first)
        file.write(block)
    with tolpack.open(path, table="layer.1") as pack:
        assert np.array_equal(pack.rows([0])[0, 0], expected(1, 0))
    with tolpack.open(path, table="layer.0") as pack, pytest.raises(ChecksumError):
        pack.rows([0])


def test_descriptions_do_not_grow_with_the_table(path):
    """What `inspect` prints follows from the header."""
    with memory_limit(4), open_first_table(path) as pack:
        found = describe_pack(pack)
    tables = found.get("tables", [found])
    assert [one["vocab_size"] for one in tables] == [ROWS] * len(tables_of(path))
    assert found["bytes"] == path.stat().st_size
