"""Edits that are damaged, or made to deceive: an error of tolpack's, and never wrong rows."""

import numpy as np
import pytest
from edited_packs import edit, equal, expected, fields_of, sample_pack
from edits import change_array, many, set_value
from packs import forge, memory_limit, split

import tolpack
from tolpack.errors import FormatError, TolpackError
from tolpack.pack import open_first_table


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """An open pack without edits."""
    with sample_pack(tmp_path_factory.mktemp("hostile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def made(pack, tmp_path_factory):
    """Edits of it: their bytes, ids, and rows by field."""
    path, ids, rows = edit(pack, tmp_path_factory.mktemp("edits") / "e")
    return path.read_bytes(), ids, rows


def refused(pack, path):
    """Return the code with which a pack with these edits is refused, opened or looked up."""
    with (
        pytest.raises(FormatError) as raised,
        memory_limit(),
        tolpack.open(pack.path, edits=[path]) as edited,
    ):
        edited.rows(range(pack.vocab_size))
    return raised.value.code


EDITS = "tables.0.edits"


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (set_value(path, value), "header-field")
        for path, values in {
            EDITS: (7, "x", [], {}),
            f"{EDITS}.table": ("", 7, None, "\0", "x" * 129),
            f"{EDITS}.rows": (0, -1, 2**48 + 1, 1.0, "10", True, None),
            f"{EDITS}.token_ids": (-1, 3, 2**40, "0", None, 0.0),
            f"{EDITS}.base": ("", "a" * 63, "a" * 65, "A" * 64, "g" * 64, " " * 64, 7, ["a" * 64]),
        }.items()
        for value in values
    ]
    + [
        (set_value(f"{EDITS}.base", None), "edits"),  # in this file, which has no such table
        (set_value(f"{EDITS}.rows", 3), "edits"),  # fewer than are edited
        (set_value(f"{EDITS}.rows", 11), "edits"),  # the pack has ten
        (set_value(f"{EDITS}.token_ids", 1), "section-kind"),
        (set_value(f"{EDITS}.table", "other"), "edits"),
        (set_value("tables.0.fields.1.name", "other"), "edits"),
        (set_value("tables.0.rows", 2**40), "row-count"),
        (
            many(set_value("tables.0.rows", 2**40), set_value("tables.0.chunks.0.rows", 2**40)),
            "index-length",
        ),
        (set_value("sections.0.shape", [2**40]), "array-length"),
        (set_value("sections.0.shape", [2**48, 2**48]), "array-length"),
        (set_value("sections.0.kind", "token_map"), "section-kind"),
        (set_value("sections.0.dtype", "float32"), "array-dtype"),
    ],
)
def test_headers_that_do_not_fit_are_refused(edit, code, pack, made, tmp_path):
    """With the code of their fault, before anything is allocated by a number of theirs."""
    (tmp_path / "e").write_bytes(forge(made[0], edit))
    assert refused(pack, tmp_path / "e") == code


@pytest.mark.parametrize(
    "ids", [(2, 3, 4, 5, 5), (3, 2, 4, 5, 7), (2, 3, 4, 5, 10), (2, 3, 4, 5, 2**32 - 1)]
)
def test_ids_that_are_not_ascending_ids_of_the_table_are_refused(ids, pack, made, tmp_path):
    """When the pack is opened with them; alone they are found by ``verify``."""
    found = change_array(made[0], 0, lambda _: np.array(ids, "<u4").tobytes())
    (tmp_path / "e").write_bytes(found)
    assert refused(pack, tmp_path / "e") == "token-ids"
    with open_first_table(tmp_path / "e") as alone:
        assert {damage.code for damage in alone.verify()} == {"token-ids"}


def test_edits_of_another_shape_with_a_forged_digest_are_refused(made, tmp_path):
    """Fields are compared, not only the digest."""
    for name in ("f16", "mixed-widths", "basis"):
        with sample_pack(tmp_path, name) as other:
            base, rows = other.digest, other.vocab_size
            change = many(set_value(f"{EDITS}.base", base), set_value(f"{EDITS}.rows", rows))
            (tmp_path / "e").write_bytes(forge(made[0], change))
            assert refused(other, tmp_path / "e") == "edits"


def test_edits_of_a_table_that_there_is_not_are_not_merged(pack, made, tmp_path):
    """The result would be a pack without them."""
    (tmp_path / "e").write_bytes(forge(made[0], set_value(f"{EDITS}.table", "other")))
    with pytest.raises(FormatError, match="edits.table"):
        tolpack.merge(pack.path, [tmp_path / "e"], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_no_flipped_bit_gives_wrong_rows(pack, made, tmp_path):
    """One of each byte: an error, or the rows of the edits."""
    data, ids, rows = made
    wanted, refusals = expected(pack, ids, (ids, rows)), 0
    rng = np.random.default_rng(0)
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "e").write_bytes(damaged)
        try:
            with tolpack.open(pack.path, edits=[tmp_path / "e"]) as edited:
                assert equal(fields_of(edited, ids), wanted)
        except TolpackError:
            refusals += 1
    gaps = split(data)[0]["file_length"] - sum(
        s["length_bytes"] for s in split(data)[1]["sections"]
    )
    assert refusals > (len(data) - gaps) / 3


def test_no_length_but_the_right_one_is_taken(pack, made, tmp_path):
    """Cut off anywhere, or with more behind it."""
    for length in (*range(0, len(made[0]), 37), len(made[0]) - 1):
        (tmp_path / "e").write_bytes(made[0][:length])
        assert refused(pack, tmp_path / "e") in ("truncated", "header-checksum")
    (tmp_path / "e").write_bytes(made[0] + b"\0")
    assert refused(pack, tmp_path / "e") == "trailing-bytes"


def test_damaged_edits_in_a_pack_leave_other_tokens_readable(pack, made, tmp_path):
    """They name their place; ``verify`` names their tokens."""
    data, ids, _ = made
    (tmp_path / "e").write_bytes(data)
    tolpack.merge(pack.path, [tmp_path / "e"], tmp_path / "m")
    merged = bytearray((tmp_path / "m").read_bytes())
    blocks = [one for one in split(merged)[1]["sections"] if one["kind"] == "blocks"][-1]
    merged[blocks["offset_bytes"]] ^= 1
    (tmp_path / "m").write_bytes(merged)
    others = np.setdiff1d(np.arange(pack.vocab_size), ids)
    with tolpack.open(tmp_path / "m") as edited:
        assert np.array_equal(edited.rows(others), pack.rows(others))
        with pytest.raises(FormatError, match="of tols edits"):
            edited.rows(ids)
        (damage,) = edited.verify()
        assert damage.table == "tols edits"
        named = [n for first, last in damage.token_ranges for n in range(first, last + 1)]
        assert named == ids.tolist()
