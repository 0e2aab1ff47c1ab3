"""Outputs: nothing that was there is lost, nothing is written through a link, nobody waits."""

import os
import shutil
import stat

import models
import numpy as np
import pytest
from packs import KEY, TARGET, write

import tolpack
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError, FileAccessError
from tolpack.report.page import write_page
from tolpack.report.page_content import Page
from tolpack.runtime.progress import Reporter

CONFIG = models.make_config()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return models.save_pt(folder / "m.pt", models.make_state(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A small pack."""
    return write(tmp_path_factory.mktemp("pack") / "p.tolpack", TARGET).path


@pytest.fixture(params=["build", "convert", "report"])
def writes(request, checkpoint, pack):
    """(name of an output, function that writes it): each way in which files are written."""
    return {
        "build": ("o.tolpack", lambda path: tolpack.build(checkpoint, path, force=True)),
        "convert": ("o.npy", lambda path: tolpack.convert(pack, path, force=True)),
        "report": ("o.html", lambda path: write_page(Page("t", "lead", (), ()), path)),
    }[request.param]


@pytest.mark.parametrize("ending", ["partial", "partial.journal"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_in_the_place_of_unfinished_files_are_not_followed(writes, ending, link, tmp_path):
    """What a link points to keeps its content, whether the output is then refused or written."""
    name, run = writes
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    link(precious, tmp_path / f"{name}.{ending}")
    if ending == "partial" or name == "o.tolpack":
        with pytest.raises(FileAccessError, match="is in the way"):
            run(tmp_path / name)
        assert not (tmp_path / name).exists()
    else:  # these have no journal
        run(tmp_path / name)
    assert precious.read_bytes() == b"precious"
    assert os.path.lexists(tmp_path / f"{name}.{ending}")


def test_a_dangling_link_in_the_place_of_an_unfinished_file_creates_nothing(writes, tmp_path):
    """A link to a name that is free is not a way to have a file made there."""
    name, run = writes
    os.symlink(tmp_path / "elsewhere", tmp_path / f"{name}.partial")
    with pytest.raises(FileAccessError, match="is in the way"):
        run(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("content", [b"precious", b"\x89TOLPACK", b"\0" * 100])
def test_foreign_files_in_the_place_of_unfinished_ones_are_kept(writes, content, tmp_path):
    """A file that no interrupted build left is neither overwritten nor removed."""
    name, run = writes
    (tmp_path / f"{name}.partial").write_bytes(content)
    with pytest.raises(FileAccessError, match="is in the way.*rename it"):
        run(tmp_path / name)
    assert (tmp_path / f"{name}.partial").read_bytes() == content


def test_a_foreign_journal_is_kept(checkpoint, tmp_path):
    """A file with the name of a journal, beside no unfinished pack, is not overwritten."""
    (tmp_path / "o.partial.journal").write_bytes(b"precious")
    with pytest.raises(FileAccessError, match="is in the way"):
        tolpack.build(checkpoint, tmp_path / "o")
    assert (tmp_path / "o.partial.journal").read_bytes() == b"precious"


@pytest.mark.parametrize("ending", ["partial", "partial.journal"])
def test_an_input_with_the_name_of_an_unfinished_pack_is_kept(checkpoint, ending, tmp_path):
    """`-o q --frequencies q.partial` is refused, and the counts are still there."""
    counts = tmp_path / f"q.{ending}"
    with open(counts, "wb") as file:
        np.save(file, np.arange(97))
    before = counts.read_bytes()
    with pytest.raises(ConfigError, match="has the name of what is written before"):
        tolpack.build(checkpoint, tmp_path / "q", frequencies=counts)
    assert counts.read_bytes() == before


def test_a_checkpoint_with_the_name_of_an_unfinished_pack_is_kept(checkpoint, tmp_path):
    """A leftover's name does not make a checkpoint a leftover."""
    moved = tmp_path / "q.partial"
    shutil.copy(checkpoint, moved)
    before = moved.read_bytes()
    with pytest.raises(ConfigError):
        tolpack.build(moved, tmp_path / "q")
    assert moved.read_bytes() == before


def test_pipes_and_devices_are_no_outputs(writes, tmp_path):
    """A FIFO or a device is refused, force or not, and stays what it is; nobody waits for it."""
    name, run = writes
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="is not a regular file"):
        run(tmp_path / name)
    assert stat.S_ISFIFO(os.lstat(tmp_path / name).st_mode)
    (tmp_path / name).unlink()
    os.symlink("/dev/null", tmp_path / name)
    with pytest.raises(ConfigError, match="is not a regular file"):
        run(tmp_path / name)
    assert os.readlink(tmp_path / name) == "/dev/null"


def test_pipes_in_the_place_of_unfinished_files_are_refused(writes, tmp_path):
    """A FIFO with the name of an unfinished file keeps nobody waiting."""
    name, run = writes
    os.mkfifo(tmp_path / f"{name}.partial")
    with pytest.raises(FileAccessError, match="is in the way"):
        run(tmp_path / name)


def test_outputs_have_the_rights_of_any_new_file(writes, tmp_path):
    """What is written may be read and written by whom the umask lets, and executed by nobody."""
    name, run = writes
    run(tmp_path / name)
    (tmp_path / "other").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_nul_in_a_path_is_refused(writes, tmp_path):
    """A path that no file can have is an error of ours."""
    name, run = writes
    with pytest.raises(ConfigError, match="NUL"):
        run(tmp_path / f"a\0{name}")


def test_an_output_that_is_a_link_is_replaced_itself(writes, tmp_path):
    """With force the link becomes the file; what it pointed to stays."""
    name, run = writes
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    os.symlink(precious, tmp_path / name)
    run(tmp_path / name)
    assert not os.path.islink(tmp_path / name)
    assert precious.read_bytes() == b"precious"


def test_a_dangling_link_is_an_existing_output(checkpoint, pack, tmp_path):
    """Without force a link is not replaced, also if it points nowhere."""
    for name, run in (
        ("o.tolpack", lambda path: tolpack.build(checkpoint, path)),
        ("o.npy", lambda path: tolpack.convert(pack, path)),
    ):
        os.symlink(tmp_path / "nowhere", tmp_path / name)
        with pytest.raises(ConfigError, match="exists"):
            run(tmp_path / name)
        assert os.path.islink(tmp_path / name)


def test_a_leftover_killed_before_its_first_bytes_is_continued(tmp_path):
    """An empty or cut-off unfinished pack is one: the next build takes its name."""
    for content in (b"", b"\x89TOL", b"\x89TOLPART"):
        (tmp_path / "p.partial").write_bytes(content)
        assert write(tmp_path / "p", TARGET, resume=True).data == write(tmp_path / "q", TARGET).data


def test_builds_of_one_output_exclude_each_other(tmp_path):
    """While one build writes, another one of the same output is refused, resumed or not."""
    with PackWriter(tmp_path / "p", KEY, 100) as writer:
        writer.add_array("mean", lambda: np.zeros(4, np.float32))
        for resume in (False, True):
            with pytest.raises(FileAccessError, match="another process is writing"):
                PackWriter(tmp_path / "p", bytes(32), 100, resume=resume)
    with PackWriter(tmp_path / "p", KEY, 100, resume=True) as writer:
        assert writer.resumed_sections == 1


def test_a_file_that_appears_during_the_work_needs_force_too(pack, tmp_path):
    """What has taken the output's name meanwhile is kept, and the error says so."""
    for name in ("o.tolpack", "o.npy"):
        path = tmp_path / name

        class Intruder(Reporter):
            def phase(self, *arguments, path=path):
                path.write_bytes(b"precious")
                return super().phase(*arguments)

        with pytest.raises(FileAccessError, match="has appeared while it was written"):
            if name == "o.npy":
                tolpack.convert(pack, path, reporter=Intruder())
            else:
                np.save(tmp_path / "t.npy", np.ones((8, 1, 4), np.float32))
                tolpack.build(tmp_path / "t.npy", path, reporter=Intruder())
        assert path.read_bytes() == b"precious"


def test_an_unfinished_pack_that_was_exchanged_is_not_published(tmp_path):
    """If another file stands under the unfinished name, it does not become the output."""
    with PackWriter(tmp_path / "p", KEY, 100) as writer:
        writer.add_array("mean", lambda: np.zeros(4, np.float32))
        (tmp_path / "other").write_bytes(b"other")
        os.replace(tmp_path / "other", tmp_path / "p.partial")
        with pytest.raises(FileAccessError, match="is another file by now"):
            writer.commit(write(tmp_path / "q", TARGET).header)
    assert not (tmp_path / "p").exists()
