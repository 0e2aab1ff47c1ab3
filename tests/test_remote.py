"""Packs are read in place from object storage: the same rows, or an error that says what failed."""

import pickle
import re

import numpy as np
import object_server as faults
import pytest
from object_server import ObjectServer
from packs import RECIPES, SHAPES, Layer, Part, Recipe, Run, int8, reference_rows, write

pytest.importorskip("obstore")

import tolpack
from tolpack.container.remote_file import RemoteFile
from tolpack.storage import remote_folder, remote_object
from tolpack.storage.locations import open_folder, split_location
from tolpack.storage.remote_errors import reason

# Three chunks of rows of 8 KB: many lie too far apart for one request.
WIDE = Recipe(
    4000,
    (Layer((Part("f16", 4000),)),),
    (Run(200), Run(100, "zstd", 2), Run(10)),
    shuffled=True,
)
SECRET = "do-not-show-this"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Time limits and waits are short, so that failures come soon."""
    monkeypatch.setattr(remote_object, "_WAIT", 0.001)
    limits = {**remote_folder._CLIENT, "read_timeout": "300ms"}
    monkeypatch.setattr(remote_folder, "_CLIENT", limits)
    waits = {"init_backoff": remote_folder.timedelta(milliseconds=1)}
    retries = {**remote_folder._RETRIES, "max_retries": 3, "backoff": waits}
    monkeypatch.setattr(remote_folder, "_RETRIES", retries)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A pack of rows that are far apart: for reading only."""
    return write(tmp_path_factory.mktemp("wide") / "wide.tolpack", WIDE)


@pytest.fixture
def server():
    """An object store on the loopback interface."""
    with ObjectServer() as one:
        yield one


@pytest.fixture
def s3(server, monkeypatch):
    """The same, as S3, with credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT", server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "-2")
    return server


def put(server, sample, key="bucket/folder/model.tolpack"):
    """Have the server hold a pack."""
    server.objects[key] = sample.data
    return key


URLS = {"s3": "s3://bucket/folder/model.tolpack", "http": "{}/bucket/folder/model.tolpack"}


@pytest.mark.parametrize("scheme", URLS)
@pytest.mark.parametrize("name", ["smallest", "everything", "long-index", "ngrams"])
def test_rows_are_those_of_the_file(scheme, name, s3, samples):
    """All rows, single rows and verification of a pack at a URL are those of the file."""
    put(s3, samples[name])
    expected = reference_rows(samples[name].data)
    with tolpack.open(samples[name].path) as local, tolpack.open(URLS[scheme].format(s3.url)) as p:
        ids = range(p.vocab_size)
        assert p.stats()["io"] == "remote"
        assert np.array_equal(p.rows(ids), local.rows(ids))
        assert np.allclose(p.rows(ids), expected, rtol=1e-4, atol=1e-6)
        for one in list(ids)[:3]:
            assert np.array_equal(p.rows([one]), local.rows([one]))
        assert np.array_equal(p.extents(ids), local.extents(ids))
        assert p.verify() == []


def test_opening_takes_one_request(s3, wide):
    """Size, ETag, preamble and header come with the first request."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]):
        assert [(one.method, one.range) for one in s3.requests] == [("GET", (0, 65536))]


def test_a_lookup_asks_for_everything_at_once(s3, wide):
    """Rows of all chunks, in all windows, wait at the same time; neighbours share a request."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        pack.rows([0])
        s3.requests.clear()
        s3.most_at_once, s3.delay = 0, 0.05
        ids = np.random.default_rng(1).choice(pack.vocab_size, 60, replace=False)
        pack.rows(ids)
        ranges = s3.ranges()
        assert s3.most_at_once > len(ranges) / 2
        needed = sum(length for _, length in {tuple(one) for one in pack.extents(ids).tolist()})
        assert len(ranges) < 60
        gaps = (len(ranges) + 60) * 16384
        assert needed <= sum(stop - start for start, stop in ranges) <= needed + gaps
        assert sum(stop - start for start, stop in ranges) >= pack.stats()["block_bytes"] * 0.9


def test_index_blocks_come_together(s3, samples):
    """The index blocks that a lookup needs are asked for at the same time, not one by one."""
    many = Recipe(3, (Layer((int8(3, 2),)),), (Run(5000, "zstd", 1),), shuffled=True)
    sample = write(samples["smallest"].path.parent / "many", many)
    put(s3, sample)
    with tolpack.open(URLS["s3"]) as pack:
        pack.slots([0])
        s3.requests.clear()
        pack.rows(np.arange(pack.vocab_size))
        asked = pack.stats()
        assert asked["index_reads"] == 10
        assert len(s3.ranges()) < 5


def test_prefetched_rows_are_not_asked_for_again(s3, wide):
    """What was prefetched is on its way, and the lookup after it takes it from there."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        ids = np.arange(pack.vocab_size)
        pack.slots(ids)
        pack._ahead.begin(lambda: pack._missing_blocks(ids)).result(30)
        before = pack.stats()["fetched_requests"]
        rows = pack.rows(ids)
        assert pack.stats()["fetched_requests"] == before
    with tolpack.open(wide.path) as local:
        assert np.array_equal(rows, local.rows(ids))


@pytest.mark.parametrize("url", ["memory://bucket/model.tolpack", "memory:///model.tolpack"])
def test_packs_in_memory(url, samples):
    """``memory://`` holds packs of this process."""
    folder, name = split_location(url)
    open_folder(folder).put(name, samples["everything"].path)
    with tolpack.open(samples["everything"].path) as local, tolpack.open(url) as pack:
        assert np.array_equal(pack.rows(range(12)), local.rows(range(12)))
        assert pack.path == url


def test_file_urls_are_paths(samples):
    """``file://`` names a file of this machine, which is read in its own ways."""
    path = samples["everything"].path
    with tolpack.open(f"file://{path}", io="mmap") as pack:
        assert pack.path == str(path)
        assert pack.stats()["io"] == "mmap"


def test_pickles_and_other_tables_open_the_url_again(s3, tmp_path):
    """Copies of a pack, and its other tables, are opened by its URL with the same settings."""
    sample = write(tmp_path / "two", SHAPES["two-tables"])
    put(s3, sample)
    with tolpack.open(URLS["s3"], table="layer.1", threads=1) as pack:
        copy = pickle.loads(pickle.dumps(pack))
        other = pack.open_table("layer.15")
        assert copy.path == other.path == pack.path == URLS["s3"]
        assert np.array_equal(copy.rows([5], layers=[0]), pack.rows([5], layers=[0]))
        assert other.vocab_size == 3
        copy.close()
        other.close()


def test_a_pickle_of_a_replaced_pack_is_refused(s3, samples):
    """A copy that would be another pack is not a copy."""
    put(s3, samples["int4"])
    with tolpack.open(URLS["s3"]) as pack:
        copy = pickle.dumps(pack)
    put(s3, samples["int8"])
    with pytest.raises(tolpack.FileAccessError, match="no longer the pack"):
        pickle.loads(copy)


# Each breaks one answer; the lookup asks again and gives the right rows.
PASSING = [faults.drop, faults.drop_inside, faults.unavailable, faults.stall, faults.stall_before,
           faults.shorten]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_overcome(fault, s3, samples):
    """A request that fails is sent again, whether before its answer or within it."""
    put(s3, samples["everything"])
    with tolpack.open(samples["everything"].path) as local:
        expected = local.rows(range(12))
    s3.faults.append(fault)
    with tolpack.open(URLS["s3"]) as pack:
        assert not s3.faults
        s3.faults.extend([fault] * 2)
        assert np.array_equal(pack.rows(range(12)), expected)
        assert not s3.faults


# What is said if it goes on.
LASTING = {
    faults.drop: "the connection broke",
    faults.drop_inside: "the connection broke",
    faults.unavailable: "status 503",
    faults.stall: "time limit",
    faults.shorten: "bytes",
    faults.lengthen: "bytes",
    faults.misplace: "range|bytes",
    faults.ignore_range: "range",
}


@pytest.mark.parametrize("fault", LASTING)
def test_lasting_faults_are_errors(fault, s3, wide):
    """A request that goes on failing gives an error with URL, range and reason, and no rows."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        pack.slots([0])
        s3.always = fault
        with pytest.raises(tolpack.FileAccessError) as caught:
            pack.rows([7])
        (offset, length) = pack.extents([7])[0]
        text = str(caught.value)
        assert URLS["s3"] in text
        assert f"bytes {offset} … {offset + length}" in text
        assert re.search(LASTING[fault], text)
        s3.always = None
        assert pack.rows([7]).shape == (1, 1, 4000)


@pytest.mark.parametrize("fault", [faults.misplace, faults.ignore_range])
def test_servers_without_ranges_are_refused(fault, server, samples):
    """A plain web server that sends other bytes than those asked for gives an error at opening."""
    put(server, samples["everything"])
    server.always = fault
    with pytest.raises(tolpack.FileAccessError, match="range|bytes"):
        tolpack.open(URLS["http"].format(server.url))


@pytest.mark.parametrize("etags", [True, False])
def test_a_replaced_object_is_an_error(etags, s3, wide, tmp_path):
    """If the object is replaced between two reads, the second fails: rows are never mixed."""
    s3.etags = etags
    put(s3, wide)
    other = write(tmp_path / "other", WIDE if etags else RECIPES["int8"], seed=1)
    with tolpack.open(URLS["s3"]) as pack:
        pack.rows([1])
        put(s3, other)
        with pytest.raises(tolpack.FormatError, match="changed") as caught:
            pack.rows([2])
        assert caught.value.code == "changed"
        with pytest.raises(tolpack.FormatError, match="changed"):
            pack.rows(range(20))
        assert pack.verify()
        put(s3, wide)
        with tolpack.open(wide.path) as local:
            assert np.array_equal(pack.rows([2]), local.rows([2]))


def test_if_match_is_sent(s3, wide):
    """Every request after the first demands the version of the first."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        pack.rows(range(0, 100, 7))
    first, *others = (one.headers.get("if-match") for one in s3.requests)
    assert first is None
    assert len(set(others)) == 1
    assert others[0].startswith('"')


def test_a_version_is_compared_where_the_demand_is_ignored(s3, wide, tmp_path):
    """A server that ignores If-Match still tells an ETag, and a new one is an error."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        pack.slots([0])
        s3.always = lambda a: faults.replace(a, headers={**a.headers, "ETag": '"other"'})
        with pytest.raises(tolpack.FormatError, match="changed"):
            pack.rows([7])


def many(pack):
    """Return tokens whose rows need a request each, once it is known how to read many."""
    ids = pack.most_frequent(200)[::4]
    pack.rows(ids)
    pack.container.source._object._many.result(30)
    return ids


@pytest.mark.parametrize("demands", [True, False])
def test_many_ranges_are_of_one_version(demands, s3, wide, tmp_path):
    """Lookups of many rows see a replaced object as well, also where If-Match is not obeyed."""
    s3.demands = demands
    put(s3, wide)
    other = write(tmp_path / "other", WIDE, seed=1)
    with tolpack.open(URLS["s3"]) as pack, tolpack.open(wide.path) as local:
        ids = many(pack)
        assert (pack.container.source._object._many.result() is not None) == demands
        s3.requests.clear()
        assert np.array_equal(pack.rows(ids), local.rows(ids))
        assert len(s3.ranges()) == len(ids)
        assert len({one.headers["if-match"] for one in s3.requests}) == 1
        put(s3, other)
        with pytest.raises(tolpack.FormatError) as caught:
            pack.rows(ids)
        assert caught.value.code == "changed"


@pytest.mark.parametrize("fault", PASSING)
def test_faults_among_many_ranges_are_overcome(fault, s3, wide):
    """Faults of a few answers among many cost time alone."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack, tolpack.open(wide.path) as local:
        ids = many(pack)
        s3.faults.extend([fault] * 2)
        assert np.array_equal(pack.rows(ids), local.rows(ids))
        assert not s3.faults


@pytest.mark.parametrize("fault", [f for f in LASTING if f not in (faults.stall, faults.lengthen)])
def test_lasting_faults_of_many_ranges_are_errors(fault, s3, wide):
    """If they go on, there is an error with URL, bytes and reason, and no rows."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        ids = many(pack)
        s3.always = fault
        with pytest.raises(tolpack.FileAccessError, match=LASTING[fault]) as caught:
            pack.rows(ids)
        assert URLS["s3"] in str(caught.value)
        assert "bytes" in str(caught.value)


def test_a_removed_object_is_an_error(s3, wide):
    """An object that is gone is named; so is one that never was."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        s3.objects.clear()
        with pytest.raises(tolpack.FileAccessError, match=f"{URLS['s3']} does not exist"):
            pack.rows([7])
    with pytest.raises(tolpack.FileAccessError, match=f"{URLS['s3']} does not exist"):
        tolpack.open(URLS["s3"])


@pytest.mark.parametrize("data", [b"", b"x", b"no pack at all" * 9])
def test_objects_that_are_no_packs(data, s3):
    """What is at a URL is as little trusted as a file: it is refused by the same errors."""
    s3.objects["bucket/folder/model.tolpack"] = data
    with pytest.raises(tolpack.FormatError):
        tolpack.open(URLS["s3"])


def test_secrets_are_never_shown(s3, wide, caplog):
    """No message holds a key, a signature, or what a server quotes of them."""
    put(s3, wide)
    quoted = f"<Error><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>".encode()
    for status in (400, 403, 404, 500):
        s3.always = lambda _, status=status: faults.Answer(status, {}, quoted)
        with pytest.raises(tolpack.FileAccessError) as caught:
            tolpack.open(URLS["s3"])
        shown = [caught.value, caught.value.__cause__, caplog.text]
        assert not any(SECRET in str(one) or "Signature=" in str(one) for one in shown)
        assert URLS["s3"] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GET http://169.254.169.254/latest/api/token - status code: 403", "AWS_ACCESS_KEY_ID"),
        ("GET http://169.254.169.254/computeMetadata/v1/x - status: 403", "GOOGLE_APPLICATION"),
        ("Generic MicrosoftAzure error: x source: MissingAccount", "AZURE_STORAGE_ACCOUNT_NAME"),
        (f"Server returned non-2xx status code: 418 {SECRET}", "status 418"),
        (f"something else: {SECRET}", "ValueError"),
    ],
)
def test_reasons_are_words_of_our_own(text, said):
    """A reason is recognised in the library's words, of which nothing is repeated."""
    found = reason(ValueError(text))
    assert said in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "url",
    [
        f"https://host/model.tolpack?X-Amz-Signature={SECRET}",
        f"https://host/model.tolpack?X-Amz-Credential=a/b&s={SECRET}",
        f"https://user:{SECRET}@host/model.tolpack",
        f"s3://{SECRET}:{SECRET}@bucket/model.tolpack",
    ],
)
def test_urls_with_secrets_are_refused(url):
    """A URL is shown in messages and kept in pickles, so it may hold nothing secret."""
    with pytest.raises(tolpack.ConfigError) as caught:
        tolpack.open(url)
    assert SECRET not in str(caught.value)


def test_modes_fit_locations(s3, wide):
    """A URL is read remotely, a path never; whatever else is asked for is named with a remedy."""
    put(s3, wide)
    tolpack.open(URLS["s3"], io="remote").close()
    for io in ("mmap", "memory", "pread", "direct"):
        with pytest.raises(tolpack.ConfigError, match="leave io out"):
            tolpack.open(URLS["s3"], io=io)
    with pytest.raises(tolpack.ConfigError, match="leave io out"):
        tolpack.open(wide.path, io="remote")
    for url in ("ftp://host/model.tolpack", "s3://"):
        with pytest.raises(tolpack.ConfigError, match="expected"):
            tolpack.open(url)


def test_the_library_that_is_missing_is_named(monkeypatch):
    """Without obstore, a URL is an error that says what to install."""
    monkeypatch.setattr(remote_folder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tolpack.ConfigError, match=r"pip install 'tolpack\[remote\]'"):
        tolpack.open(URLS["s3"])


def test_a_bucket_may_be_a_folder_of_parts(s3, wide, tmp_path):
    """The URL of a bucket names the manifest in it, with a slash at its end and without."""
    tolpack.split(wide.path, tmp_path / "parts")
    for path in (tmp_path / "parts").iterdir():
        s3.objects[f"bucket/{path.name}"] = path.read_bytes()
    for url in ("s3://bucket", "s3://bucket/"):
        with tolpack.open(url) as pack, tolpack.open(wide.path) as one:
            assert np.array_equal(pack.rows([1, 5]), one.rows([1, 5]))


def test_closing_ends_reads(s3, wide):
    """A closed pack reads nothing more."""
    put(s3, wide)
    pack = tolpack.open(URLS["s3"])
    pack.close()
    with pytest.raises(tolpack.FileAccessError, match="closed"):
        pack.rows([1])


def test_a_file_of_known_size_is_compared_with_it(s3, wide):
    """A file whose size is known is not looked at until it is read; then its size must be right."""
    put(s3, wide)
    folder = remote_folder.RemoteFolder("s3://bucket/folder")
    size = len(wide.data)
    right = RemoteFile(folder, "model.tolpack", size=size)
    assert s3.requests == []
    assert bytes(right.read(10, 20)) == wide.data[10:30]
    for wrong, code in ((size - 1, "trailing-bytes"), (size + 1, "truncated")):
        one = RemoteFile(folder, "model.tolpack", size=wrong)
        with pytest.raises(tolpack.FormatError, match=code):
            one.read(10, 20)
    beyond = RemoteFile(folder, "model.tolpack", size=size + 100)
    with pytest.raises(tolpack.FormatError, match="truncated"):
        beyond.read(size + 10, 20)


def test_end_to_end_order_reads_ahead(s3, wide, monkeypatch):
    """Verification asks for the file once, in long ranges."""
    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        s3.requests.clear()
        assert pack.verify() == []
        asked = sum(stop - start for start, stop in s3.ranges())
        assert asked <= len(wide.data) + 65536
        assert len(s3.ranges()) <= 3


def test_forked_children_are_told(s3, wide):
    """A forked child, in which the library's threads are gone, gets an error and does not wait."""
    import multiprocessing

    put(s3, wide)
    with tolpack.open(URLS["s3"]) as pack:
        pack.rows([3])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_in_child, (pack.path,)).get(20)


def _in_child(url):
    try:
        tolpack.open(url)
    except tolpack.FileAccessError as error:
        return "spawn" in str(error)
    return False
