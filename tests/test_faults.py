"""When the system below fails: every call that may, power lost at any moment, kills beside readers.

Whatever fails, the final name shows the old file or the new one, and a later build ends well.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import faults
import numpy as np
import pytest
from packs import RECIPES, TARGET, write

import tolpack
from tolpack.errors import TolpackError

RECIPE = RECIPES["everything"]
MODES = ("auto", "pread", "mmap", "direct", "memory")
ERRORS = (errno.EIO, errno.ENOSPC)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Bytes of the pack that is replaced."""
    return write(tmp_path_factory.mktemp("old") / "pack", TARGET).data


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Bytes of the pack that replaces it."""
    return write(tmp_path_factory.mktemp("new") / "pack", RECIPE).data


def under(fail, calls, run):
    """Run with calls that fail: it may end in an error of ours, if one of them did."""
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, calls)
        try:
            run()
        except TolpackError:
            assert calls.failed


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("lasting", [False, True])
def test_every_call_of_a_build_may_fail(error, lasting, old, new, tmp_path):
    """Let the n-th call fail, alone or with all that follow, for every n: an error of ours or a
    pack, the old file or the new one, and a resumed build gives the same bytes.
    """
    path = tmp_path / "pack"
    for at in range(1, 1000):
        faults.lay_out(tmp_path, {"pack": old})
        calls = faults.Calls(at, error, every=lasting)
        under(faults.fail_writing, calls, lambda: write(path, RECIPE))
        assert path.read_bytes() in (old, new)
        if not calls.failed:
            break
        assert write(path, RECIPE, resume=True).data == new
        assert os.listdir(tmp_path) == ["pack"]
    assert at > 40


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_every_call_of_a_resumed_build_may_fail(stop_after, old, new, tmp_path):
    """As above, for a build that continues an interrupted one."""
    from packs import Stopped

    path = tmp_path / "pack"
    for at in range(1, 1000):
        faults.lay_out(tmp_path, {"pack": old})
        with pytest.raises(Stopped):
            write(path, RECIPE, stop_after=stop_after)
        calls = faults.Calls(at)
        under(faults.fail_writing, calls, lambda: write(path, RECIPE, resume=True))
        assert path.read_bytes() in (old, new)
        if not calls.failed:
            break
        assert write(path, RECIPE, resume=True).data == new
    assert at > 10


def test_every_call_of_a_whole_build_may_fail(tmp_path):
    """As above, through `tolpack.build` of a table; and of `tolpack.convert` back."""
    table, folder = tmp_path / "t.npy", tmp_path / "out"
    np.save(table, np.random.default_rng(0).normal(size=(300, 2, 16)).astype(np.float32))
    np.save(tmp_path / "counts.npy", np.arange(300))
    folder.mkdir()
    settings = {"bits": 8, "frequencies": tmp_path / "counts.npy"}
    expected = tolpack.build(table, folder / "p", **settings).path.read_bytes()
    rows = tolpack.convert(folder / "p", folder / "r.npy").path.read_bytes()
    for name, wanted, run in (
        ("p", expected, lambda: tolpack.build(table, folder / "p", force=True, **settings)),
        ("r.npy", rows, lambda: tolpack.convert(tmp_path / "p", folder / "r.npy", force=True)),
    ):
        (tmp_path / "p").write_bytes(expected)
        for at in range(1, 1000):
            faults.lay_out(folder, {name: b"old"})
            calls = faults.Calls(at)
            under(faults.fail_writing, calls, run)
            assert (folder / name).read_bytes() in (b"old", wanted)
            if not calls.failed:
                break
        assert at > 5
        assert (folder / name).read_bytes() == wanted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["everything", "hot-and-cold", "runs"])
def test_every_call_of_a_reader_may_fail(mode, name, samples):
    """Opening, looking up and verifying: an error of ours or right rows; afterwards all is well."""
    path = samples[name].path
    with tolpack.open(path) as pack:
        ids = np.arange(min(pack.vocab_size, 50))
        expected = pack.rows(ids)

    def use():
        with tolpack.open(path, io=mode) as pack:
            one = pack.rows(ids[-1:])
            assert np.array_equal(one, expected[-1:])
            assert np.array_equal(pack.rows(ids), expected)
            assert pack.verify() == [] or calls.failed

    for at in range(1, 2000):
        calls = faults.Calls(at)
        under(faults.fail_reading, calls, use)
        if not calls.failed:
            break
    assert at > 3
    use()


def test_a_lookup_that_failed_leaves_a_pack_that_works(samples):
    """After each fault the same open pack gives right rows: nothing half-read is kept."""
    with tolpack.open(samples["everything"].path, cache="1MB") as pack:
        expected = pack.rows(range(pack.vocab_size))
    for at in range(1, 1000):
        calls = faults.Calls(at)
        with tolpack.open(samples["everything"].path, cache="1MB") as pack:
            under(faults.fail_reading, calls, lambda: pack.rows(range(pack.vocab_size)))
            assert np.array_equal(pack.rows(range(pack.vocab_size)), expected)
        if not calls.failed:
            break
    assert at > 5


@pytest.mark.parametrize("resumed", [False, True])
def test_power_lost_at_any_moment(resumed, old, new, tmp_path, monkeypatch):
    """After each change that a build makes to the disk the power is lost, some ways each: the final
    name shows the old pack or the new one, and a resumed build gives the new one, or says why not.
    """
    from packs import Stopped

    folder, path = tmp_path / "disk", tmp_path / "disk" / "pack"
    folder.mkdir()
    path.write_bytes(old)
    if resumed:
        with pytest.raises(Stopped):
            write(path, RECIPE, stop_after=4)
    with monkeypatch.context() as patch:
        disk = faults.Disk(folder, patch)
        assert write(path, RECIPE, resume=resumed).data == new
    assert len(disk.changes) > 20
    luck, seen = random.Random(0), set()
    for count in range(len(disk.changes) + 1):
        for _ in range(3):
            files = disk.after_loss(count, luck)
            assert files["pack"] in (old, new)
            seen.add(files["pack"] == new)
            faults.lay_out(folder, files)
            assert write(path, RECIPE, resume=True).data == new
            assert os.listdir(folder) == ["pack"]
    assert seen == {False, True}


def test_the_disk_that_loses_power_finds_what_is_missing(old, tmp_path, monkeypatch):
    """A writer that does not sync before it renames is caught: the check above can fail."""
    monkeypatch.setattr("tolpack.container.atomic_write.sync", lambda file: file.flush())
    monkeypatch.setattr("tolpack.container.local_sink.sync", lambda file: file.flush())
    path = tmp_path / "pack"
    path.write_bytes(old)
    with monkeypatch.context() as patch:
        disk = faults.Disk(tmp_path, patch)
        new = write(path, RECIPE).data
    luck = random.Random(0)
    found = [disk.after_loss(len(disk.changes), luck)["pack"] for _ in range(20)]
    assert any(content not in (old, new) for content in found)


WRITER = """
import random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from packs import RECIPES, TARGET, write
while True:
    write(Path(sys.argv[2]), random.choice((RECIPES["everything"], TARGET)))
"""


def test_kills_beside_live_readers(old, new, tmp_path):
    """While writers of one output are killed at random moments, readers see one pack or another."""
    path = tmp_path / "pack"
    path.write_bytes(old)
    expected = {}
    for data in (old, new):
        (tmp_path / "whole").write_bytes(data)
        with tolpack.open(tmp_path / "whole") as pack:
            expected[pack.vocab_size] = pack.rows(range(pack.vocab_size))
    ended, wrong, reads = threading.Event(), [], [0]

    def reading():
        while not ended.is_set():
            try:
                with tolpack.open(path) as pack:
                    rows = pack.rows(range(pack.vocab_size))
                    again = pack.rows(range(pack.vocab_size))
                if not (rows == again).all() or not (rows == expected[len(rows)]).all():
                    wrong.append(len(rows))
            except TolpackError as error:
                wrong.append(error)
            reads[0] += 1

    readers = [threading.Thread(target=reading) for _ in range(2)]
    for thread in readers:
        thread.start()
    luck = random.Random(1)
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(path)]
    for _ in range(6):
        writer = subprocess.Popen(command)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(1 + luck.random() / 2)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    ended.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert reads[0] > 20
    write(path, RECIPE)
    assert path.read_bytes() == new
