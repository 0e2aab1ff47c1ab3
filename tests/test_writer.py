"""Writing packs: atomic, resumable with the same bytes, refused where it would do harm."""

import errno
import fcntl
import os
import re
import resource
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from packs import KEY, RECIPES, TARGET, Stopped, write

import tolpack
from tolpack.codecs.encodings import Encoding, Part
from tolpack.container.blocks import encode_blocks
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError, FileAccessError, TolpackError

RECIPE = RECIPES["everything"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes and number of sections of the pack that every build of `RECIPE` must give."""
    sample = write(tmp_path_factory.mktemp("whole") / "pack", RECIPE)
    return sample.data, len(sample.header.sections)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def stop(path, after, **options):
    with pytest.raises(Stopped):
        write(path, RECIPE, stop_after=after, **options)


def test_a_finished_build_leaves_one_file(tmp_path):
    """After `commit` the folder holds the pack and nothing else."""
    write(tmp_path / "pack", RECIPE)
    assert names(tmp_path) == ["pack"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_input_gives_the_same_bytes(name, tmp_path):
    """Two builds are equal byte for byte."""
    first = write(tmp_path / "a", RECIPES[name]).data
    assert write(tmp_path / "b", RECIPES[name]).data == first


def test_no_final_file_before_commit(tmp_path):
    """While a pack is written, the final name does not exist."""
    with PackWriter(tmp_path / "pack", KEY, 100) as writer:
        writer.add_array("mean", lambda: np.zeros(4, np.float32))
        assert names(tmp_path) == ["pack.partial", "pack.partial.journal"]
    assert "pack" not in names(tmp_path)


def test_an_exception_leaves_no_final_file(tmp_path):
    """A build that fails anywhere leaves nothing under the final name."""
    for after in range(9):  # the last one: everything is written, but nothing committed
        stop(tmp_path / "pack", after)
        assert not (tmp_path / "pack").exists()


def test_a_failed_build_keeps_the_existing_pack(tmp_path):
    """An older pack stays as it was until `commit` replaces it."""
    old = write(tmp_path / "pack", TARGET).data
    stop(tmp_path / "pack", 3)
    assert (tmp_path / "pack").read_bytes() == old
    new = write(tmp_path / "pack", RECIPE)
    assert new.data != old
    assert names(tmp_path) == ["pack"]


def test_a_reader_of_the_replaced_pack_keeps_its_rows(tmp_path):
    """Replacing by rename does not disturb who has the old file open."""
    write(tmp_path / "pack", TARGET)
    with tolpack.open(tmp_path / "pack") as old:
        before = old.rows(range(6))
        write(tmp_path / "pack", RECIPE)
        assert (old.rows(range(6)) == before).all()


def test_discard_removes_what_was_written(tmp_path):
    """After `discard` the folder is empty."""
    with PackWriter(tmp_path / "pack", KEY, 100) as writer:
        writer.add_array("mean", lambda: np.zeros(4, np.float32))
        writer.discard()
    assert names(tmp_path) == []


@pytest.mark.parametrize("after", range(9))
def test_resuming_gives_the_same_bytes(after, tmp_path, whole):
    """A build that is stopped at any section and resumed ends in the same file."""
    data, sections = whole
    assert sections == 8
    stop(tmp_path / "pack", after)
    assert write(tmp_path / "pack", RECIPE, resume=True).data == data
    assert names(tmp_path) == ["pack"]


@pytest.mark.parametrize("first", range(8))
def test_resuming_twice_gives_the_same_bytes(first, tmp_path, whole):
    """A build that is stopped, resumed, stopped again later and resumed ends in the same file."""
    data, sections = whole
    for second in range(first, sections):
        stop(tmp_path / "pack", first)
        stop(tmp_path / "pack", second, resume=True)
        assert write(tmp_path / "pack", RECIPE, resume=True).data == data


def test_resuming_does_not_repeat_finished_sections(tmp_path):
    """Arrays and chunks that were finished are not made again."""
    stop(tmp_path / "pack", 3)
    with PackWriter(tmp_path / "pack", KEY, RECIPE.header_room, resume=True) as writer:
        assert writer.resumed_sections == 3
        number, array = writer.add_array("token_map", lambda: pytest.fail("made again"))
        assert number == 0
        assert sorted(array.tolist()) == list(range(12))


def test_a_build_without_resume_starts_again(tmp_path, whole):
    """A leftover, of whatever key, is overwritten by a build that does not resume it."""
    stop(tmp_path / "pack", 4, key=bytes(32))
    assert write(tmp_path / "pack", RECIPE).data == whole[0]


def _cut_journals(folder, after):
    """Give the journal's text cut at every length of its last line, and without its newline."""
    stop(folder / "pack", after)
    text = (folder / "pack.partial.journal").read_bytes()
    start = text[:-1].rfind(b"\n") + 1
    return [text[:n] for n in sorted({start, start + 1, (start + len(text)) // 2, len(text) - 1})]


@pytest.mark.parametrize("after", [0, 1, 4, 5, 6, 7])
def test_a_cut_off_journal_line_is_written_again(after, tmp_path, whole):
    """A kill in the middle of a journal line costs that section and no more."""
    for text in _cut_journals(tmp_path, after):
        stop(tmp_path / "pack", after)
        (tmp_path / "pack.partial.journal").write_bytes(text)
        assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]


@pytest.mark.parametrize("after", [1, 4, 5, 6])
def test_progress_after_a_cut_off_line_is_kept(after, tmp_path, whole):
    """What a resumed build adds behind a cut-off line is found by the next one."""
    for text in _cut_journals(tmp_path, after):
        stop(tmp_path / "pack", after)
        (tmp_path / "pack.partial.journal").write_bytes(text)
        stop(tmp_path / "pack", after + 1, resume=True)
        with PackWriter(tmp_path / "pack", KEY, RECIPE.header_room, resume=True) as writer:
            assert writer.resumed_sections >= after + 1
        assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]


@pytest.mark.parametrize(
    "journal", [b"", b"\n", b"[]\n", b"junk\n", b'{"key":1', b"\xff\xfe\n", None]
)
def test_a_useless_journal_starts_again(journal, tmp_path, whole):
    """A journal that is missing or unreadable means that nothing can be continued."""
    stop(tmp_path / "pack", 4)
    path = tmp_path / "pack.partial.journal"
    path.unlink() if journal is None else path.write_bytes(journal)
    assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]


@pytest.mark.parametrize(
    "line", [b"[]", b"7", b"{}", b'{"shape": null}', b'{"shape": null, "x": 1}']
)
def test_a_strange_journal_line_starts_again_or_is_refused(line, tmp_path, whole):
    """A line that is JSON but no section never ends in another exception than tolpack's."""
    stop(tmp_path / "pack", 2)
    with open(tmp_path / "pack.partial.journal", "ab") as journal:
        journal.write(line + b"\n")
    try:
        assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]
    except TolpackError as error:
        assert "partial" in str(error)


def test_data_shorter_than_the_journal_starts_again(tmp_path, whole):
    """Where the journal knows more than the data holds, nothing of it is used."""
    stop(tmp_path / "pack", 5)
    partial = tmp_path / "pack.partial"
    partial.write_bytes(partial.read_bytes()[:5000])
    assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]


def test_a_damaged_leftover_is_refused(tmp_path):
    """An array that does not match its journal line is not used."""
    stop(tmp_path / "pack", 5)
    partial = tmp_path / "pack.partial"
    data = bytearray(partial.read_bytes())
    data[4096] ^= 1
    partial.write_bytes(data)
    with pytest.raises(FileAccessError, match="damaged"):
        write(tmp_path / "pack", RECIPE, resume=True)


def test_another_key_is_not_resumed(tmp_path):
    """A leftover of other inputs or settings is refused, and stays."""
    stop(tmp_path / "pack", 4)
    before = (tmp_path / "pack.partial").read_bytes()
    with pytest.raises(ConfigError, match="without --resume"):
        write(tmp_path / "pack", RECIPE, key=bytes(32), resume=True)
    assert (tmp_path / "pack.partial").read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_two_builds_of_one_output_are_refused(resume, tmp_path, whole):
    """A second writer is turned away and does not disturb the first."""
    path = tmp_path / "pack"

    def intrude():
        with pytest.raises(FileAccessError, match="another process"):
            PackWriter(path, KEY, 100, resume=resume)

    def compress(data):
        from tolpack.codecs.frames import compress as plain

        intrude()
        return plain(data)

    assert write(path, RECIPE, compress=compress).data == whole[0]


def test_a_build_that_lost_the_race_for_its_file_is_refused(tmp_path, monkeypatch):
    """Where another build commits between opening and locking, nothing of it is touched."""
    plain = fcntl.flock

    def late(file, operation):
        if not (tmp_path / "pack").exists():
            os.replace(tmp_path / "pack.partial", tmp_path / "pack")
        plain(file, operation)

    stop(tmp_path / "pack", 8)
    data = (tmp_path / "pack.partial").read_bytes()
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileAccessError, match="another process"):
        write(tmp_path / "pack", RECIPE, resume=True)
    assert (tmp_path / "pack").read_bytes() == data


def test_no_room_for_a_name_is_an_access_error(tmp_path, monkeypatch):
    """A disk without room for even the first file gives our error."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(FileAccessError, match="No space left"):
        PackWriter(tmp_path / "pack", KEY, 100)


def test_the_lock_ends_with_the_writer(tmp_path):
    """After a failed build the same output can be built again."""
    stop(tmp_path / "pack", 2)
    write(tmp_path / "pack", RECIPE)


@pytest.mark.parametrize("folder", ["missing/pack", "file/pack"])
def test_an_unwritable_folder_is_an_access_error(folder, tmp_path):
    """A folder that is missing or no folder gives FileAccessError."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileAccessError, match="cannot write"):
        write(tmp_path / folder, RECIPE)


def test_a_folder_in_the_way_is_refused(tmp_path):
    """An output path that is a folder is refused before anything is written."""
    (tmp_path / "pack").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        write(tmp_path / "pack", RECIPE)
    assert names(tmp_path) == ["pack"]


@pytest.mark.parametrize("limit", [4096, 4100, 10_000, 20_000])
def test_a_full_disk_is_an_access_error(limit, tmp_path, whole):
    """Where no more can be written, the build ends in FileAccessError and can be resumed."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limit < len(whole[0])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with pytest.raises(FileAccessError, match="cannot write"):
            write(tmp_path / "pack", RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not (tmp_path / "pack").exists()
    assert write(tmp_path / "pack", RECIPE, resume=True).data == whole[0]


@pytest.mark.parametrize("limit", [4096, 10_000, 20_000])
def test_a_disk_that_fills_up_says_what_is_missing(limit, tmp_path):
    """The error counts what was still to be written when the disk was full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with (
            pytest.raises(FileAccessError, match="more bytes are needed") as caught,
            PackWriter(tmp_path / "pack", KEY, 100) as writer,
        ):
            writer.expect(40_000)
            for _ in range(10):
                writer.add_array("mean", lambda: np.zeros(1000, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    missing = int(re.search(r"([\d,]+) more bytes", str(caught.value))[1].replace(",", ""))
    written = (tmp_path / "pack.partial").stat().st_size
    assert written == (limit if limit > 4096 else len(b"\x89TOLPART"))
    assert missing == 4096 + 40_000 - written
    assert "--resume" in str(caught.value)
    assert names(tmp_path) == ["pack.partial", "pack.partial.journal"]


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path):
    """What is missing is said at once, and nothing stays behind."""
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(FileAccessError, match="its disk lacks") as caught,
        PackWriter(tmp_path / "pack", KEY, 100) as writer,
    ):
        writer.expect(free + 10**12)
    missing = int(re.search(r"lacks ([\d,]+)", str(caught.value))[1].replace(",", ""))
    assert abs(missing - 10**12) < 10**10  # others write to the disk, too
    assert "-o" in str(caught.value)
    assert names(tmp_path) == []


def test_a_disk_too_small_keeps_what_was_computed(tmp_path):
    """Sections that are written already stay for --resume."""
    with (
        pytest.raises(FileAccessError, match="--resume"),
        PackWriter(tmp_path / "pack", KEY, 100) as writer,
    ):
        writer.add_array("mean", lambda: np.zeros(4, np.float32))
        writer.expect(2**60)
    assert names(tmp_path) == ["pack.partial", "pack.partial.journal"]
    with (
        pytest.raises(FileAccessError, match="--resume"),
        PackWriter(tmp_path / "pack", KEY, 100, resume=True) as writer,
    ):
        assert writer.resumed_sections == 1
        writer.expect(2**60)
    with PackWriter(tmp_path / "pack", KEY, 100, resume=True) as writer:
        assert writer.resumed_sections == 1


def test_a_header_longer_than_its_room_is_refused(tmp_path):
    """A header that does not fit gives ConfigError and no final file."""
    recipe = replace(TARGET, header_room=4032, layers=TARGET.layers * 20)
    with pytest.raises(ConfigError, match="header takes"):
        write(tmp_path / "pack", recipe)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("room", [2, 4032, 4033, 20_000, (1 << 20) - 64, 1 << 20, 3 << 20])
def test_any_header_room_gives_a_pack_or_an_error(room, tmp_path):
    """Whatever room is kept, the pack opens, or the writer says that it is too much."""
    try:
        sample = write(tmp_path / "pack", replace(TARGET, header_room=room))
    except ConfigError:
        return
    with tolpack.open(sample.path) as pack:
        assert pack.verify() == []
        assert pack.stats()["open_reads"] <= 2


def test_arrays_of_other_dtypes_are_refused(tmp_path):
    """An array section is one of the format's dtypes."""
    with (
        PackWriter(tmp_path / "pack", KEY, 100) as writer,
        pytest.raises(ConfigError, match="float64"),
    ):
        writer.add_array("mean", lambda: np.zeros(4))


def test_arrays_of_any_order_are_stored_alike(tmp_path):
    """Byte order and strides of what is given do not show in the file."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    files = []
    for number, given in enumerate([array, array.astype(">f4"), np.asfortranarray(array)]):
        with PackWriter(tmp_path / str(number), KEY, 100) as writer:
            writer.add_array("basis", lambda given=given: given)
            files.append((tmp_path / f"{number}.partial").read_bytes())
    assert files[0] == files[1] == files[2]


def test_how_records_are_cut_does_not_show(tmp_path):
    """Records in one array or in several give the same blocks, the last one shorter."""
    records = np.random.default_rng(0).integers(0, 256, (11, 7), np.uint8)
    encoding = Encoding("zstd", 2, ((Part("int8", 3, 2),),))
    files = []
    for number, cuts in enumerate([[11], [4, 6, 1], [2] * 5 + [1]]):
        bounds = np.cumsum([0, *cuts])
        pieces = [records[a:b] for a, b in zip(bounds, bounds[1:])]
        with PackWriter(tmp_path / str(number), KEY, 100) as writer:
            assert writer.add_chunk(
                encoding,
                5,
                partial(encode_blocks, pieces, encoding, 5, writer.pack_id, lambda d: d),
            ) == (0, 1)
            files.append((tmp_path / f"{number}.partial").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("alignment", [4096, 64])
def test_sections_are_aligned_and_gaps_are_zero(alignment, tmp_path):
    """Every section begins at the next multiple of the alignment, with zeros before it."""
    sample = write(tmp_path / "pack", replace(RECIPE, alignment=alignment))
    data, end = sample.data, None
    for section in sample.header.sections:
        assert section.offset_bytes % alignment == 0
        if end is not None:
            assert 0 <= section.offset_bytes - end < alignment
            assert not any(data[end : section.offset_bytes])
        end = section.end_bytes
    assert end == len(data)


def test_no_path_stands_in_the_file(tmp_path):
    """The file does not tell where it was written."""
    folder = tmp_path / "a-name-that-must-not-show"
    folder.mkdir()
    assert b"must-not-show" not in write(folder / "must-not-show", RECIPE).data
