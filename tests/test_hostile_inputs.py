"""Damaged and hostile tables, checkpoints and settings end in tolpack's own errors, and soon."""

import io
import json
import pickle
import resource
import subprocess
import sys
import zipfile

import h5py
import models
import numpy as np
import pytest
import torch
from safetensors.torch import save

from tolpack.errors import CheckpointError, ConfigError, TolpackError
from tolpack.sources.arrays.npy import read_counts, read_npy
from tolpack.sources.checkpoint.config import parse_config, read_config
from tolpack.sources.checkpoint.key_map import read_key_map
from tolpack.sources.checkpoint.safetensors_file import SafetensorsFile
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.checkpoint.torch_file import TorchFile
from tolpack.sources.open_source import open_source

CONFIG = models.make_config()

# -- .npy ----------------------------------------------------------------------------------------


def npy(header, values=b"\0" * 48, version=1):
    """Put a ``.npy`` together."""
    data = header if isinstance(header, bytes) else header.encode()
    length = len(data).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + data + values


def header(descr="'<f4'", order="False", shape="(3, 4)"):
    """Return a header as numpy writes it."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


HEADERS = {
    "unbalanced": "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4",  # TokenError
    "an unhashable key": "{[]: 1}",  # TypeError
    "a huge size": header(shape="(99999999999999999999999999,)"),  # OverflowError
    "a huge size and none": header(shape="(9223372036854775807, 0)"),
    "a negative size": header(shape="(-3, 4)"),
    "a size with a point": header(shape="(3.0, 4)"),
    "nested brackets": "[" * 5000,
    "nested signs": "-" * 9000 + "1",
    "no dictionary": "__import__('os')",
    "a long header": header() + " " * 60000,
    "no shape": "{'descr': '<f4', 'fortran_order': False}",
    "a field twice": "{'descr': '<f4', 'descr': '<f4', 'shape': (3, 4), }",
    "another field": header().replace("shape", "shade"),
    "an order that is none": header(order="3"),
    "NUL": "{'descr': '<f4\0', 'fortran_order': False, 'shape': (3, 4), }",
    "other bytes": b"\xff\xfe\x80" * 20,
    "an invalid escape": r"{'\N{': 1}",
    "more values than there are": header(shape="(3, 5)"),
    "fewer values than there are": header(shape="(3, 3)"),
    "terabytes": header(shape="(1099511627776, 4)"),
    "big-endian numbers": header("'>f4'"),
    "objects": header("'|O'"),
    "a structure": header("[('a', '<f4')]", shape="(12,)"),
    "text": header("'<U1'", shape="(12,)"),
    "a date": header("'<M8[s]'", shape="(6,)"),
    "a subarray": header("('<f4', (4,))", shape="(3,)"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_npy_are_refused(tmp_path, name):
    """A header that numpy stumbles over, or that tells no plain array of the file's size."""
    (tmp_path / "a.npy").write_bytes(npy(HEADERS[name], version=2 if "long" in name else 1))
    for mapped in (False, True):
        with pytest.raises(ConfigError, match=r"cannot read array .*a\.npy: ."):
            read_npy(tmp_path / "a.npy", "array", mapped=mapped)
    with pytest.raises(TolpackError):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [0, 4, 255])
def test_other_versions_of_npy_are_refused(tmp_path, version):
    """Versions that numpy does not write are not guessed at."""
    (tmp_path / "a.npy").write_bytes(npy(header(), version=version))
    with pytest.raises(ConfigError, match="version"):
        read_npy(tmp_path / "a.npy", "array")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize(
    "array",
    [np.arange(12, dtype="<f4").reshape(3, 4), np.arange(12, dtype="<f2").reshape(3, 2, 2),
     np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros((0, 3)), np.array(7),
     np.arange(5, dtype=np.uint8), np.ones(3, bool)],
)  # fmt: skip
def test_what_numpy_writes_is_read(tmp_path, array, version):
    """Every version, order and plain dtype comes back as it was, read or mapped."""
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    for mapped in (False, True):
        found = read_npy(tmp_path / "a.npy", "array", mapped=mapped)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(found, array)


def test_counts_of_python_2_are_read(tmp_path):
    """Sizes with the L of old numbers are sizes."""
    (tmp_path / "a.npy").write_bytes(npy(header("'<i8'", shape="(6L,)")))
    assert read_counts(tmp_path / "a.npy", 6).tolist() == [0] * 6


# -- HDF5 ----------------------------------------------------------------------------------------


TABLE = np.arange(24, dtype=np.float32).reshape(3, 8)


def external(file):
    """Values in another file."""
    file.create_dataset("t", (3, 8), "f4", external=[("/etc/passwd", 0, 96)])


def virtual(file):
    """Values of another file's dataset."""
    layout = h5py.VirtualLayout((3, 8), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "t", (3, 8))
    file.create_virtual_dataset("t", layout)


def linked(file):
    """A dataset of another file beside an own one."""
    file["t"], file["x"] = TABLE, h5py.ExternalLink("other.h5", "/t")


def huge(file):
    """Terabytes that were never written."""
    file.create_dataset("t", (2**40, 8), "f4", chunks=(1, 8))


def one_large_chunk(file):
    """A chunk that is 900 times larger than the file."""
    file.create_dataset("t", (2**22, 16), "f4", chunks=(2**22, 16), compression="gzip")[:] = 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [(external, "in other files"), (virtual, "in other files"), (linked, "another file"),
     (huge, "no compression explains"), (one_large_chunk, "cannot read table")],
)  # fmt: skip
def test_hdf5_with_values_elsewhere_or_too_many_is_refused(tmp_path, make, reason):
    """No other file is read, and no memory taken for what a small file declares."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["t"] = TABLE
    with pytest.raises(CheckpointError, match=reason):
        open_source(tmp_path / "a.h5", layers=2).field_rows(0)(np.arange(3))


def test_hdf5_links_within_the_file_are_passed_by(tmp_path):
    """A table with soft links, hard links and a group within itself is still the only dataset."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/t"] = TABLE
        file["soft"], file["hard"] = h5py.SoftLink("/g/t"), file["g/t"]
        file["g/loop"] = file["/"]
        file["g/dangling"] = h5py.SoftLink("/nowhere")
    rows = open_source(tmp_path / "a.h5", layers=2).field_rows(1)(np.array([2, 0]))
    np.testing.assert_array_equal(rows, TABLE[[2, 0], 4:])


def test_damaged_hdf5_gives_own_errors(tmp_path):
    """Cut, overwritten and foreign bytes, whether found at opening or as rows are read."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("t", data=TABLE, chunks=(1, 8), compression="gzip", fletcher32=True)
    whole, random = (tmp_path / "a.h5").read_bytes(), np.random.default_rng(0)
    cases = [b"", b"\x89HDF\r\n\x1a\n", whole[:100], whole[: len(whole) // 2], bytes(1000)]
    for _ in range(20):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 30):
            damaged[at] = random.integers(256)
        cases.append(bytes(damaged))
    refused = 0
    for case in cases:
        (tmp_path / "a.h5").write_bytes(case)
        try:
            open_source(tmp_path / "a.h5", layers=2).field_rows(1)(np.arange(3))
        except CheckpointError:
            refused += 1
    assert refused >= 10


# -- config, index, key map ----------------------------------------------------------------------


def nested(depth):
    """Return a list in a list, so many times."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def shared(depth):
    """Return lists that hold one another 2**depth times."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "change",
    [{"head_dim": [0] * 9, "num_attention_heads": 2**31 - 1}, {"rope_scaling": nested(5000)},
     {"rope_scaling": torch.ones(2)}, {"head_dim": torch.ones(3)}, {"rope_scaling": shared(60)},
     {"model_type": torch.ones(2)}, {"rope_parameters": {"rope_type": shared(60)}},
     {"norm": {1, 2}}, {"sliding_window": [1] * 10**6}],
)  # fmt: skip
def test_config_of_other_values_is_refused_or_unsupported(change):
    """Lists, tensors and lists in lists, as a .pt may hold them, in place of any setting."""
    try:
        config = parse_config(CONFIG | change)
    except CheckpointError as error:
        assert len(str(error)) < 1000
    else:
        assert next(iter(change)) in " ".join(config.unsupported)
        assert len(" ".join(config.unsupported)) < 1000


@pytest.mark.parametrize(
    "data",
    [b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"a": [' + b"[]," * 600_000 + b"1]}",
     b" " * (3 << 20), b'{"vocab_size": ' + b"9" * 4000 + b"}"],
    ids=["deep", "many values", "long", "digits"],
)  # fmt: skip
def test_config_files_are_bounded(tmp_path, data):
    """Depth, size, digits and numbers of values have limits that no config comes near."""
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"config|vocab_size"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "index",
    [{"weight_map": {"a": "x" * 5000}}, {"weight_map": {"a": "\0"}}, {"weight_map": {"a": ""}},
     {"weight_map": {"a": "\ud800"}}, {"weight_map": {"a": ["m.safetensors"]}}, {"weight_map": 3},
     {"weight_map": {"a": "../m.safetensors"}}, [1], {"weight_map": {"a": "/etc/passwd"}}],
)  # fmt: skip
def test_indexes_that_name_no_shards_are_refused(tmp_path, index):
    """Names too long for a file, of other types, or outside the folder."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match="index"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a." * 100_000 + "b = 1", "a = " + "[" * 5000,
     '[tensors]\n"' + "*a" * 30 + '" = "norm.weight"',
     "[tensors]\n" + "\n".join(f'"a{n}" = "norm.weight"' for n in range(3000)), " " * 10**6],
    ids=["dotted", "nested", "stars", "rules", "long"],
)  # fmt: skip
def test_key_maps_are_bounded(tmp_path, text):
    """A map that would take minutes to be read or matched is refused by its name."""
    (tmp_path / "map.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"map\.toml"):
        read_key_map(tmp_path / "map.toml")


# -- .safetensors --------------------------------------------------------------------------------


def entry(begin=0, end=8, shape="[2]", dtype='"F32"'):
    """Return a tensor's entry of a header."""
    return f'{{"dtype": {dtype}, "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


def safetensors(header, values=bytes(16), length=None):
    """Put a ``.safetensors`` together."""
    data = header.encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data + values


WHOLE = entry(end=16, shape="[4]")
SAFETENSORS = {
    "a name twice": safetensors(f'{{"a": {entry()}, "a": {entry(8, 16)}}}'),
    "a name twice, escaped": safetensors(f'{{"a": {entry()}, "\\u0061": {entry(8, 16)}}}'),
    "a field twice": safetensors(f'{{"a": {{"shape": [9], {WHOLE[1:]}}}'),
    "metadata twice": safetensors(f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {WHOLE}}}'),
    "another field": safetensors(f'{{"a": {{"x": "1", {WHOLE[1:]}}}'),
    "a long name": safetensors(f'{{"{"a" * 600}": {WHOLE}}}'),
    "no object": safetensors("[]"),
    "nothing": b"",
    "a length past the end": safetensors("{}", length=2**40),
    "a cut header": safetensors(f'{{"a": {entry()}'),
    "trailing text": safetensors(f'{{"a": {WHOLE}}} x'),
    # What follows is the library's to refuse.
    "a shape unlike its bytes": safetensors(f'{{"a": {entry(end=16, shape="[3]")}}}'),
    "a hole": safetensors(f'{{"a": {entry(0, 4, "[1]")}, "b": {entry(8, 16)}}}'),
    "an overlap": safetensors(f'{{"a": {entry(0, 12, "[3]")}, "b": {entry(8, 16)}}}'),
    "an end past the file": safetensors(f'{{"a": {entry(end=32, shape="[8]")}}}'),
    "trailing values": safetensors(f'{{"a": {entry()}}}'),
    "a wrapped shape": safetensors(f'{{"a": {entry(end=16, shape="[4611686018427387905, 4]")}}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_malformed_safetensors_are_refused(tmp_path, name):
    """A header with more than one reading, or with offsets that do not fit, has none."""
    (tmp_path / "a.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        SafetensorsFile(tmp_path / "a.safetensors").infos()


def test_safetensors_with_metadata_and_spaces_are_read(tmp_path):
    """Metadata, white space and escapes in names are part of the format."""
    tensor = entry(end=16, shape="[ 2 , 2 ]")
    text = f'{{"__metadata__" : {{ "a\\n" :"1", "b": "2"}},\n "t\\u00e9" : {tensor} }}   '
    (tmp_path / "a.safetensors").write_bytes(
        safetensors(text, np.arange(4.0, dtype="f4").tobytes())
    )
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.load("té").tolist() == [[0, 1], [2, 3]]


def test_a_tensor_without_values_in_a_huge_shape_is_an_error(tmp_path):
    """Where the library's own arithmetic overflows, the error is tolpack's."""
    shape = "[4611686018427387904, 4611686018427387904, 0]"
    (tmp_path / "a.safetensors").write_bytes(safetensors(f'{{"a": {entry(0, 0, shape)}}}', b""))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        file = SafetensorsFile(tmp_path / "a.safetensors")
        file.load("a")


# -- .pt -----------------------------------------------------------------------------------------


def rewritten(data, change, method=zipfile.ZIP_STORED):
    """Return an archive with entries changed: ``change(name, content)`` gives the new content."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))
    return out.getvalue()


@pytest.fixture
def saved(tmp_path):
    """Bytes of a state dict of two tensors, in the format of today and in the old one."""
    found = []
    for modern in (True, False):
        state = {"a": torch.arange(8.0), "b": torch.ones(8)}
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
        found.append((tmp_path / "a.pt").read_bytes())
    return found


def test_torch_archives_that_torch_misreads_are_refused(tmp_path, saved):
    """Compressed entries, entries shorter than their tensors, and entries that stand twice."""
    modern, _ = saved
    doubled = io.BytesIO(modern)
    with pytest.warns(UserWarning), zipfile.ZipFile(doubled, "a") as archive:
        archive.writestr(archive.namelist()[0], b"x")
    shifted = bytearray(modern)
    at = shifted.index(b"data/1") - 34  # the entry's header: its extra field, 4 bytes shorter
    where = modern.index(b"PK\3\4", at - 40)
    shifted[where + 28] -= 4
    cases = {
        "compressed": rewritten(modern, lambda name, data: data, zipfile.ZIP_DEFLATED),
        "short": rewritten(modern, lambda name, data: data[:4] if name.endswith("/0") else data),
        "doubled": doubled.getvalue(),
        "shifted": bytes(shifted),
    }
    for name, data in cases.items():
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a\.pt"):
            pytest.fail(f"{name}: {TorchFile(tmp_path / 'a.pt').infos()}")


def test_old_torch_files_hold_what_they_list(tmp_path, saved):
    """A tensor whose values do not follow would be whatever the memory held: it is refused."""
    _, old = saved
    (tmp_path / "a.pt").write_bytes(old)
    assert TorchFile(tmp_path / "a.pt").load("a").tolist() == list(range(8))
    keys = old.rindex(b"X", 0, len(old) - 80)  # a key in the list of those that follow
    damaged = bytearray(old)
    damaged[keys + 5] ^= 1
    for data in (bytes(damaged), old[:-4], old + b"1234"):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a\.pt"):
            TorchFile(tmp_path / "a.pt")


HASHED = {
    "a dict": b"}%s]s",
    "a set": b"\x8f(%s\x90",
    "a set that is called": b"cbuiltins\nset\n](%se\x85R",
    "an ordered dict": b"ccollections\nOrderedDict\n)R%s]s",
}


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("name", HASHED)
def test_keys_that_hold_one_another_are_not_hashed(tmp_path, saved, name, modern):
    """A key of nested tuples, 2**60 of them, takes torch for ever: it is refused before."""
    key = b")" + b"q\0h\0\x86" * 60
    content = b"\x80\x02" + HASHED[name].replace(b"%s", key) + b"."
    if modern:
        data = rewritten(saved[0], lambda n, d: content if n.endswith(".pkl") else d)
    else:
        old = saved[1]
        data = old[: old.index(b"\x80\x02}", 60)] + content + b"\x80\x02]."
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="as a key"):
        TorchFile(tmp_path / "a.pt")


def test_a_tensor_under_a_number_is_named_by_it(tmp_path):
    """A state dict may count its tensors."""
    torch.save({3: torch.ones(2), "a": torch.ones(3)}, tmp_path / "a.pt")
    assert list(TorchFile(tmp_path / "a.pt").infos()) == ["3", "a"]


def test_a_view_that_repeats_its_values_is_no_weight(tmp_path):
    """Four bytes that say they are terabytes are refused as soon as their tensor is wanted."""
    config = CONFIG | {"vocab_size": 2**20, "hidden_size": 2**20, "num_hidden_layers": 1}
    state = {"embed_tokens.weight": torch.ones(1).expand(2**20, 2**20)}
    torch.save({"model": state, "config": config}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="repeats its values"):
        open_source(tmp_path / "a.pt")


MEASURE = """
import resource, sys
from pathlib import Path
from tolpack.errors import TolpackError
from tolpack.sources.checkpoint.torch_file import TorchFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    TorchFile(Path(sys.argv[1]))
except TolpackError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("bomb", ["deflated", "dictionaries", "old dictionaries"])
def test_pickles_are_no_bombs(tmp_path, saved, bomb):
    """What inflates, and what makes an object of each byte, takes less than 64 MB and four times
    the file.
    """
    modern, old = saved
    text = b"\x80\x02X" + (200 << 20).to_bytes(4, "little") + b"a" * (200 << 20) + b"."
    objects = b"\x80\x02(" + b"}" * (8 << 20) + b"l."
    if bomb == "old dictionaries":
        data = old[: old.index(b"\x80\x02}", 30)] + objects
    else:
        content = text if bomb == "deflated" else objects
        method = zipfile.ZIP_DEFLATED if bomb == "deflated" else zipfile.ZIP_STORED
        data = rewritten(modern, lambda n, d: content if n.endswith(".pkl") else d, method)
    (tmp_path / "a.pt").write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.pt")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert int(found.stdout) << 10 < 4 * len(data) + (64 << 20)


def test_many_tensors_are_opened_within_memory(tmp_path):
    """A header of 20,000 tensors is no attack."""
    state = {f"layers.{n}.x": torch.ones(1) for n in range(20_000)}
    (tmp_path / "a.safetensors").write_bytes(save(state))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(SafetensorsFile(tmp_path / "a.safetensors").infos()) == 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10


def test_pickles_of_other_programs_are_refused(tmp_path):
    """A pickle that is not a checkpoint gives the error that says how to save one."""
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(CheckpointError, match="save a state dict alone"):
        TorchFile(tmp_path / "a.pt")
