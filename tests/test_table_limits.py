"""What no pack can hold is refused when a table is opened, by every kind of source."""

import json
import sys
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ngram_tables import save_exl3, save_mtplx
from safetensors.torch import save_file

import tolpack
from tolpack.cli import main
from tolpack.codecs.encodings import Part
from tolpack.container import preamble
from tolpack.errors import CheckpointError
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import SourceField
from tolpack.sources.table_limits import check_limits, table_name

sys.path.insert(0, str(Path(__file__).parents[1] / "formats" / "v1"))

from decode import Pack as Decoder

FP8 = torch.float8_e4m3fn
FEW = 4096


def write(folder, tensors, config=None):
    """Write a folder of one file; returns it."""
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return folder


def fields(count=1, **changed):
    """Return fields of 8 values with something changed."""
    return [
        SourceField(**{"name": f"layer.{n}", "layer": 0, "width": 8, "dtype": "float32"} | changed)
        for n in range(count)
    ]


def test_tables_at_the_limits_are_taken():
    """Each limit is the last value that a pack can hold."""
    full = fields(256, width=preamble.MAX_WIDTH, layer=preamble.MAX_FIELDS - 1)
    check_limits("t" * 128, preamble.MAX_ROWS, full)
    check_limits(" ~", 1, fields(preamble.MAX_FIELDS))
    check_limits("t", 1, fields(codes=Part("f8e4m3", 8, 2)))


@pytest.mark.parametrize(
    ("name", "rows", "changed", "message"),
    [
        ("", 1, fields(), "the name '' of a table or field has 0 characters, expected 1 … 128"),
        ("t" * 129, 1, fields(), "has 129 characters, expected 1 … 128"),
        ("é", 1, fields(), "printable ASCII: rename"),
        ("t", 1, fields(name="a\x7f"), r"'a\\x7f' of a table or field has 2 characters"),
        ("t", 0, fields(), "has 0 rows, expected 1 … 281,474,976,710,656"),
        ("t", 2**48 + 1, fields(), "divide it, as a pack holds no more"),
        ("t", 1, fields(FEW + 1), "4,097 fields, expected at most 4,096: divide it"),
        ("t", 1, fields(layer=FEW), "'layer.0' of table 't' is read by layer 4,096, expected 0 …"),
        ("t", 1, fields(layer=-1), "read by layer -1, expected 0 … 4,095.*: correct the layers"),
        ("t", 1, fields(width=0), "has 0 values in a row, expected 1 … 65,536"),
        ("t", 1, fields(width=65537), "has 65,537 values in a row.*: cut rows into more layers"),
        ("t", 1, fields(257, width=65536), "16,842,752 values in a row, expected at most 16,777,2"),
        ("t", 1, fields(codes=Part("f8e4m3", 8, 1)), "each 1 of 8 values, expected an even number"),
        (
            "t",
            1,
            fields(width=9, codes=Part("f8e4m3", 9, 3)),
            "each 3 of 9 values.*: convert the tensor to",
        ),
    ],
)
def test_tables_beyond_a_limit_are_refused(name, rows, changed, message):
    """The error names the field, the value and the limit, and says what to do."""
    with pytest.raises(CheckpointError, match=message):
        check_limits(name, rows, changed)


def stem(folder):
    table = {"stem_embeddings.0.weight": torch.ones(3, 8)}
    return write(folder, table, {"stem_layers": [5000]}), {}


def mtplx(folder):
    save_mtplx(folder / "ngram-table.safetensors", 4, 32)
    (folder / "config.json").write_text('{"ple_layer_ids": [4097]}', encoding="utf-8")
    return folder / "ngram-table.safetensors", {}


def exl3(folder):
    key = "model.layers.9999.ngram_embedding"
    save_exl3(folder / "ngram_embedding.safetensors", 4, key=key)
    return folder / "ngram_embedding.safetensors", {}


def ple(folder):
    tensors = {"per_layer_token_embd.weight": (np.ones((3, 8), np.float32), "F32")}
    return gguf_files.write(folder / "m.gguf", tensors, "q", {"q.ple.layers": [2**40]}), {}


def engram(folder):
    tensors = {"blk.5000.engram_embd.weight": (np.ones((3, 8), np.float32), "F32")}
    return gguf_files.write(folder / "m.gguf", tensors), {}


def wide(folder):
    return write(folder, {"e": torch.ones(2, 65537)}), {"tensor": "e"}


def wide_array(folder):
    np.save(folder / "t.npy", np.ones((2, 65537), np.float16))
    return folder / "t.npy", {"layers": 1}


def long_row(folder):
    np.lib.format.open_memmap(folder / "t.npy", "w+", np.float16, (1, 257, 65536))  # sparse
    return folder / "t.npy", {}


def many_layers(folder):
    return write(folder, {"e": torch.ones(2, 5000, 1)}), {"tensor": "e"}


def scale_each(folder):
    tensors = {"e.weight": torch.ones(3, 8).to(FP8), "e.weight_scale": torch.ones(3, 8)}
    return write(folder, tensors), {"tensor": "e.weight"}


def odd_groups(folder):
    tensors = {"e.weight": torch.ones(3, 9).to(FP8), "e.weight_scale": torch.ones(3, 3)}
    return write(folder, tensors), {"tensor": "e.weight"}


SOURCES = {
    stem: "read by layer 5,000", mtplx: "read by layer 4,096", exl3: "read by layer 9,999",
    ple: "read by layer 1,099,511,627,776", engram: "read by layer 5,000",
    wide: "has 65,537 values in a row", wide_array: "has 65,537 values in a row",
    long_row: "16,842,752 values", many_layers: "5,000 layers, expected at most 4,096",
    scale_each: "for each 1 of 8 values", odd_groups: "for each 3 of 9 values",
}  # fmt: skip


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_every_source_checks_what_a_pack_holds(tmp_path, make):
    """A table that no pack can hold is an error where it is opened."""
    path, options = make(tmp_path)
    with pytest.raises(CheckpointError, match=SOURCES[make]):
        open_tables(path, **options)


@pytest.mark.parametrize("command", ["inspect", "plan", "build"])
def test_commands_refuse_before_any_work(tmp_path, command):
    """inspect, plan and build end with the same one line, and write nothing."""
    path, _ = stem(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(main, [command, str(path)])
    assert done.exit_code == 1
    assert "'layer.5000' of table 'stem_embeddings' is read by layer 5,000" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("width", [1, 9, 33])
def test_one_scale_for_an_odd_row_is_kept(tmp_path, width, scale):
    """A row of an odd number of fp8 values with one scale is a group that ends early."""
    codes = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).to(FP8)
    scales = torch.exp2(torch.arange(-2, 3.0))[:, None].to(scale)
    path = write(tmp_path, {"e.weight": codes, "e.weight_scale": scales})
    tolpack.build(path, tmp_path / "p.tolpack", bits="lossless", tensor="e.weight")
    expected = (codes.float() * scales.float()).numpy()
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        assert np.array_equal(pack.rows(range(5))[:, 0], expected)
    slow = Decoder((tmp_path / "p.tolpack").read_bytes())
    assert [slow.row(n)[0].tolist() for n in range(5)] == expected.tolist()


def test_names_are_those_that_a_pack_can_hold(tmp_path):
    """A long name keeps its end, and what is not printable ASCII becomes ``?``; such packs open."""
    assert table_name("a" * 200 + "é\n") == "a" * 126 + "??"
    name = "blk.é." + "x" * 150
    tensors = {name: (np.ones((3, 8), np.float32), "F32")}
    path = gguf_files.write(tmp_path / "m.gguf", tensors)
    tolpack.build(path, tmp_path / "p.tolpack", bits="lossless", tensor=name)
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        assert pack.tables == ("x" * 128,)


def test_tables_of_two_names_have_two_ids(tmp_path):
    """Equal content under two names gives two packs with two ids, whichever source they are of."""
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    path = write(tmp_path, {"a": rows, "b": rows.clone()})
    prints = {open_tables(path, tensor=name)[0].fingerprint() for name in "ab"}
    stored = {name: (rows.numpy(), "F32") for name in "ab"}
    path = gguf_files.write(tmp_path / "m.gguf", stored)
    prints |= {open_tables(path, tensor=name)[0].fingerprint() for name in "ab"}
    assert len(prints) == 4
