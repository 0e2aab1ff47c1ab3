"""Shards that are short, long, swapped or another download's: found before a pack, by name."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from tolpack.errors import CheckpointError
from tolpack.sources.open_source import open_source

TENSOR = "model.shard_*.weight"
COUNT = 4


@pytest.fixture
def folder(tmp_path):
    """A table in four shards, each a file of its own, with their index."""
    source, weight_map = torch.Generator().manual_seed(1), {}
    for number in range(COUNT):
        name, file = f"model.shard_{number}.weight", shard(tmp_path, number).name
        tensor = torch.randn(50, 8, generator=source).bfloat16()
        save_file({name: tensor}, tmp_path / file)
        weight_map[name] = file
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def shard(folder, number):
    """Path of a shard."""
    return folder / f"model-0000{number + 1}-of-0000{COUNT}.safetensors"


def check(folder):
    """Open the table, check it, and return what it says about itself."""
    table = open_source(folder, tensor=TENSOR)
    read = []
    table.check(read.append)
    assert sum(read) == table.stored_bytes
    return "\n".join(table.describe())


def rewrite(path, tensors):
    """Write other tensors in place of a shard."""
    path.unlink()
    save_file(tensors, path)


def test_shards_as_they_were_saved_pass(folder):
    """Nothing is compared where no hash stands beside the files."""
    assert "SHA-256" not in check(folder)


@pytest.mark.parametrize(("change", "word"), [(-301, "short"), (17, "long")])
def test_short_or_long_shard_is_named(folder, change, word):
    """A file that is shorter or longer than its header says, with the difference."""
    path = shard(folder, 2)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(CheckpointError, match=rf"00003-of-.*it is {abs(change)} bytes too {word}"):
        open_source(folder, tensor=TENSOR)


def test_swapped_files_are_found_by_the_index(folder):
    """Two files that have each other's name: the index says which tensor is where."""
    first, second = shard(folder, 0).read_bytes(), shard(folder, 1).read_bytes()
    shard(folder, 0).write_bytes(second)
    shard(folder, 1).write_bytes(first)
    with pytest.raises(CheckpointError, match=r"shard_0.weight' is in model-00001.*00002-of"):
        open_source(folder, tensor=TENSOR)


def test_missing_shard_is_named(folder):
    """A file that the index names and that is not there."""
    shard(folder, 3).unlink()
    with pytest.raises(CheckpointError, match=r"names shard 'model-00004-of-00004.safetensors'"):
        open_source(folder, tensor=TENSOR)


def test_rows_of_another_shard_are_found(folder):
    """A shard under the right name with the rows of another one: both are named."""
    other = open_source(folder, tensor=TENSOR).stored[0].block(50, 100)
    rows = torch.from_numpy(other).view(torch.bfloat16)
    rewrite(shard(folder, 3), {"model.shard_3.weight": rows})
    with pytest.raises(CheckpointError, match=r"shard_3.*00004.*has the rows of.*shard_1.*00002"):
        check(folder)


def test_shards_of_zeros_are_not_taken_for_copies(folder):
    """Shards whose rows are all alike, as never trained ones are, are not copies of each other."""
    for number in (1, 2):
        rewrite(
            shard(folder, number), {f"model.shard_{number}.weight": torch.zeros(50, 8).bfloat16()}
        )
    check(folder)


def test_shards_that_differ_in_one_row_are_no_copies(folder):
    """Shards that agree in nearly all rows, and in those that are looked at first."""
    rows = torch.from_numpy(open_source(folder, tensor=TENSOR).stored[0].block(50, 100))
    rows[2, 0] ^= 1
    rewrite(shard(folder, 3), {"model.shard_3.weight": rows.view(torch.bfloat16)})
    check(folder)


def digest(path):
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(folder, place):
    """Write the hashes of all shards to a place that downloads write them to."""
    hashes = {path: digest(path) for path in sorted(folder.glob("*.safetensors"))}
    if place == "SHA256SUMS":
        lines = [f"{value}  {path.name}\n" for path, value in hashes.items()]
        (folder / place).write_text("".join(lines), encoding="utf-8")
        return
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    for path, value in hashes.items():
        text = f"{'0' * 40}\n{value}\n1790000000.5\n"
        (metadata / f"{path.name}.metadata").write_text(text, encoding="utf-8")


def flip(path):
    """Change one bit of the last value of a file."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", ["SHA256SUMS", ".cache/huggingface/download"])
def test_hashes_of_the_download_are_compared(folder, place):
    """What was compared is said, and one bit of one shard is found and its file named."""
    record(folder, place)
    assert f"comparing with the SHA-256 of {place}: {shard(folder, 0).name}" in check(folder)
    flip(shard(folder, 2))
    with pytest.raises(CheckpointError, match=rf"00003-of-00004.*but {place} says"):
        check(folder)


def test_hashes_of_a_download_into_a_folder_above(folder):
    """A download of several models keeps its records in the folder above."""
    record(folder, ".cache/huggingface/download")
    inner = folder / "inner"
    inner.mkdir()
    for path in folder.glob("*.*"):
        if path.is_file():
            path.rename(inner / path.name)
    (folder / ".cache" / "huggingface" / "download").rename(folder / "records")
    (folder / ".cache" / "huggingface" / "download").mkdir()
    (folder / "records").rename(folder / ".cache" / "huggingface" / "download" / "inner")
    assert "comparing with the SHA-256" in check(inner)


def test_links_into_the_hugging_face_cache_are_compared(folder):
    """In the cache of ``hf download`` a file is a link to a blob that is called by its hash."""
    blobs = folder.parent / f"{folder.name}-blobs" / "blobs"
    blobs.mkdir(parents=True)
    for number in range(COUNT):
        path = shard(folder, number)
        blob = blobs / digest(path)
        path.rename(blob)
        path.symlink_to(blob)
    assert "comparing with the SHA-256 of the Hugging Face cache" in check(folder)
    flip(shard(folder, 1).resolve())
    with pytest.raises(CheckpointError, match=r"00002-of-00004.*the Hugging Face cache says"):
        check(folder)


def test_hashes_of_another_kind_are_left_out(folder):
    """Small files have the hash of git, of 40 digits; lines that are not hashes are not errors."""
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    for number, text in enumerate((f"{'0' * 40}\n{'1' * 40}\n1.0\n", "", "\n\n")):
        path = metadata / f"{shard(folder, number).name}.metadata"
        path.write_text(text, encoding="utf-8")
    (folder / "SHA256SUMS").write_text("nothing\n\n", encoding="utf-8")
    assert "SHA-256" not in check(folder)


@pytest.mark.parametrize("form", ["SHA256 ({0}) = {1}", "{1}  model/{0}", "{1} *./{0}"])
def test_lists_of_hashes_in_other_forms_are_read(folder, form):
    """As ``sha256sum --tag`` writes them, with folders, and of binary files."""
    lines = [form.format(path.name, digest(path)) for path in sorted(folder.glob("*.safetensors"))]
    (folder / "SHA256SUMS").write_text("\n".join(lines), encoding="utf-8")
    check(folder)
    flip(shard(folder, 2))
    with pytest.raises(CheckpointError, match="00003-of-00004.*but SHA256SUMS says"):
        check(folder)


def test_files_that_a_list_of_hashes_leaves_out_are_named(folder):
    """What is not compared is said, as a list may be meant to cover everything."""
    record(folder, "SHA256SUMS")
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    (folder / "SHA256SUMS").write_text("\n".join(lines[:-1]), encoding="utf-8")
    said = f"SHA256SUMS has no hash of {shard(folder, 3).name}: not compared with it"
    assert said in check(folder)


def test_one_of_several_shards_is_no_table(folder):
    """A shard that is given alone is refused, though it holds one tensor."""
    with pytest.raises(CheckpointError, match="one of several files of a checkpoint: give their"):
        open_source(shard(folder, 1), layers=1)


def test_huge_list_of_hashes_is_refused(folder, monkeypatch):
    """A list of hashes beyond its limit is not read, and named."""
    monkeypatch.setattr("tolpack.sources.tensors.recorded_hashes._MAX_SUMS", 10)
    record(folder, "SHA256SUMS")
    with pytest.raises(CheckpointError, match="SHA256SUMS.*expected at most 10"):
        open_source(folder, tensor=TENSOR)
