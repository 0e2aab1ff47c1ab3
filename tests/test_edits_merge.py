"""``tolpack merge``: one pack of a pack and its edits."""

import json
import os
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner
from edited_packs import NAMES, edit, equal, expected, fields_of, new_rows, sample_pack, some_ids
from packs import SHAPES, write

import tolpack
from tolpack.cli import main
from tolpack.container.verified_reader import Container
from tolpack.edits.write_edits import write_edits
from tolpack.errors import ChecksumError, ConfigError
from tolpack.reading.block_decompression import decompress_block


@pytest.fixture
def pack(tmp_path):
    """An open pack without edits."""
    with sample_pack(tmp_path) as opened:
        yield opened


def run(*arguments):
    """Run a command line in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def blocks(container):
    """Yield chunk, block, its slots, payload and records of a container's table."""
    for number, view in enumerate(container.chunks):
        for block in range(view.blocks):
            first = view.first_slot + block * view.rows_per_block
            payload = container.block(number, block)
            records = decompress_block(container, payload, number, block)
            yield view, range(first, first + view.block_rows(block)), bytes(payload), records


def assert_others_are_untouched(before, after, slots):
    """Records of slots that are not edited have the same bytes; so have payloads of whole blocks
    without an edited slot, and those of frames of several rows.
    """
    with closing(Container.open(before)) as a, closing(Container.open(after)) as b:
        for (view, rows, payload, records), (_, _, new, found) in zip(blocks(a), blocks(b)):
            edited = [slot in slots for slot in rows]
            assert np.array_equal(records[~np.array(edited)], found[~np.array(edited)])
            if not any(edited) or (view.encoding.is_compressed and len(rows) > 1):
                assert payload == new


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_pack_has_the_edited_rows(name, tmp_path):
    """Later edits win, also over those of a pack that was merged before; all is in order by
    ``verify``, and what is not edited keeps its bytes.
    """
    with sample_pack(tmp_path, name) as pack:
        every, exact = np.arange(pack.vocab_size), not pack.decoder.has_basis
        first, second = (edit(pack, tmp_path / f"{n}.edits", n) for n in (0, 1))
        tolpack.merge(pack.path, [first[0], second[0]], tmp_path / "m")
        wanted = expected(pack, every, first[1:], second[1:])
        with tolpack.open(tmp_path / "m") as merged:
            assert merged.verify() == []
            assert equal(fields_of(merged, every), wanted, exact)
            assert equal(fields_of(merged, second[1]), expected(pack, *second[1:2], second[1:]))
            assert merged.edited_tokens.tolist() == sorted({*first[1], *second[1]})
            assert merged.tables == pack.tables
            slots = set(pack.slots(merged.edited_tokens).tolist())
            third = edit(merged, tmp_path / "2.edits", 2)
        assert_others_are_untouched(pack.path, tmp_path / "m", slots)
        tolpack.merge(tmp_path / "m", [third[0]], tmp_path / "n")
        with tolpack.open(tmp_path / "n") as merged:
            assert merged.verify() == []
            wanted = expected(pack, every, first[1:], second[1:], third[1:])
            assert equal(fields_of(merged, every), wanted, exact)


def test_packs_of_auto_bits_and_ranks_keep_all_other_bytes(memoryllm, token_ids, tmp_path):
    """Rows that are right together stay as they are, but for edited tokens."""
    path = tmp_path / "auto.tolpack"
    tolpack.build(memoryllm, path, bits="auto", rank="auto", calibrate=token_ids)
    with tolpack.open(path) as pack:
        every = np.arange(pack.vocab_size)
        edits, ids, rows = edit(pack, tmp_path / "e", ids=some_ids(pack, most=9))
        tolpack.merge(path, [edits], tmp_path / "m")
        assert_others_are_untouched(path, tmp_path / "m", set(pack.slots(ids).tolist()))
        with tolpack.open(tmp_path / "m") as merged:
            others = np.setdiff1d(every, ids)
            assert np.array_equal(merged.rows(others), pack.rows(others))
            assert np.array_equal(merged.rows(ids), np.stack(rows, axis=1))


@pytest.mark.parametrize(
    ("name", "gone"),
    [("int8", True), ("f16", True), ("runs", False), ("bf16", False), ("ans-basis", True)],
)
def test_old_rows_are_blanked_where_no_other_is_touched(name, gone, tmp_path):
    """In records that are not compressed, and in frames of one row; else they are counted."""
    with sample_pack(tmp_path, name) as pack:
        edits, ids, _ = edit(pack, tmp_path / "e")
        slots = set(pack.slots(ids).tolist())
        found = tolpack.merge(pack.path, [edits], tmp_path / "m")
    old = 0
    with closing(Container.open(tmp_path / "m")) as container:
        for _, rows, _, records in blocks(container):
            old += sum(bool(records[n].any()) for n, slot in enumerate(rows) if slot in slots)
    assert (found.old_rows_left == 0) == gone
    assert old <= found.old_rows_left
    assert found.edited_tokens == {"tols": len(ids)}


def test_all_tables_of_a_pack_keep_their_edits(tmp_path):
    """One table is edited, the others are copied; then another one is edited."""
    path = write(tmp_path / "p.tolpack", SHAPES["two-tables"]).path
    with tolpack.open(path, table="layer.1") as first, tolpack.open(path, table="layer.15") as last:
        edits, ids, rows = edit(first, tmp_path / "a")
        tolpack.merge(path, [edits], tmp_path / "m")
        with tolpack.open(tmp_path / "m", table="layer.15") as merged:
            assert merged.tables == first.tables
            assert merged.edited_tokens.size == 0
            again, other, new = edit(merged, tmp_path / "b", 1)
        tolpack.merge(tmp_path / "m", [again], tmp_path / "n")
        for plain, edited in ((first, (ids, rows)), (last, (other, new))):
            with tolpack.open(tmp_path / "n", table=plain.table) as merged:
                every = np.arange(plain.vocab_size)
                assert equal(fields_of(merged, every), expected(plain, every, edited))
                assert merged.verify() == []


def test_the_same_inputs_give_the_same_bytes(pack, tmp_path):
    """Wherever they are; other edits, or another order, another pack id."""
    a, b = (edit(pack, tmp_path / f"{n}.edits", n)[0] for n in (0, 1))
    (tmp_path / "moved").write_bytes(a.read_bytes())
    found = []
    for number, edits in enumerate(([a, b], [tmp_path / "moved", b], [b, a], [a])):
        tolpack.merge(pack.path, edits, tmp_path / f"m{number}")
        found.append((tmp_path / f"m{number}").read_bytes())
    assert found[0] == found[1]
    assert len({one[40:48] for one in found}) == 3


@pytest.mark.parametrize(("bits", "codecs"), [((16, 16), {"f16"}), ((16, 32), {"f32"})])
def test_numbers_of_16_bits_stay_so_if_all_are(bits, codecs, pack, tmp_path):
    """Else all become float32, which holds them."""
    made = [edit(pack, tmp_path / f"{n}", n, bits=one) for n, one in enumerate(bits)]
    paths = [path for path, _, _ in made]
    tolpack.merge(pack.path, paths, tmp_path / "m")
    every = np.arange(pack.vocab_size)
    with tolpack.open(tmp_path / "m") as merged, tolpack.open(pack.path, edits=paths) as edited:
        assert np.array_equal(merged.rows(every), edited.rows(every))
        encodings = merged.edits.encodings
        assert {part.codec for one in encodings for parts in one.fields for part in parts} == codecs


def test_packs_in_parts_are_merged_to_one_file(pack, tmp_path):
    """The same file as of the joined pack; and merged packs can be cut into parts."""
    edits, ids, rows = edit(pack, tmp_path / "e")
    tolpack.split(pack.path, tmp_path / "parts", part_size="64KB")
    for base, output in ((pack.path, "a"), (tmp_path / "parts", "b")):
        tolpack.merge(base, [edits], tmp_path / output)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tolpack.split(tmp_path / "a", tmp_path / "again", part_size="64KB")
    tolpack.join(tmp_path / "again", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
    with tolpack.open(tmp_path / "again") as parts:
        assert equal(fields_of(parts, ids), expected(pack, ids, (ids, rows)))
        assert parts.verify() == []


def test_edits_of_the_pack_do_not_fit_the_merged_one(pack, tmp_path):
    """It is another pack."""
    edits, _, _ = edit(pack, tmp_path / "e")
    tolpack.merge(pack.path, [edits], tmp_path / "m")
    with pytest.raises(ConfigError, match="edits of another pack"):
        tolpack.open(tmp_path / "m", edits=[edits])


def test_nothing_is_left_of_a_damaged_pack(pack, tmp_path):
    """Every checksum is compared before a new one is computed."""
    edits, _, _ = edit(pack, tmp_path / "e")
    with open(pack.path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ChecksumError):
        tolpack.merge(pack.path, [edits], tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["e", "int8.tolpack"]


def test_outputs_replace_nothing_unasked(pack, tmp_path):
    """Neither a file that is there, nor an input."""
    edits, _, _ = edit(pack, tmp_path / "e")
    (tmp_path / "there").write_bytes(b"x")
    with pytest.raises(ConfigError, match="exists: use --force"):
        tolpack.merge(pack.path, [edits], tmp_path / "there")
    for own in (pack.path, edits):
        with pytest.raises(ConfigError, match="one of the inputs"):
            tolpack.merge(pack.path, [edits], own, force=True)
    with pytest.raises(ConfigError, match="no edits are named"):
        tolpack.merge(pack.path, [], tmp_path / "m")
    tolpack.merge(pack.path, [edits], tmp_path / "there", force=True)
    assert tolpack.open(tmp_path / "there").edited_tokens.size


def test_the_command_says_what_it_wrote(tmp_path):
    """Bytes, edited tokens, and old rows that are left."""
    with sample_pack(tmp_path, "bf16") as pack:
        write_edits(pack, tmp_path / "e", [1, 4], {pack.table: new_rows(pack, [1, 4])})
        found = run("merge", pack.path, tmp_path / "e", "-o", tmp_path / "m")
        assert "2 edited tokens; 2 old rows of them still in the file" in found.stdout
        found = run("merge", pack.path, tmp_path / "e", "-o", tmp_path / "m", "--force", "--json")
        value = json.loads(found.stdout)
        assert value["edited_tokens"] == {"tols": 2}
        assert value["bytes"] == (tmp_path / "m").stat().st_size
        assert run("merge", pack.path, "-o", tmp_path / "m").exit_code == 2
        assert (
            run("verify", tmp_path / "m").exit_code == run("verify", tmp_path / "e").exit_code == 0
        )
