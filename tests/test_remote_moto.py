"""Folders and packs in a bucket of moto's S3 server, with faults injected between the two."""

import numpy as np
import object_server as faults
import pytest
from object_server import moto_server, s3_environment
from packs import RECIPES, write

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

import tolpack
from tolpack.storage import remote_folder, remote_object
from tolpack.storage.folder import AlreadyExistsError, NoSuchFileError
from tolpack.storage.locations import open_folder

URL = "s3://bucket/some folder/model.tolpack"


@pytest.fixture(scope="module")
def moto():
    """Moto's server, and ours before it."""
    with moto_server() as server:
        yield server


@pytest.fixture
def bucket(moto, monkeypatch):
    """The same, where obstore finds it; faults are over after each test, and waits are short."""
    for name, value in s3_environment(moto).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_READ_TIMEOUT", "500ms")
    monkeypatch.setattr(remote_object, "_WAIT", 0.001)
    monkeypatch.setattr(remote_folder, "_CREATE_WAIT", 0.001)
    moto.spoiled_method, moto.always = "GET", None
    moto.faults.clear()
    moto.requests.clear()
    yield moto
    moto.always = moto.instead = None


@pytest.fixture
def pack_url(bucket, samples):
    """A pack in the bucket."""
    open_folder("s3://bucket/some folder").put("model.tolpack", samples["everything"].path)
    return URL


PASSING = [faults.drop, faults.drop_inside, faults.unavailable, faults.stall, faults.shorten]


@pytest.mark.parametrize("fault", PASSING)
def test_rows_come_through_faults(fault, bucket, pack_url, samples):
    """Rows are those of the file although answers break, stall, are refused or cut short."""
    with tolpack.open(samples["everything"].path) as local:
        expected = local.rows(range(12))
    bucket.faults.extend([fault] * 2)
    with tolpack.open(pack_url) as pack:
        assert np.array_equal(pack.rows(range(12)), expected)
        assert not bucket.faults


def test_a_replaced_pack_is_an_error(bucket, pack_url, samples, tmp_path):
    """S3 refuses a read of another version than the one that was opened."""
    with tolpack.open(pack_url) as pack:
        pack.rows([1])
        other = write(tmp_path / "other", RECIPES["everything"], seed=1)
        open_folder("s3://bucket/some folder").put("model.tolpack", other.path)
        with pytest.raises(tolpack.FormatError, match="changed"):
            pack.rows([2])


def test_a_missing_bucket_is_named(bucket):
    """A bucket that does not exist is an error that names the URL."""
    with pytest.raises(tolpack.FileAccessError, match="s3://nowhere/model.tolpack"):
        tolpack.open("s3://nowhere/model.tolpack")


@pytest.fixture(params=["s3", "memory", "local"])
def folder(request, bucket, tmp_path):
    """An empty folder of each kind."""
    name = f"{request.node.name}"
    if request.param == "local":
        return open_folder(tmp_path / "folder")
    return open_folder(f"{request.param}://bucket/{name}")


def test_folders_hold_files(folder, tmp_path):
    """What was put or created is listed, has its size, and is read back; what is removed, not."""
    assert folder.names() == []
    assert folder.size("a.part") is None
    folder.create("manifest.json", b"{}")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40)
    folder.put("a.part", tmp_path / "file")
    assert folder.names() == ["a.part", "manifest.json"]
    assert folder.size("a.part") == 10240
    assert folder.read_whole("manifest.json", 10) == b"{}"
    found = folder.read_many("a.part", [(300, 4), (1, 2), (10239, 1), (0, 10240)])
    assert [bytes(one[:4]) for one in found] == [b",-./", b"\1\2", b"\xff", b"\0\1\2\3"]
    assert bytes(found[3]) == bytes(range(256)) * 40
    with pytest.raises(tolpack.FileAccessError):
        folder.read("a.part", 10239, 2)
    folder.delete("a.part")
    folder.delete("a.part")
    assert folder.names() == ["manifest.json"]
    with pytest.raises(NoSuchFileError, match=r"a\.part does not exist"):
        folder.read("a.part", 0, 1)


def test_files_are_created_once(folder):
    """Of two creators the second fails, also with the same bytes, and changes nothing."""
    folder.create("manifest.json", b"first")
    for data in (b"other", b"first"):
        with pytest.raises(AlreadyExistsError, match=r"manifest\.json exists"):
            folder.create("manifest.json", data)
    assert folder.read_whole("manifest.json", 10) == b"first"


@pytest.mark.parametrize("fault", [faults.drop, faults.unavailable])
def test_a_creator_whose_answer_is_lost_has_created(fault, bucket):
    """If the storage obeyed and its answer was lost, the second request is no defeat."""
    folder = open_folder(f"s3://bucket/lost-{fault.__name__}")
    bucket.spoiled_method = "PUT"
    bucket.faults.append(fault)
    folder.create("manifest.json", b"mine")
    assert not bucket.faults
    with pytest.raises(AlreadyExistsError):
        folder.create("manifest.json", b"mine")
    bucket.faults.append(fault)
    with pytest.raises(AlreadyExistsError):
        folder.create("manifest.json", b"others")


def test_a_refused_creation_is_an_error(bucket):
    """A storage that goes on refusing gives an error with its status, and no file."""
    folder = open_folder("s3://bucket/refused")
    for status in (403, 503):
        bucket.instead = faults.Answer(status, {}, b"<Error/>")
        with pytest.raises(tolpack.FileAccessError, match="denied|status 503") as caught:
            folder.create(f"m{status}.json", b"mine-too")
        assert not isinstance(caught.value, AlreadyExistsError)
    bucket.instead = None
    assert folder.names() == []
