"""What a small file claims costs neither memory nor time: each command in a process of its own."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from packs import Layer, Recipe, Run, from_scratch, int8, plain_header, split, step8, write

import tolpack
from tolpack.errors import ConfigError
from tolpack.reading.verification import _ranges

ROOT = Path(__file__).parents[1]
# Runs a command line, and prints by how many bytes memory grew at most since everything is loaded.
CHILD = """
import sys
import click, json, tqdm
import tolpack.evaluation.lookup_benchmark, tolpack.evaluation.diff
import tolpack.export.convert, tolpack.evaluation.pack_description
from tolpack.cli import main
def peak():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(fields["VmHWM"].split()[0])
before = peak()
code = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(code, peak() - before, file=sys.stderr)
"""


def run(*arguments, timeout=60):
    """Run a command; return its exit code, what it printed, and the growth of its memory."""
    # Without numba, which takes 100 MB whatever the file is.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOLPACK_KERNELS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
    *lines, last = done.stderr.splitlines()
    assert not any("Traceback" in line or "Warning" in line for line in lines), done.stderr
    code, growth = last.split()
    return int(code), done.stdout, int(growth)


def bounded(path, growth):
    """Whether memory grew by less than four times the file's size and 64 MB."""
    return growth < 4 * path.stat().st_size + (64 << 20)


def many_layers_and_chunks(path, fields, chunks):
    """Write a legal pack whose header is what takes most of it; returns it."""
    header = plain_header(rows=chunks, width=1, per_block=1, length=64)
    field, table = header["tables"][0]["fields"][0], header["tables"][0]
    table["fields"] = [{**field, "layer": n, "name": str(n)} for n in range(fields)]
    header["encodings"][0]["fields"] *= fields
    block = -(-(4 * fields + 4) // 64) * 64
    table["chunks"] = [{"rows": 1, "encoding": 0, "blocks": n} for n in range(chunks)]
    header["sections"] = [{"kind": "blocks", "offset_bytes": 10**9, "length_bytes": block}] * chunks
    start = -(-(64 + len(json.dumps(header, separators=(",", ":")))) // 4096) * 4096
    step = -(-block // 4096) * 4096
    header["sections"] = [
        {"kind": "blocks", "offset_bytes": start + step * n, "length_bytes": block}
        for n in range(chunks)
    ]
    length = start + step * (chunks - 1) + block
    text = json.dumps(header, separators=(",", ":"))
    assert len(text) < 2**20
    data = from_scratch(header, length, 1)
    data = data + bytes(length - len(data))
    # The first section must follow the header at once.
    room = start - 64 - len(text)
    assert 0 <= room < 8192
    path.write_bytes(_padded(data, room, start))
    return path


def _padded(data, room, start):
    """Lengthen the header by spaces up to the first section, checksums made again."""
    from packs import forge

    text = data[64 : 64 + split(data)[0]["header_length"]]
    rest = data[start:]
    body = text + b" " * room
    head = forge(data[: 64 + len(text)], text=body, file_length=start + len(rest))
    return head + rest


def test_inspect_ends_soon_however_many_layers_and_chunks(tmp_path):
    """Two thousand of either: what is summed up is linear in the header."""
    path = many_layers_and_chunks(tmp_path / "a.tolpack", 1500, 1500)
    code, out, growth = run("inspect", path, "--json", timeout=30)
    assert code == 0
    assert len(json.loads(out)["layers"]) == len(json.loads(out)["chunks"]) == 1500
    assert bounded(path, growth)


def claims_rows(path, rows):
    """Write a pack of `rows` rows of one byte, zeros, in frames of 4,096; a header and an index."""
    frame = zstandard.ZstdCompressor().compress(bytes(4096))
    recipe = Recipe(1, (Layer((step8(1, 1.0),)),), (Run(8, "zstd", 4096),))
    header = split(write(path, recipe).data)[1]
    blocks, pack_id = rows // 4096, 7
    stored = b"".join(
        frame + struct.pack("<I", zlib.crc32(struct.pack("<QQ", pack_id, 4096 * n) + frame))
        for n in range(blocks)
    )
    size, index = len(frame) + 4, b""
    for first in range(0, blocks, 512):
        count = min(512, blocks - first)
        body = struct.pack(f"<Q{count}I", first * size, *[size] * count)
        place = struct.pack("<QQ", pack_id, 2**63 + 4096 * first)
        index += body + struct.pack("<I", zlib.crc32(place + body))
    at = 4096 + -(-len(stored) // 4096) * 4096
    header["tables"][0]["rows"] = header["tables"][0]["chunks"][0]["rows"] = rows
    header["sections"] = [
        {"kind": "blocks", "offset_bytes": 4096, "length_bytes": len(stored)},
        {"kind": "index", "offset_bytes": at, "length_bytes": len(index)},
    ]
    data = from_scratch(header, 4096, 1 << 6 | 1 << 8, pack_id=pack_id)
    head = from_scratch(header, at + len(index), 1 << 6 | 1 << 8, pack_id=pack_id)[: len(data)]
    path.write_bytes(head + stored.ljust(at - 4096, b"\0") + index)
    return path


@pytest.fixture(scope="module")
def claiming(tmp_path_factory):
    """A file of 0.7 MB that claims a hundred million rows: 800 MB of their ids."""
    return claims_rows(tmp_path_factory.mktemp("claims") / "claims.tolpack", 25_000 * 4096)


def test_the_claiming_pack_is_a_right_one(tmp_path):
    """It is refused by nothing: what it costs is what reading it costs."""
    path = claims_rows(tmp_path / "a.tolpack", 1024 * 4096)
    with tolpack.open(path) as pack:
        assert pack.verify() == []
        assert pack.most_frequent(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "command", [["inspect"], ["bench", "--seconds=0.01"], ["rows", "5"], ["rows", "99999999"]]
)
def test_rows_that_are_claimed_take_no_memory(command, claiming):
    """The order of a table without a token map is that of its ids."""
    name, *rest = command
    arguments = [*rest, claiming] if name == "bench" else [claiming, *rest]
    code, _, growth = run(name, *arguments)
    assert code == 0
    assert bounded(claiming, growth)


WALK = """
import sys, tolpack, numpy as np
from tolpack.evaluation.diff import _Reference, _paired_rows
from tolpack.export.convert import write_table
from tolpack.export.float_table import FloatTable
path, what = sys.argv[1:]
def peak():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(fields["VmHWM"].split()[0])
with tolpack.open(path) as pack:
    pack.rows([0])
    before = peak()
    if what == "most":
        assert pack.most_frequent(10).tolist() == list(range(10))
    elif what == "order":
        assert pack.stored_order().tokens(10**8, 10**8 + 2).tolist() == [10**8, 10**8 + 1]
    else:
        walk = iter(_paired_rows(path, pack, _Reference((), frozenset(), lambda ids, out: None)))
        next(walk)
        class Enough(Exception): pass
        class File:
            def write_rows(self, name, ids, rows): raise Enough
        values = FloatTable(pack.container.table, "float32", "table")
        try:
            write_table(pack, values, File(), lambda n: None)
        except Enough:
            pass
    print(peak() - before)
"""


@pytest.mark.parametrize("what", ["most", "order", "walk"])
def test_walks_through_a_table_are_made_piece_by_piece(what, claiming):
    """The first tokens of it, its order, and what `diff` and `convert` begin with."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOLPACK_KERNELS": "off"}
    done = subprocess.run([sys.executable, "-c", WALK, str(claiming), what], capture_output=True,
                          text=True, env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert bounded(claiming, int(done.stdout))


def test_bench_refuses_rows_that_a_header_makes_too_wide(tmp_path):
    """Dropped layers take nothing in the file, and all their width in a row."""
    dropped = tuple(Layer(dropped=True) for _ in range(63))
    recipe = Recipe(65536, (Layer((int8(65536, 65536),)), *dropped), (Run(600, "zstd", 8),),
                    header_room=65536 - 64)  # fmt: skip
    path = write(
        tmp_path / "wide.tolpack", recipe, compress=zstandard.ZstdCompressor().compress
    ).path
    from tolpack.evaluation.lookup_benchmark import benchmark_lookups
    from tolpack.runtime.progress import Reporter

    with pytest.raises(ConfigError, match="--rows is 512.*give --rows [1-9][0-9]* or fewer"):
        benchmark_lookups(path, 512, 0.01, Reporter())


# ---- token maps ----------------------------------------------------------------------------------

MAP = """
import sys, numpy as np, tolpack
path = sys.argv[1]
def peak():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(fields["VmHWM"].split()[0])
with tolpack.open(path, io=sys.argv[2]) as pack:
    before = peak()
    pack.rows([5])
    print(peak() - before)
"""


@pytest.mark.parametrize("io", ["auto", "direct"])
def test_a_token_map_takes_little_more_than_itself(io, tmp_path):
    """It is kept as it is stored, and checked piece by piece: 1.4 times its bytes at most."""
    rows = 8_000_000
    recipe = Recipe(1, (Layer((step8(1, 1.0),)),), (Run(rows, "raw", 4096),), shuffled=True)
    path = write(tmp_path / "a.tolpack", recipe).path
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MAP, str(path), io], capture_output=True,
                          text=True, env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.4 * 4 * rows + (16 << 20)


def test_the_order_of_a_map_is_its_inverse(samples):
    """The most frequent tokens, any part of the order, and slots of ids agree."""
    with tolpack.open(samples["long-index"].path) as pack:
        expected = np.argsort(samples["long-index"].slots)
        rows = pack.vocab_size
        for count in (0, 1, 7, rows):
            assert np.array_equal(pack.most_frequent(count), expected[:count])
        assert np.array_equal(pack.stored_order().tokens(3, 900), expected[3:900])
        assert np.array_equal(pack.stored_order().sorted_tokens(3, 9), np.sort(expected[3:9]))
        assert np.array_equal(pack.slots(expected), np.arange(rows))


# ---- damage --------------------------------------------------------------------------------------


def test_verify_tells_a_thousand_places_and_counts_the_others(tmp_path):
    """Every second block is damaged: the list is bounded, and so are the runs of each entry."""
    recipe = Recipe(4, (Layer((step8(4, 1.0),)),), (Run(8000),), shuffled=True)
    sample = write(tmp_path / "a.tolpack", recipe)
    data = bytearray(sample.data)
    start = sample.header.sections[1].offset_bytes
    for block in range(0, 8000, 2):
        data[start + 64 * block] ^= 1
    sample.path.write_bytes(data)
    with tolpack.open(sample.path) as pack:
        damages = pack.verify()
    assert len(damages) == 1001
    assert [one.places for one in damages[:-1]] == [1] * 1000
    last = damages[-1]
    assert (last.places, last.code, last.first_slot, last.rows) == (3000, "more", 2000, 5999)
    token = int(np.flatnonzero(sample.slots == 4)[0])
    assert damages[2].token_ranges == ((token, token),)
    code, out, _ = run("verify", sample.path)
    lines = out.splitlines()
    assert code == 1
    assert len(lines) == 52
    assert lines[-2].startswith("… and 3950 more")
    assert lines[-1].endswith("4,000 damaged places")
    code, out, _ = run("verify", sample.path, "--json")
    assert sum(one["places"] for one in json.loads(out)["damages"]) == 4000


def test_verify_of_many_damaged_places_ends_soon(tmp_path):
    """Its time grows with the file, not with the places times the token map."""
    rows = 200_000
    recipe = Recipe(1, (Layer((step8(1, 1.0),)),), (Run(rows),), shuffled=True)
    sample = write(tmp_path / "a.tolpack", recipe)
    data = np.frombuffer(sample.data, np.uint8).copy()
    start = sample.header.sections[1].offset_bytes
    data[start : start + 64 * rows : 128] ^= 1
    sample.path.write_bytes(data)
    code, out, growth = run("verify", sample.path, timeout=120)
    assert (code, out.splitlines()[-1].split(": ")[1]) == (1, "100,000 damaged places")
    assert bounded(sample.path, growth)


@pytest.mark.parametrize("ids", [[3], [0, 1, 2, 9], list(range(0, 900, 3)), list(range(2_100_000))])
def test_runs_of_ids_are_told_and_counted(ids):
    """The first hundred runs, and how many there are besides."""
    found, more = _ranges(np.array(ids, np.uint32))
    cuts = np.flatnonzero(np.diff(ids) != 1)
    firsts, lasts = np.append(0, cuts + 1), np.append(cuts, len(ids) - 1)
    expected = [(ids[a], ids[b]) for a, b in zip(firsts, lasts)]
    assert list(found) == expected[:100]
    assert more == max(0, len(expected) - 100)


def test_verify_warns_of_no_overflow(tmp_path):
    """StepProgress that make products infinite are not damage, and nothing for the terminal."""
    recipe = Recipe(4, (Layer((step8(4, 3e38),)),), (Run(5),), magnitude=1e39)
    with np.errstate(over="ignore"):
        path = write(tmp_path / "a.tolpack", recipe).path
    code, out, _ = run("verify", path)
    assert (code, out.splitlines()) == (0, [f"{path}: ok"])
    assert run("inspect", path)[0] == 0
