"""Inputs by URL: what is built from object storage is what is built from a copy of it."""

import hashlib
import io
import json
import os
import threading
import urllib.request
import uuid
from pathlib import Path

import families
import models
import ngram_tables
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from test_key_maps import OWN, PLAIN, own_state

import tolpack
from tolpack.cli import main
from tolpack.errors import CheckpointError, ConfigError, FileAccessError
from tolpack.evaluation.evaluator import evaluate
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.safetensors_file import RemoteSafetensors, SafetensorsFile
from tolpack.sources.open_source import open_source, open_tables
from tolpack.storage import remote_input
from tolpack.storage.inputs import input_path, open_stream, read_whole
from tolpack.storage.locations import open_folder
from tolpack.storage.remote_input import RemoteInput
from tolpack.storage.remote_object import RemoteObject
from tolpack.storage.remote_path import RemotePath

GEMMA = {"model_type": "gemma3n", "vocab_size": 64, "vocab_size_per_layer_input": 60,
         "hidden_size_per_layer_input": 16, "num_hidden_layers": 3}  # fmt: skip
DEMO = Path(tolpack.__file__).parent / "demo" / "model"
PLE = "model.language_model.embed_tokens_per_layer.weight"


@pytest.fixture(scope="session")
def s3():
    """An S3 server on this machine with an empty bucket; returns its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield address
    server.stop()


def upload(path, root="memory://bucket"):
    """Put a file, or the files of a folder, into a new folder of `root`; returns the URL."""
    url = f"{root}/{uuid.uuid4().hex}"
    for file in path.iterdir() if path.is_dir() else [path]:
        open_folder(url).put(file.name, file)
    return url if path.is_dir() else f"{url}/{path.name}"


def gemma(folder):
    """Save a folder like Gemma's, in two shards with their index."""
    source = torch.Generator().manual_seed(0)
    table = torch.randn(60, 48, generator=source).to(torch.bfloat16)
    other = torch.randn(64, 8, generator=source)
    return models.save_folder(folder, {"model.norm.weight": other, PLE: table}, GEMMA, shards=2)


def memoryllm(folder):
    """Save a folder of a MemoryLLM, in three shards with their index."""
    config = models.make_config()
    return models.save_folder(folder, models.make_state(config), config, shards=3)


def fused(folder):
    """Save a file of a MemoryLLM whose config is beside it, with names of another trainer."""
    folder.mkdir()
    config = models.make_config()
    state = families.openlm(models.make_state(config), config)
    models.save_config(folder / "config.json", config)
    return models.save_safetensors(folder / "model.safetensors", state)


def exl3(folder):
    """Save a folder of an n-gram table whose header has metadata, and that no index lists."""
    folder.mkdir()
    ngram_tables.save_folder(
        folder, lambda found: ngram_tables.save_exl3(found / "ngram_embedding.safetensors", 3)
    )
    return folder


def engram(folder):
    """Save a folder of n-gram tables, whose hash follows from the tokenizer beside them."""
    return ngram_tables.save(folder, ngram_tables.demo(), ngram_tables.DEMO_CONFIG)


def table(folder, suffix, dtype):
    """Save a plain table of 300 tokens, 2 layers and 12 values."""
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(300, 2, 12)).astype(dtype)
    path = folder / f"table{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    else:
        save_file({"table": torch.from_numpy(values).to(torch.bfloat16)}, path)
    return path


SAVED = {
    "memoryllm": memoryllm,
    "gemma": gemma,
    "exl3": exl3,
    "engram": engram,
    "npy": lambda folder: table(folder, ".npy", "<f2"),
    "tensor": lambda folder: table(folder, ".safetensors", "<f4"),
}


@pytest.mark.parametrize("root", ["memory://bucket", "s3://bucket"])
@pytest.mark.parametrize("name", SAVED)
def test_packs_are_those_of_a_copy(name, root, tmp_path, s3, monkeypatch):
    """Whatever is built from a URL has the bytes of what is built from the same files here, and
    the pack goes to the current folder under the model's name.
    """
    path = SAVED[name](tmp_path / "model")
    url = upload(path, root)
    expected = tolpack.build(path, tmp_path / "local.tolpack", bits=8)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = tolpack.build(url, bits=8)
    assert result.path.read_bytes() == expected.path.read_bytes()
    stem = url.rpartition("/")[2].partition(".")[0]
    assert [one.name for one in (tmp_path / "here").iterdir()] == [f"{stem}.tolpack"]


def test_fused_weights_and_a_file_with_its_config(tmp_path):
    """A single file finds its config.json beside it, and tensors that are fused are cut right."""
    path = fused(tmp_path / "model")
    url = upload(path.parent) + "/model.safetensors"
    expected = tolpack.build(path, tmp_path / "a.tolpack", bits=4, rank="50%")
    result = tolpack.build(url, tmp_path / "b.tolpack", bits=4, rank="50%")
    assert result.path.read_bytes() == expected.path.read_bytes()


@pytest.mark.parametrize("trainer", families.FAMILIES)
def test_tensors_of_every_trainer(trainer, tmp_path):
    """Whole tensors, blocks and rows are those of a copy, however they are fused or split."""
    config = models.make_config("flex_memoryllm")
    state = families.FAMILIES[trainer](models.make_state(config), config)
    path = models.save_folder(tmp_path / "model", state, config, shards=2)
    here, there = open_checkpoint(path), open_checkpoint(upload(path))
    assert there.fingerprint() == here.fingerprint()
    for name, tensor in here.schema_tensors.items():
        assert torch.equal(there.tensor(name), here.tensor(name))
        ids = torch.arange(tensor.shape[0]).flip(0)[::3]
        assert torch.equal(there.rows(name, ids), here.rows(name, ids))
        assert torch.equal(there.row_block(name, 1, 5), here.row_block(name, 1, 5))


def test_hashes_beside_remote_files(tmp_path):
    """A ``SHA256SUMS`` beside them is held against the files."""
    path = gemma(tmp_path / "model")
    shard = path / "model-00001-of-00002.safetensors"
    for content, outcome in ((shard.read_bytes(), None), (b"", "but SHA256SUMS says")):
        (path / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {shard.name}\n")
        url = upload(path)
        if outcome is None:
            tolpack.build(url, tmp_path / "p.tolpack", bits=8)
            continue
        with pytest.raises(CheckpointError, match=f"{url}/{shard.name} .* {outcome}"):
            tolpack.build(url, tmp_path / "q.tolpack", bits=8)


def test_a_folder_by_http(tmp_path, s3):
    """HTTP lists nothing: a folder is read by its index; one without says what is missing."""
    path = memoryllm(tmp_path / "model")
    url = f"{s3}/bucket/{uuid.uuid4().hex}"
    for file in path.iterdir():
        headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
        put = urllib.request.Request(f"{url}/{file.name}", file.read_bytes(), headers, method="PUT")
        urllib.request.urlopen(put, timeout=10).close()
    expected = tolpack.build(path, tmp_path / "a.tolpack", bits=8)
    result = tolpack.build(url, tmp_path / "b.tolpack", bits=8)
    assert result.path.read_bytes() == expected.path.read_bytes()
    folder = open_folder(url.replace(s3, "s3:/"))
    folder.delete("model.safetensors.index.json")
    with pytest.raises(CheckpointError, match="neither model.safetensors.index.json nor model.saf"):
        open_tables(url)
    folder.delete("config.json")
    with pytest.raises(CheckpointError, match="does not exist: as a folder it would have one of"):
        open_tables(url)


def test_counts_text_and_config(tmp_path, token_ids):
    """All small inputs may be URLs too."""
    path = memoryllm(tmp_path / "model")
    counts = tmp_path / "counts.npy"
    np.save(counts, np.arange(97) % 13)
    given = {"calibrate": token_ids, "frequencies": counts, "config": path / "config.json"}
    urls = {name: upload(one) for name, one in given.items()}
    settings = {"bits": "auto", "rank": "auto"}
    expected = tolpack.build(path, tmp_path / "a.tolpack", **settings, **given)
    result = tolpack.build(upload(path), tmp_path / "b.tolpack", **settings, **urls)
    assert result.path.read_bytes() == expected.path.read_bytes()


def test_texts_and_their_tokenizer(tmp_path):
    """A text by URL is read with the tokenizer beside the checkpoint, or with one by URL."""
    text = tmp_path / "text.txt"
    text.write_text("Once there was a cat.\r\nIt sat by the river. ", encoding="utf-8")
    expected = read_token_ids(text, 10_000, DEMO / "tokenizer.json")
    url = upload(DEMO)
    places = (url, None), (f"{url}/model.safetensors", None), ("x", f"{url}/tokenizer.json")
    for checkpoint, given in places:
        tokenizer = find_tokenizer(input_path(checkpoint), given)
        assert np.array_equal(read_token_ids(upload(text), 10_000, tokenizer), expected)


def test_key_maps(tmp_path):
    """A key map by URL is read, and what it says is transposed is read so."""
    state = own_state(models.make_state(PLAIN), PLAIN)
    path = models.save_folder(tmp_path / "model", state, PLAIN)
    key_map = tmp_path / "map.toml"
    key_map.write_text(OWN, encoding="utf-8")
    options = (CheckpointOptions(key_map=one) for one in (key_map, upload(key_map)))
    here, there = map(open_checkpoint, (path, upload(path)), options)
    assert there.fingerprint() == here.fingerprint()
    name, ids = "layers.1.memory_mlp.gate_proj.weight", torch.tensor([3, 0, 3])
    assert torch.equal(there.rows(name, ids), here.rows(name, ids))


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.mark.parametrize("name", ["memoryllm", "gemma"])
def test_plan_and_inspect(name, tmp_path):
    """``plan`` and ``inspect`` show of a URL what they show of a copy, but for its place."""
    path = SAVED[name](tmp_path / "model")
    url = upload(path)
    for command in ("inspect", "plan"):
        here, there = (run(command, one, "--json") for one in (path, url))
        assert there.exit_code == 0, there.output
        assert there.output.replace(url, str(path)) == here.output


def test_eval_of_a_memoryllm(tmp_path, token_ids):
    """A MemoryLLM and a text are evaluated in place."""
    path = memoryllm(tmp_path / "model")
    pack = tolpack.build(path, tmp_path / "a.tolpack", bits=4).path
    here = evaluate(path, [pack], token_ids, context=16)
    there = evaluate(upload(path), [pack], upload(token_ids), context=16)
    assert there.baseline.ppl == here.baseline.ppl
    assert there.packs[0].ppl == here.packs[0].ppl


def test_a_changed_object_is_noticed(tmp_path):
    """An object that is put again while it is read ends the build, and leaves no pack."""
    path = memoryllm(tmp_path / "model")
    url = upload(path)
    name = "model-00001-of-00003.safetensors"

    class Replacing(Reporter):
        def phase(self, phase, total, unit):
            if phase.startswith("encoding"):
                open_folder(url).put(name, path / name)
            return super().phase(phase, total, unit)

    source = open_source(url)
    source.check_unchanged()
    with pytest.raises(CheckpointError, match=f"{url}/{name} was changed while it was read"):
        tolpack.build(url, tmp_path / "p.tolpack", bits=8, reporter=Replacing())
    assert not (tmp_path / "p.tolpack").exists()
    with pytest.raises(CheckpointError, match="was changed"):
        source.check_unchanged()
    open_folder(url).delete(name)
    with pytest.raises(CheckpointError, match=f"names shard '{name}', which is not in {url}"):
        open_tables(url)


@pytest.mark.parametrize("root", ["memory://bucket", "s3://bucket"])
def test_reads_are_of_one_version(root, tmp_path, s3):
    """Bytes of an object that was replaced since it was opened are never given."""
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(1000))
    url = upload(path, root)
    file, out = RemoteInput(input_path(url)), np.ones(10, np.uint8)
    file.read_into(5, out)
    assert not out.any()
    path.write_bytes(b"1" * 1000)
    open_folder(url.removesuffix("/x.bin")).put("x.bin", path)
    for announced in (False, True):
        if announced:
            file.advise(5, 10)
        with pytest.raises(CheckpointError, match=f"{url} was changed while it was read"):
            file.read_into(5, out)
    assert not out.any()


def test_what_is_not_there(tmp_path, s3):
    """A folder, file or bucket that is missing is named in full."""
    for url in ("memory://bucket/none", "s3://bucket/none", "s3://bucket/none.npy"):
        with pytest.raises(CheckpointError, match=f"checkpoint {url} does not exist"):
            open_tables(url)
    with pytest.raises(FileAccessError, match="s3://no-bucket"):
        open_tables("s3://no-bucket/model")
    with pytest.raises(ConfigError, match="--frequencies memory://bucket/none.npy"):
        path = memoryllm(tmp_path / "model")
        tolpack.build(path, tmp_path / "p.tolpack", frequencies="memory://bucket/none.npy")


def test_urls_that_cannot_be_opened(monkeypatch):
    """Unknown schemes, other machines, and a missing library are said."""
    with pytest.raises(ConfigError, match="foo://x is of no known kind"):
        open_tables("foo://x/y")
    with pytest.raises(ConfigError, match="another machine"):
        open_tables("file://elsewhere/model")
    with pytest.raises(ConfigError, match="is a URL with one slash: write .*://"):
        open_tables(Path("s3://bucket/model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs obstore: pip install 'tolpack\[remote\]'"):
        open_tables("gs://bucket/model-without-obstore")


def test_file_urls_are_paths(tmp_path):
    """A ``file://`` URL is the path, and its pack goes beside it."""
    path = SAVED["npy"](tmp_path / "a b")
    result = run("build", path.as_uri(), "--json")
    assert json.loads(result.stdout)["path"] == str(tmp_path / "a b" / "table.tolpack")


@pytest.mark.parametrize("url", [
    "https://user:secret@host/model?signature=secret", "s3://secret:secret@bucket/model",
    "http://host/x.npy#secret", "https://host/model?secret",
])  # fmt: skip
def test_credentials_are_not_shown(url):
    """A URL with a user, a password or a query is refused, without showing them."""
    for given in ((url,), ("memory://bucket/none", "-o", url), ("x", "--csv", url)):
        result = run(
            "eval" if "--csv" in given else "build", *given, *["--text", "x"][: len(given) - 1]
        )
        assert result.exit_code != 0
        assert "secret" not in result.output
    with pytest.raises(ConfigError, match="holds credentials|has a query"):
        open_tables(url)


@pytest.mark.parametrize("name", ["model.pt", "table.h5", "model.gguf"])
def test_files_that_are_read_here_only(name, tmp_path):
    """Files that libraries open by their path are refused, with what to do."""
    path = tmp_path / name
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(32) if name == "model.gguf" else bytes(40))
    with pytest.raises(ConfigError, match="download it first"):
        open_tables(upload(path))


def test_models_of_transformers_are_run_here_only(tmp_path):
    """A build that would run Gemma to measure losses does not go on without them."""
    folder = models.save_folder(
        tmp_path / "model",
        {PLE: torch.ones(60, 48), "model.language_model.embed_tokens.weight": torch.ones(64, 8)},
        GEMMA,
    )
    url, text = upload(folder), tmp_path / "ids.npy"
    np.save(text, models.zipf_ids(400, 60))
    for given in ({}, {"calibrate": text}):
        with pytest.raises(ConfigError, match=f"transformers .* {url} .* download it first"):
            tolpack.build(url, tmp_path / "p.tolpack", bits="auto", **given)
    with pytest.raises(ConfigError, match="transformers"):
        evaluate(url, [], text)


@pytest.mark.parametrize("args", [
    ["join", "parts", "s3://bucket/p.tolpack"], ["convert", "p.tolpack", "s3://bucket/t.npy"],
    ["strip", "s3://bucket/model", "-o", "x", "--pack", "p.tolpack"], ["demo", "-o", "s3://bucket/x"],
    ["eval", "m", "--text", "t", "--report", "s3://bucket/r.html"],
    ["lm-eval", "s3://bucket/m", "--tasks", "x"], ["bench", "s3://bucket/p.tolpack"],
])  # fmt: skip
def test_no_url_becomes_a_path(args, tmp_path, monkeypatch):
    """Where a URL cannot be used, a command says so, and makes no folder of its name."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((9, 2, 4), np.float32))
    result = run(*args)
    assert result.exit_code != 0
    assert "s3://bucket" in result.output
    assert [one.name for one in tmp_path.iterdir()] == ["x.npy"]


def test_paths_of_urls():
    """`RemotePath` names parts as `pathlib` does, down to the bucket."""
    path = input_path("S3://bucket/a/model-1.5/")
    assert (str(path), path.name, path.suffix) == ("s3://bucket/a/model-1.5", "model-1.5", ".5")
    assert path / "x.npy" == RemotePath("s3://bucket/a/model-1.5/x.npy")
    assert str(path.parent.parent) == str(path.parent.parent.parent) == "s3://bucket"
    assert (path / ".hidden").suffix == RemotePath("s3://bucket.x").suffix == ""
    assert (path / "x.tar.gz").stem == "x.tar"


def test_reads_are_cut_into_requests(tmp_path, monkeypatch):
    """Large reads are several requests at the same time, and give the bytes of the file."""
    monkeypatch.setattr(remote_input, "_LEAST_BYTES", 1000)
    data = np.random.default_rng(0).integers(0, 256, 9001).astype(np.uint8)
    (tmp_path / "x.bin").write_bytes(data.tobytes())
    file = RemoteInput(input_path(upload(tmp_path / "x.bin")))
    for offset, length in ((0, 9001), (17, 8000), (9001, 0), (8000, 1001), (5, 999)):
        out = np.zeros(length, np.uint8)
        assert not file.read_into(offset, out, wait=False)
        file.advise(offset, length)
        assert file.read_into(offset, out)
        assert np.array_equal(out, data[offset : offset + length])
    with pytest.raises(FileAccessError):
        file.read_into(9000, np.zeros(2, np.uint8))
    barrier, read = threading.Barrier(8), RemoteObject.read

    def together(remote, *extent):
        barrier.wait(10)
        return read(remote, *extent)

    monkeypatch.setattr(RemoteObject, "read", together)
    file.read_into(0, np.zeros(8000, np.uint8))


def test_streams_and_whole_files(tmp_path):
    """A stream reads and seeks as one of a file here; a whole file has a limit."""
    (tmp_path / "x.bin").write_bytes(os.urandom(700_000))
    url = upload(tmp_path / "x.bin")
    with open_stream(url) as there, open_stream(tmp_path / "x.bin") as here:
        for place, whence in ((0, io.SEEK_END), (5, io.SEEK_SET), (-3, io.SEEK_END)):
            assert there.seek(place, whence) == here.seek(place, whence)
            assert there.read(300_000) == here.read(300_000)
    assert read_whole(url, 700_000) == (tmp_path / "x.bin").read_bytes()
    with pytest.raises(FileAccessError, match="expected at most 699,999"):
        read_whole(url, 699_999)


def test_rows_in_any_order(tmp_path):
    """Rows far apart are read by a request each, and near ones together."""
    path = tmp_path / "t.npy"
    values = np.random.default_rng(0).normal(size=(4000, 1, 256)).astype(np.float32)
    np.save(path, values)
    rows = open_source(upload(path)).field_rows(0)
    ids = np.array([3999, 0, 17, 17, 1200, 2, 3998, 600])
    assert np.array_equal(rows(ids), values[ids, 0])


DTYPES = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16,
          "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64,
          "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip


def safetensors(path, tensors, size, metadata=None):
    """Write a file with this header: name → dtype, shape, first and last offset."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": extent}
        for name, (dtype, shape, *extent) in tensors.items()
    }
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def test_headers_say_what_the_library_says(tmp_path):
    """Names in their order, shapes, dtypes, metadata and extents are those of the library."""
    tensors, end = {}, 0
    for number, (dtype, bits) in enumerate(DTYPES.items()):
        start, end = end, end + bits * (number % 3) // 2
        tensors[f"{9 - number % 10} {dtype} é"] = dtype, [4, number % 3], start, end
    tensors["scalar"] = ("F32", [], end, end + 4)
    path = safetensors(tmp_path / "x.safetensors", tensors, end + 4, {"a": "b\n", "": "c"})
    there = RemoteSafetensors(input_path(upload(path)))
    here = SafetensorsFile(path)
    assert list(there.infos()) == list(here.infos())
    for name, info in here.infos().items():
        found = there.infos()[name]
        assert (found.shape, found.dtype) == (info.shape, info.dtype)
        assert there.extent(name) == here.extent(name)
    assert there.metadata() == here.metadata()


@pytest.mark.parametrize("tensors", [
    {"a": ("F32", [2], 0, 8), "b": ("F32", [2], 12, 20)},
    {"a": ("F32", [2], 4, 12), "b": ("F32", [2], 12, 20)},
    {"a": ("F32", [3], 0, 12), "b": ("F32", [3], 8, 20)},
    {"a": ("F32", [2], 0, 20)}, {"a": ("F33", [5], 0, 20)}, {"a": ("F32", [5, 0], 0, 20)},
    {"a": ("F32", [5, 2**62], 0, 20)}, {"a": ("F4", [41], 0, 20)},
])  # fmt: skip
def test_headers_that_the_library_refuses(tensors, tmp_path):
    """What the library refuses to open is refused where it is not asked."""
    path = safetensors(tmp_path / "x.safetensors", tensors, 20)
    with pytest.raises(Exception, match="header"):
        safe_open(path, "np")
    with pytest.raises(CheckpointError, match="not a readable .safetensors file"):
        RemoteSafetensors(input_path(upload(path)))
