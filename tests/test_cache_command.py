"""`tolpack cache`: what is listed, what is removed, and what never is."""

import json
import os
import time

import pytest
from click.testing import CliRunner

from tolpack.cli import main
from tolpack.container.extent_cache import ExtentCache
from tolpack.container.local_sink import LocalSink
from tolpack.runtime.disk_cache import cached_file, keep_file, kept_name
from tolpack.storage.local_folder import LocalFolder
from tolpack.workspace.kept_files import find_kept

DAY = 86400


def run(*args):
    """Run ``tolpack cache`` in this process."""
    return CliRunner().invoke(main, ["cache", *map(str, args)])


def listed(*args):
    """Return the JSON of a run that must succeed."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def kinds(*args):
    """Return the kinds of all files that are listed."""
    return [one["kind"] for one in listed(*args)["files"]]


def keep(kind, digit="a", size=100, age=0.0):
    """Keep a file of a kind in the cache, written `age` seconds ago; returns it."""
    path = cached_file(kept_name(kind, digit * 64))
    assert keep_file(path, lambda file: file.write(bytes(size)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def begin_pack(path):
    """Begin to write a pack; returns its open sink."""
    sink = LocalSink(path, "key", resume=False, replace=False)
    sink.begin(0)
    sink.write(64, [b"rows"])
    return sink


def let_age(folder, seconds=3700):
    """Make all files of a folder as old as if they had been written so long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one; the cache is another one."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# -- the cache -----------------------------------------------------------------------------------


def test_every_kind_of_the_cache_is_listed(tmp_path):
    """With its size and age; the totals and the folder stand below."""
    one = keep("calibration", size=1968)
    keep("measurement", "a", age=3 * DAY)
    keep("measurement", "b", age=5 * DAY)
    cache = ExtentCache(tmp_path / "cache" / "remote", 1 << 20)
    cache.keep("file", [(0, 4)], [memoryview(b"rows")])
    del cache
    found = listed()
    assert [item["kind"] for item in found["files"]] == [
        "calibration", "measurement", "measurement", "remote",
    ]  # fmt: skip
    assert found["folder"] == str(tmp_path / "cache")
    first, newer, older, remote = found["files"]
    assert (first["path"], first["bytes"], first["files"]) == (str(one), 2000, [str(one)])
    assert newer["age_seconds"] == pytest.approx(3 * DAY, abs=60)
    assert older["age_seconds"] == pytest.approx(5 * DAY, abs=60)
    assert [name.rpartition(".")[2] for name in remote["files"]] == ["bytes", "entries"]
    assert found["bytes"] == sum(item["bytes"] for item in found["files"])
    lines = run().stdout.splitlines()
    assert lines[0].split() == ["kind", "size", "age", "path"]
    assert lines[2].split()[:3] == ["calibration", "2.00", "KB"]
    assert lines[3].split()[3:5] == ["3", "d"]
    assert "kept, measurement: 2 files, 264 B" in lines
    assert any(line.startswith("kept, in all: 5 files, ") for line in lines)
    assert lines[-2] == (
        f"The cache is {tmp_path / 'cache'}; the variable TOLPACK_CACHE names another folder."
    )
    assert lines[-1].startswith("tolpack cache --clear KIND removes files of a kind (calibration, ")


def test_a_kind_is_removed_and_no_other():
    """The result says what and how many bytes; a second time there is nothing."""
    first, other = keep("calibration", size=1968), keep("measurement")
    result = run("--clear", "calibration")
    assert (result.exit_code, result.stdout) == (0, "removed, calibration: 1 file, 2.00 KB\n")
    assert (first.exists(), other.exists()) == (False, True)
    assert run("--clear", "calibration").stdout == "removed: nothing\n"
    found = listed("--clear", "measurement")
    assert (found["files"], found["removed_bytes"]) == ([], 132)
    assert [one["path"] for one in found["removed"]] == [str(other)]


def test_all_of_the_cache_is_removed_but_no_pack(folder):
    """An unfinished pack may be worth hours: it has to be named."""
    keep("calibration")
    keep("measurement")
    begin_pack(folder / "p.tolpack").close(failed=True)
    run("--clear", "cache")
    assert kinds() == ["partial"]


def test_only_what_is_older():
    """--older-than counts for the list and for what is removed."""
    keep("measurement", "a", age=3 * DAY)
    young = keep("measurement", "b", age=DAY)
    assert len(kinds("--older-than", "2d")) == 1
    assert len(kinds("--older-than", "12h")) == 2
    assert kinds("--older-than", "1w") == []
    run("--clear", "cache", "--older-than", "2d")
    assert [one["path"] for one in listed()["files"]] == [str(young)]


def test_files_that_are_not_ours_are_left(tmp_path):
    """Other names, and folders and links of our names."""
    ours = keep("calibration")
    folder = ours.parent
    for name in ("calibration-.metrics", "measured-1.json", "notes.txt", "tmpabc"):
        (folder / name).write_text("mine")
    (folder / kept_name("measurement", "c" * 64)).mkdir()
    (folder / kept_name("measurement", "d" * 64)).symlink_to(folder / "notes.txt")
    assert kinds() == ["calibration"]
    run("--clear", "cache")
    assert len(list(folder.iterdir())) == 6


def test_what_a_killed_writer_left_and_what_one_writes_now(tmp_path):
    """The file of a writer that is at work is in use."""
    path = cached_file(kept_name("calibration", "a" * 64))

    def look(file):
        (one,) = find_kept()
        assert (one.kind, one.in_use, one.remove()) == ("unfinished", True, False)
        file.write(b"metrics")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_file(path, look)
    assert kinds() == []
    (path.parent / ".tolpack-unfinished-abc").write_bytes(b"metri")
    assert kinds() == ["unfinished"]
    assert run("--clear", "unfinished").stdout == "removed, unfinished: 1 file, 5 B\n"


def test_a_segment_that_a_process_appends_to_is_in_use(tmp_path):
    """Once it has ended it can be removed, with its entries."""
    cache = ExtentCache(tmp_path / "cache" / "remote", 1 << 20)
    cache.keep("file", [(0, 4)], [memoryview(b"rows")])
    assert listed("--clear", "remote")["removed"] == []
    del cache
    assert len(listed("--clear", "remote")["removed"]) == 1
    assert list((tmp_path / "cache" / "remote").iterdir()) == []


def test_without_a_cache(monkeypatch):
    """Where nothing is kept there is nothing to list."""
    monkeypatch.setenv("TOLPACK_CACHE", "off")
    assert run().stdout == "kept: nothing\n\nTOLPACK_CACHE is off: nothing is kept.\n"
    assert listed()["folder"] is None


# -- interrupted builds --------------------------------------------------------------------------


def test_an_interrupted_build_is_listed_and_removed(folder):
    """Its pack, its journal, and the part files of its workers; not what else is there."""
    begin_pack(folder / "p.tolpack").close(failed=True)
    parts = folder / "p.tolpack.parts"
    parts.mkdir()
    for name in ("0" * 64 + ".part", "1" * 64 + ".job", f"{'2' * 64}-3-{'4' * 64}.sums"):
        (parts / name).write_bytes(b"part")
    (parts / "mine.part").write_bytes(b"mine")
    let_age(folder)
    (one,) = listed()["files"]
    assert (one["kind"], one["path"]) == ("partial", "p.tolpack.partial")
    assert (len(one["files"]), one["in_use"]) == (5, False)
    assert "tolpack build --resume continues a partial pack." in run().stdout
    assert run("--clear", "partial").stdout.startswith("removed, partial: 5 files, ")
    assert [path.name for path in folder.iterdir()] == ["p.tolpack.parts"]
    assert [path.name for path in parts.iterdir()] == ["mine.part"]


def test_a_build_that_was_killed_at_its_begin(folder):
    """Its two files are empty; one empty file alone may be anyone's."""
    (folder / "p.tolpack.partial").touch()
    assert kinds() == []
    (folder / "p.tolpack.partial.journal").touch()
    assert run("--clear", "partial").stdout == "removed, partial: 2 files, 0 B\n"
    assert list(folder.iterdir()) == []


def test_a_folder_is_named(folder, tmp_path):
    """Only the folders that are named are searched, and the cache."""
    (tmp_path / "other").mkdir()
    begin_pack(tmp_path / "other" / "p.tolpack").close(failed=True)
    keep("calibration")
    assert kinds() == ["calibration"]
    assert kinds(tmp_path / "other", tmp_path / "other") == ["calibration", "partial"]


def test_a_running_build_is_in_use(folder):
    """Nothing of it is removed while its writer lives; afterwards it is."""
    sink = begin_pack(folder / "p.tolpack")
    parts = folder / "p.tolpack.parts"
    parts.mkdir()
    (parts / ("0" * 64 + ".part")).write_bytes(b"part")
    assert listed()["files"][0]["in_use"]
    result = run("--clear", "partial")
    assert "p.tolpack.partial (in use)" in result.stdout
    assert result.stdout.endswith("removed: nothing\n")
    assert len(list(folder.iterdir())) == 3
    sink.close(failed=True)
    let_age(folder)
    assert run("--clear", "partial").stdout.startswith("removed, partial: 3 files, ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("name", ["1" * 64 + ".job", f"{'2' * 64}-3-{'4' * 64}.sums"])
def test_a_build_that_has_not_locked_its_pack_yet_is_in_use(folder, name, resumed):
    """Its workers measure losses before: for an hour its jobs and sums are left, and so is the pack
    that it is going to continue.
    """
    if resumed:
        begin_pack(folder / "p.tolpack").close(failed=True)
    file = folder / "p.tolpack.parts" / name
    file.parent.mkdir()
    file.write_bytes(b"job")
    let_age(folder, 3500)
    before = sorted(folder.rglob("*"))
    found = listed("--clear", "partial")
    assert (found["removed"], [one["in_use"] for one in found["files"]]) == ([], [True])
    assert sorted(folder.rglob("*")) == before
    let_age(folder, 3700)
    assert len(listed("--clear", "partial")["removed"]) == 1
    assert list(folder.iterdir()) == []


def test_a_build_continues_after_a_listing(folder):
    """Listing locks files for a moment only, and changes nothing."""
    begin_pack(folder / "p.tolpack").close(failed=True)
    assert kinds() == ["partial"]
    sink = LocalSink(folder / "p.tolpack", "key", resume=True, replace=False)
    sink.close(failed=True)
    assert kinds() == ["partial"]


def test_partial_files_of_others_are_left(folder):
    """Those of browsers, links, and folders that are whole packs in parts."""
    (folder / "film.mp4.partial").write_bytes(b"film")
    begin_pack(folder / "p.tolpack").close(failed=True)
    (folder / "p.tolpack.partial").rename(folder / "real")
    (folder / "p.tolpack.partial.journal").unlink()
    (folder / "p.tolpack.partial").symlink_to(folder / "real")
    whole = folder / "whole.parts"
    whole.mkdir()
    (whole / ("0" * 64 + ".part")).write_bytes(b"part")
    (whole / "manifest.json").write_text("{")
    assert kinds() == []


def test_links_are_not_followed(folder, tmp_path):
    """Neither a link that has the name of a folder of parts, nor links in such a folder."""
    other = tmp_path / "other"
    other.mkdir()
    name = "0" * 64 + ".part"
    (other / name).write_bytes(b"part")
    let_age(other)
    (folder / "link.tolpack.parts").symlink_to(other)
    assert kinds() == []
    (folder / "p.tolpack.parts").mkdir()
    (folder / "p.tolpack.parts" / name).symlink_to(other / name)
    (folder / ("1" * 64 + ".part")).symlink_to(other / name)
    assert kinds() == []
    for kind in ("partial", "parts"):
        run("--clear", kind)
    assert (other / name).read_bytes() == b"part"
    assert len(list(folder.rglob("*"))) == 4
    assert kinds(other) == ["parts"]


def test_part_files_without_a_manifest(folder):
    """Count as in use for an hour, since nobody locks them."""
    for number, age in ((0, 2 * 3600), (1, 1.5 * 3600)):
        path = folder / (str(number) * 64 + ".part")
        path.write_bytes(b"part")
        os.utime(path, (time.time() - age,) * 2)
    (one,) = listed()["files"]
    assert (one["kind"], len(one["files"]), one["in_use"]) == ("parts", 2, False)
    path.touch()
    assert listed("--clear", "parts")["removed"] == []
    os.utime(path, (time.time() - 4000,) * 2)
    assert len(listed("--clear", "parts")["removed"]) == 1
    assert list(folder.iterdir()) == []


def test_unfinished_files_of_others_are_left(folder):
    """Hidden files are removed only if their names have the digits that tolpack gives them."""
    theirs = [".unfinished-notes.txt", ".unfinished-", f".unfinished-{'a' * 31}g",
              f".unfinished-{'a' * 33}"]  # fmt: skip
    for name in theirs:
        (folder / name).write_text("mine")
    with LocalFolder(folder).temporary() as written:
        ours = written.name
    (folder / ours).write_bytes(b"part")
    let_age(folder)
    assert listed("--clear", "parts")["removed"][0]["files"] == [ours]
    assert sorted(path.name for path in folder.iterdir()) == sorted(theirs)


def test_files_that_belong_together_are_listed_by_name(folder):
    """Below the folder or the pack, which --clear removes with them; at most ten of them."""
    begin_pack(folder / "p.tolpack").close(failed=True)
    parts = [f"{number:064x}.part" for number in range(12)]
    for name in parts:
        (folder / name).write_bytes(b"part")
    lines = [line.split() for line in run().stdout.splitlines()]
    begin = next(n for n, line in enumerate(lines) if line[:1] == ["partial"])
    assert lines[begin + 1] == ["p.tolpack.partial.journal"]
    assert lines[begin + 2][0] == "parts"
    assert lines[begin + 3 : begin + 13] == [[name] for name in parts[:10]]
    assert " ".join(lines[begin + 13]) == "and 2 more, which --json lists"


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["--clear", "everything"], "'everything' is not one of 'calibration'"),
        (["--older-than", "30"], "'30' is not an age: expected a number and m, h, d or w"),
        (["--older-than", "-1d"], "is not an age"),
    ],
)
def test_wrong_usage(arguments, message):
    """Removes nothing."""
    keep("calibration")
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert kinds() == ["calibration"]
