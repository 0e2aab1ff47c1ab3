"""`tolpack convert`: packs as plain tables, exact or saying what is lost, whole or not at all."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import packs
import pytest
from click.testing import CliRunner
from packs import RECIPES, Layer, Recipe, Run, write
from safetensors import safe_open

import tolpack
from tolpack.cli import main
from tolpack.codecs.encodings import Part
from tolpack.export import float_table
from tolpack.runtime.progress import Reporter

PAGE = Path(__file__).parents[1] / "docs" / "convert.md"
SUFFIXES = (".npy", ".safetensors", ".h5", ".hdf5")


class Listener(Reporter):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        """See `Reporter`."""
        self.lines.append(text)


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def read(path):
    """Return a table with the libraries of its format; bfloat16 widened to float32."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor("table")
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    with h5py.File(path) as file:
        return file["table"][...]


def rows_of(path):
    """Return all rows of a pack, float32, by token id."""
    with tolpack.open(path) as pack:
        return pack.rows(np.arange(pack.vocab_size))


def one_value_pack(path, values, codec="f32"):
    """Write a pack of one layer whose rows are `values`, (tokens, width)."""
    values = np.asarray(values, np.float32)
    recipe = Recipe(values.shape[1], (Layer((Part(codec, values.shape[1]),)),), (Run(len(values)),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "_stored_values", lambda *_: values)
        return write(path, recipe).path


@pytest.fixture(scope="module")
def pack(samples):
    """A pack with everything: chunks, a token map, a basis, means, a dropped layer."""
    return samples["everything"].path


# -- what is exact -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", RECIPES)
def test_float32_is_what_rows_gives(name, suffix, samples, tmp_path):
    """A float32 table equals `pack.rows`, bit for bit, for every kind of pack."""
    expected = rows_of(samples[name].path)
    result = tolpack.convert(samples[name].path, tmp_path / f"t{suffix}")
    found = read(result.path)
    assert found.dtype == np.float32
    assert found.shape == result.shape
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert result.changed_values == 0
    assert os.listdir(tmp_path) == [f"t{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["hot-and-cold", "runs", "long-index", "dropped"])
def test_any_number_of_blocks_gives_the_same_table(name, suffix, samples, tmp_path, monkeypatch):
    """Where only a few rows are held in memory at a time, every row still finds its place."""
    expected = rows_of(samples[name].path)
    for rows in (1, 3):
        monkeypatch.setattr(float_table, "_BLOCK_BYTES", rows * expected[0].nbytes)
        result = tolpack.convert(samples[name].path, tmp_path / f"{rows}{suffix}")
        assert np.array_equal(read(result.path), expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp16_there_and_back_is_identical(dtype, suffix, tmp_path):
    """An FP16 table through `--rank none --bits 16` and back is identical, and once more."""
    table = np.random.default_rng(0).normal(size=(131, 3, 10)).astype(np.float16)
    table[7] = np.float16(6e-8)  # the smallest one
    np.save(tmp_path / "counts.npy", np.random.default_rng(1).integers(0, 99, 131))
    np.save(tmp_path / "0.npy", table)
    source = tmp_path / "0.npy"
    for turn in ("a", "b"):
        settings = {"rank": "none", "bits": 16, "frequencies": tmp_path / "counts.npy"}
        built = tolpack.build(source, tmp_path / f"{turn}.tolpack", **settings).path
        source = tolpack.convert(built, tmp_path / f"{turn}{suffix}", dtype=dtype).path
        found = read(source)
        assert found.dtype == dtype
        assert np.array_equal(found.astype(np.float16).view("u2"), table.view("u2"))


def test_fp16_packs_are_said_to_fit_float16(samples, tmp_path):
    """That half the bytes would do is said where the pack stores float16 as it is, only there."""
    for name in ("f16", "multiplier", "int8"):
        listener = Listener()
        tolpack.convert(samples[name].path, tmp_path / f"{name}.npy", reporter=listener)
        assert ("float16" in " ".join(listener.lines)) == (name == "f16")


def test_same_pack_same_bytes(pack, tmp_path):
    """Converting twice gives the same file."""
    for suffix in SUFFIXES:
        one, two = (tolpack.convert(pack, tmp_path / f"{n}{suffix}").path for n in "ab")
        assert one.read_bytes() == two.read_bytes()


# -- what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "suffix", "nearest"),
    [("float16", ".npy", 0.10003662109375), ("bfloat16", ".safetensors", 0.10009765625)],
)
def test_what_is_rounded_is_counted(dtype, suffix, nearest, tmp_path):
    """Values that a dtype cannot hold are counted, with the largest errors, wherever it is said."""
    value = np.float32(0.10004)
    source = one_value_pack(tmp_path / "p", [[1, value], [0, -value]])
    listener = Listener()
    result = tolpack.convert(source, tmp_path / f"t{suffix}", dtype=dtype, reporter=listener)
    assert read(result.path).tolist() == [[[1, nearest]], [[0, -nearest]]]
    error = abs(nearest - float(value))
    assert result.changed_values == 2
    assert result.max_absolute_error == pytest.approx(error)
    assert result.max_relative_error == pytest.approx(error / float(value))
    assert f"{dtype} cannot hold 2 values exactly (50.00%)" in listener.lines[-1]
    shown = run("convert", source, tmp_path / f"u{suffix}", "--dtype", dtype)
    assert "2 values rounded" in shown.stdout
    assert "cannot hold 2 values" in shown.stderr


def test_values_that_become_zero_are_lost_whole(tmp_path):
    """A value below float16's smallest counts with a relative error of 1."""
    source = one_value_pack(tmp_path / "p", [[1, 1e-9]])
    result = tolpack.convert(source, tmp_path / "t.h5", dtype="float16")
    assert (result.changed_values, result.max_relative_error) == (1, 1.0)


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 65520.0), ("float16", -1e9), ("bfloat16", 3.4e38)]
)
def test_values_beyond_the_range_are_refused(dtype, value, tmp_path):
    """A finite value that would become infinite ends the conversion, by its place and value."""
    source = one_value_pack(tmp_path / "p", [[1, 2], [3, value]])
    with pytest.raises(tolpack.ConfigError, match=r"token 1, layer 0 has the value .*use float32"):
        tolpack.convert(source, tmp_path / "t.safetensors", dtype=dtype)
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_and_infinity_stay(dtype, tmp_path):
    """What is not finite in a pack is neither lost nor counted as rounded."""
    odd = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32)
    source = one_value_pack(tmp_path / "p", [odd.view(np.float32)])
    result = tolpack.convert(source, tmp_path / "t.safetensors", dtype=dtype)
    found = read(result.path).astype(np.float32).ravel()
    assert np.isnan(found).tolist() == [True, True, True, False, False]
    assert found[3:].tolist() == [np.inf, -np.inf]
    assert result.changed_values == 0


def test_exact_narrow_tables_say_so(samples, tmp_path):
    """Where float16 or bfloat16 hold every value, that is said."""
    for name, dtype in (("f16", "float16"), ("bf16", "bfloat16")):
        path, listener = tmp_path / f"{name}.safetensors", Listener()
        tolpack.convert(samples[name].path, path, dtype=dtype, reporter=listener)
        assert listener.lines == [f"{dtype} holds every value of the pack exactly"]
        assert np.array_equal(read(path).astype(np.float32), rows_of(samples[name].path))


# -- what the files say --------------------------------------------------------------------------


def test_metadata(pack, tmp_path):
    """Both safetensors and HDF5 carry the same metadata: as strings, and as typed attributes."""
    tolpack.convert(pack, tmp_path / "t.safetensors")
    tolpack.convert(pack, tmp_path / "t.h5")
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        texts = file.metadata()
        assert list(file.keys()) == ["table"]
    with h5py.File(tmp_path / "t.h5") as file:
        attributes = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in file.attrs.items()}
        assert list(file) == ["table"]
        assert file["table"].chunks == (1, 4, 8)
        assert file.attrs["dropped_layers"].dtype.kind == "i"
    typed = {k: v if isinstance(attributes[k], str) else json.loads(v) for k, v in texts.items()}
    assert typed == attributes
    assert attributes["dropped_layers"] == [1]
    assert (attributes["vocab_size"], attributes["pack_bytes"]) == (12, pack.stat().st_size)
    assert attributes["producer"] == "tests"


def test_safetensors_header_is_as_the_format_asks(pack, tmp_path):
    """Length, JSON padded with spaces, then exactly the values, at a multiple of 8."""
    data = tolpack.convert(pack, tmp_path / "t.safetensors").path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + length]
    assert head.startswith(b"{")
    assert head.rstrip(b" ").endswith(b"}")
    assert (8 + length) % 8 == 0
    assert json.loads(head)["table"]["data_offsets"] == [0, len(data) - 8 - length]


def test_dropped_layers_are_zeros_and_said(pack, tmp_path):
    """That a layer is zeros because it was dropped is said on both streams and in the JSON."""
    result = run("convert", pack, tmp_path / "t.npy")
    assert "dropped layers 1: zeros" in result.stderr
    assert result.stdout.endswith("zeros in dropped layers 1\n")
    assert not np.load(tmp_path / "t.npy")[:, 1].any()
    found = json.loads(run("convert", pack, tmp_path / "u.npy", "--json").stdout)
    assert found == {
        "path": str(tmp_path / "u.npy"), "dtype": "float32", "shape": [12, 4, 8],
        "bytes": (tmp_path / "u.npy").stat().st_size, "dropped_layers": [1], "changed_values": 0,
        "max_relative_error": 0.0, "max_absolute_error": 0.0,
        "tables": [{
            "name": "tols", "dropped_layers": [1], "multiplier": 1.0,
            "tensors": [{"name": "table", "dtype": "float32", "shape": [12, 4, 8]}],
        }],
    }  # fmt: skip


# -- wrong usage, damage, full disks -------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t", "t.tolpack", "t.NPY", ".npy"])
def test_an_unknown_suffix_is_wrong_usage(name, pack, tmp_path):
    """A name that no format has is refused with the names of all, before anything is read."""
    result = run("convert", pack, tmp_path / name)
    assert result.exit_code == 2
    assert ".npy, .safetensors, .h5, .hdf5" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["t.npy", "t.h5"])
def test_bfloat16_is_for_safetensors(name, pack, tmp_path):
    """Formats without bfloat16 refuse it as wrong usage, and say which one has it."""
    result = run("convert", pack, tmp_path / name, "--dtype", "bfloat16")
    assert result.exit_code == 2
    assert "use .safetensors" in result.stderr


def test_unknown_dtypes_are_refused(pack, tmp_path):
    """Other dtypes are wrong usage, and a ConfigError in Python."""
    assert run("convert", pack, tmp_path / "t.npy", "--dtype", "int8").exit_code == 2
    with pytest.raises(tolpack.ConfigError, match="float32, float16, bfloat16"):
        tolpack.convert(pack, tmp_path / "t.npy", dtype="int8")


def test_an_existing_file_is_kept_without_force(pack, tmp_path):
    """An existing table is replaced with --force only."""
    path = tmp_path / "t.npy"
    path.write_bytes(b"precious")
    result = run("convert", pack, path)
    assert (result.exit_code, path.read_bytes()) == (1, b"precious")
    assert "--force" in result.stderr
    assert run("convert", pack, path, "--force").exit_code == 0
    assert np.array_equal(np.load(path), rows_of(pack))


def test_the_pack_itself_is_no_destination(pack, tmp_path):
    """Writing over the pack, by any of its names, is refused even with --force."""
    one, two = tmp_path / "p.npy", tmp_path / "q.npy"
    shutil.copy(pack, one)
    os.link(one, two)
    for path in (one, two):
        result = run("convert", one, path, "--force")
        assert result.exit_code == 1
        assert "is the pack itself" in result.stderr
    assert one.read_bytes() == pack.read_bytes()


def test_folders_are_no_destination(pack, tmp_path):
    """A folder in the way, a missing folder and a file as folder give one line each."""
    (tmp_path / "d.npy").mkdir()
    (tmp_path / "f").write_bytes(b"")
    for name, words in (
        ("d.npy", "is a folder"),
        ("no/t.h5", "no folder"),
        ("f/t.h5", "no folder"),
    ):
        result = run("convert", pack, tmp_path / name)
        assert (result.exit_code, result.stderr.count("Error: ")) == (1, 1)
        assert words in result.stderr


def test_what_is_no_pack_is_a_format_error(memoryllm, tmp_path):
    """A checkpoint in place of the pack is refused, and nothing is left."""
    with pytest.raises(tolpack.FormatError):
        tolpack.convert(memoryllm, tmp_path / "t.npy")
    with pytest.raises(tolpack.FileAccessError):
        tolpack.convert(tmp_path / "absent", tmp_path / "t.npy")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("old", [None, b"precious"])
def test_damage_leaves_nothing_behind(old, suffix, pack, tmp_path, monkeypatch):
    """A damaged pack ends in FormatError, also half way; an older table stays as it was."""
    monkeypatch.setattr(float_table, "_BLOCK_BYTES", 1)
    data = bytearray(pack.read_bytes())
    data[-70] ^= 1
    (tmp_path / "p").write_bytes(data)
    path = tmp_path / f"t{suffix}"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(tolpack.ChecksumError):
        tolpack.convert(tmp_path / "p", path, force=True)
    assert sorted(os.listdir(tmp_path)) == sorted(["p", *([] if old is None else [path.name])])
    assert old is None or path.read_bytes() == old


_FULL = """
import resource, sys, tolpack
old = resource.getrlimit(resource.RLIMIT_FSIZE)
dtype = "stored" if sys.argv[2].endswith(".gguf") else "float32"
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        tolpack.convert(sys.argv[1], sys.argv[2], dtype=dtype)
    except tolpack.FileAccessError as error:
        print(error)
"""


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".gguf"])
def test_a_full_disk_is_an_access_error(suffix, tmp_path):
    """Wherever the disk is full, one line says so, nothing is left, and the process ends well."""
    source = write(tmp_path / "p", Recipe(64, (Layer((Part("f32", 64),)),), (Run(400),))).path
    path = tmp_path / f"t{suffix}"
    dtype = "stored" if suffix == ".gguf" else "float32"
    size = tolpack.convert(source, path, dtype=dtype).bytes
    path.unlink()
    limits = [1, 100, 2000, size // 2, size - 3000, size - 1]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(source), str(path), *map(str, limits)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    assert all("cannot write" in line and "free some space" in line for line in lines)
    assert os.listdir(tmp_path) == ["p"]


def test_a_disk_too_small_is_noticed_before_the_work(pack, tmp_path, monkeypatch):
    """What is missing is said before the first row is read."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("tolpack.container.atomic_write.disk_usage", lambda _: usage)
    with pytest.raises(tolpack.FileAccessError, match="lacks 536 of them"):
        tolpack.convert(pack, tmp_path / "t.npy")
    assert os.listdir(tmp_path) == []


def test_two_conversions_to_one_name_are_refused(pack, tmp_path):
    """The second one is turned away, and the first one goes on."""
    path = tmp_path / "t.npy"

    class Intruder(Reporter):
        def phase(self, *arguments):
            with pytest.raises(tolpack.FileAccessError, match="another process"):
                tolpack.convert(pack, path)
            return super().phase(*arguments)

    tolpack.convert(pack, path, reporter=Intruder())
    assert np.array_equal(np.load(path), rows_of(pack))


# -- what it takes -------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_table(samples, tmp_path):
    """A table of 196 MB takes less than a third of that in memory, in every format."""
    layers = (Layer((Part("int8", 1024, 64),)),) * 2
    large = write(tmp_path / "p", Recipe(1024, layers, (Run(24_000),))).path
    script = (
        "import re, sys, tolpack\n"
        "def peak():  # not ru_maxrss, which begins with the parent's\n"
        "    return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "tolpack.convert(sys.argv[1], sys.argv[3], force=True)\n"
        "before = peak()\n"
        "print(tolpack.convert(sys.argv[2], sys.argv[3], force=True).bytes, peak() - before)\n"
    )
    for suffix in SUFFIXES[:3]:
        args = [samples["long-index"].path, large, tmp_path / f"t{suffix}"]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, args)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        size, grown = map(int, done.stdout.split())
        assert size > 196e6
        assert grown * 1024 < 65e6


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_only_hdf5_needs_a_library(suffix, pack, tmp_path):
    """Without torch, h5py and safetensors all but HDF5 is written, and that says what it needs."""
    script = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'safetensors', 'tokenizers', 'h5py'):\n"
        "    sys.modules[name] = None\n"
        "from tolpack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "convert", str(pack)]
    subprocess.run([*command, str(tmp_path / f"t{suffix}")], check=True)
    assert np.array_equal(read(tmp_path / f"t{suffix}"), rows_of(pack))
    done = subprocess.run(
        [*command, str(tmp_path / "t.h5")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'tolpack[build]'" in done.stderr
    assert os.listdir(tmp_path) == [f"t{suffix}"]


def test_the_examples_of_the_page_run(pack, tmp_path, monkeypatch):
    """What docs/convert.md shows of values runs as it stands, and reads what `pack.rows` gives."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(pack, "model.tolpack")
    text = re.sub(r"(?s)## The model's own .*?\n## ", "", PAGE.read_text(encoding="utf-8"))
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.splitlines():
            result = run(*line.split("  #")[0].removeprefix("$ tolpack ").split())
            assert result.exit_code == 0, result.output
    names = {}
    examples = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    for example in examples:
        exec(example, names)
        assert np.array_equal(names["row"], rows_of(pack)[5])
    assert len(examples) == 3
