"""Packs of hashed n-grams: from a text to its rows, and what a header may say of the hash."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edits import change_array, rebuilt
from hypothesis import given
from hypothesis import strategies as st
from packs import (
    RECIPES,
    SHAPES,
    Layer,
    Recipe,
    Run,
    int8,
    reference_row_ids,
    split,
    write,
)

import tolpack
from tolpack.cli import main
from tolpack.codecs.encodings import Part
from tolpack.container.header import parse_header
from tolpack.container.ngram_header import MAX_ID, NGrams, check_heads
from tolpack.demo import MODEL
from tolpack.errors import ChecksumError, FileAccessError, FormatError, TokenIdError
from tolpack.model.text import TextTokenizer
from tolpack.ngrams import NGramHash

NGRAMS = RECIPES["ngrams"]
TEXT = [3, 6, 4, 0, 1, 8, 8, 1, 1, 7, 2, 5]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A pack of a table of n-grams with compressed ids and an id that ends a text."""
    return write(tmp_path_factory.mktemp("ngrams") / "p.tolpack", NGRAMS)


def test_a_text_touches_the_rows_of_its_n_grams(sample):
    """`row_ids` gives what loops in Python's integers give, and `lookup` those rows."""
    expected = reference_row_ids(sample.data, TEXT)
    with tolpack.open(sample.path) as pack:
        numbers = pack.row_ids(TEXT)
        assert numbers.dtype == np.int64
        assert np.array_equal(numbers, expected)
        rows = pack.lookup(TEXT)
        assert rows.shape == (len(TEXT), 3, 1, 8)
        assert rows.tobytes() == pack.rows(expected.ravel()).tobytes()
        half = pack.lookup(np.array(TEXT), layers=[0], dtype="float16")
        assert np.array_equal(half, rows.astype(np.float16))
        assert pack.ngrams == NGRAMS.ngrams
        assert "24 rows × 1 of 1 layers" in repr(pack)


@pytest.mark.parametrize("cut", range(1, len(TEXT)))
def test_a_text_goes_on_where_it_stopped(cut, sample):
    """With the ids before it, a piece of a text touches the rows that it has in the whole."""
    with tolpack.open(sample.path) as pack:
        whole = pack.row_ids(TEXT)
        assert np.array_equal(pack.row_ids(TEXT[cut:], TEXT[:cut]), whole[cut:])
        context = TEXT[max(0, cut - pack.ngrams.context) : cut]
        assert np.array_equal(pack.lookup(TEXT[cut:], context), pack.lookup(TEXT)[cut:])


def test_without_n_grams_each_token_has_its_row(samples):
    """Rows of tables of tokens come by the same call, one for each id."""
    with tolpack.open(samples["int8"].path) as pack:
        assert pack.row_ids([3, 0, 3], history=[1]).tolist() == [[3], [0], [3]]
        assert pack.lookup([3, 0, 3]).tobytes() == pack.rows([3, 0, 3]).tobytes()
        assert pack.lookup([3], layers=[2]).shape == (1, 1, 9)
        assert pack.ngrams is None


@pytest.mark.parametrize("ids", [[9], [-1], [0.5], [[1]], [True], [2**31]])
def test_ids_outside_of_the_vocabulary_are_refused(ids, sample):
    """The compressed ids say how many token ids there are; a history is held against them too."""
    with tolpack.open(sample.path) as pack:
        for call in (
            lambda: pack.row_ids(ids),
            lambda: pack.row_ids([0], ids),
            lambda: pack.lookup(ids),
        ):
            with pytest.raises(TokenIdError):
                call()
        assert pack.row_ids([]).shape == (0, 3)
        assert pack.lookup([]).shape == (0, 3, 1, 8)


def test_without_a_map_ids_are_hashed_as_they_are(tmp_path):
    """All ids of 31 bits are then token ids."""
    path = write(tmp_path / "p", SHAPES["two-tables"]).path
    with tolpack.open(path, table="layer.14") as pack:
        ids = [MAX_ID, 0, 2**30 + 1]
        assert np.array_equal(pack.row_ids(ids), reference_row_ids(path.read_bytes(), ids, 1))
        with pytest.raises(TokenIdError):
            pack.row_ids([MAX_ID + 1])


def test_a_closed_pack_gives_no_rows_of_texts(sample):
    """As any other call."""
    pack = tolpack.open(sample.path)
    pack.close()
    with pytest.raises(FileAccessError):
        pack.row_ids(TEXT)


def test_damaged_compressed_ids_harm_texts_alone(sample, tmp_path):
    """Rows are read by number all the same; `verify` names the map."""
    offset = sample.header.sections[0].offset_bytes
    data = bytearray(sample.data)
    data[offset] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    large = change_array(sample.data, 0, lambda old: old[:-4] + (2**31).to_bytes(4, "little"))
    (tmp_path / "large").write_bytes(large)
    for name, kind, code in (
        ("damaged", ChecksumError, "array-checksum"), ("large", FormatError, "id-map"),
    ):  # fmt: skip
        with tolpack.open(tmp_path / name) as pack, tolpack.open(sample.path) as good:
            assert pack.rows(range(24)).tobytes() == good.rows(range(24)).tobytes()
            with pytest.raises(kind) as caught:
                pack.lookup(TEXT)
            assert caught.value.code == code
            (damage,) = pack.verify()
            assert (damage.place, damage.code, damage.rows) == ("compressed ids", code, 24)


@st.composite
def hashes(draw):
    """Any hash that a header may hold, small enough for a table of 64 rows."""
    orders = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    sizes = [draw(st.integers(1, 32)) for _ in orders]
    offsets = [draw(st.integers(0, 64 - size)) for size in sizes]
    most = 2**63 - 1
    multipliers = [draw(st.integers(-most, most)) for _ in range(max(orders))]
    known = draw(st.none() | st.lists(st.integers(0, MAX_ID), min_size=1, max_size=9))
    ids = st.integers(0, 9)
    return NGramHash(
        draw(st.sampled_from(["xor", "sum"])), tuple(orders), tuple(sizes), tuple(offsets),
        tuple(multipliers), draw(ids), draw(st.none() | ids),
        None if known is None else np.array(known, np.uint32),
    )  # fmt: skip


@given(ngrams=hashes(), data=st.data())
def test_any_hash_survives_its_pack(ngrams, data):
    """What was written is what is opened, and rows of texts are those of slow loops."""
    recipe = Recipe(2, (Layer((Part("f32", 2),)),), (Run(64, "raw", 64),), ngrams=ngrams)
    vocab = 10 if ngrams.compressed_ids is None else len(ngrams.compressed_ids)
    text = data.draw(st.lists(st.integers(0, vocab - 1), max_size=12))
    with tempfile.TemporaryDirectory() as folder:
        sample = write(Path(folder) / "p", recipe)
        assert parse_header(sample.header.to_json()) == sample.header
        with tolpack.open(sample.path) as pack:
            assert pack.ngrams == ngrams
            expected = reference_row_ids(sample.data, text).reshape(-1, ngrams.heads)
            assert np.array_equal(pack.row_ids(text), expected)


@pytest.mark.parametrize(("change", "words"), [
    ({"sizes": (5, 7)}, "sizes: found 2 items, expected 3"),
    ({"offsets": (0, 5, 13, 13)}, "offsets: found 4 items, expected 3"),
    ({"multipliers": (1, 2)}, "multipliers: found 2 items, expected 3"),
    ({"orders": (2, 2, 2)}, "multipliers: found 3 items, expected 2"),
    ({"offsets": (0, 5, 14)}, "rows up to 25, expected at most 24"),
    ({"mixing": "sum", "sizes": (2**31, 7, 11)}, "found 2147483648, expected at most 1431655765"),
])  # fmt: skip
def test_heads_that_do_not_fit_are_told(change, words):
    """Each contradiction is named with the key, what was found and what fits."""
    plain = {
        "mixing": "xor", "orders": (2, 2, 3), "sizes": (5, 7, 11), "offsets": (0, 5, 13),
        "multipliers": (1, 2, 3), "pad": 0,
    }  # fmt: skip
    check_heads(NGrams(**plain), 24, "ngrams")
    with pytest.raises(FormatError, match=words) as caught:
        check_heads(NGrams(**{**plain, **change}), 24, "ngrams")
    assert caught.value.code == "ngram-heads"


def test_tables_may_share_compressed_ids(tmp_path):
    """Two layers of one model hash the same ids: the array is stored once."""
    one = replace(NGRAMS, layer_numbers=None, name="a")
    sample = write(tmp_path / "p", replace(one, more=(replace(one, name="b"),)))

    def share(header, contents):
        (number,) = {header["tables"][1]["ngrams"]["id_map"]}
        header["tables"][1]["ngrams"]["id_map"] = header["tables"][0]["ngrams"]["id_map"]
        header["tables"][1]["chunks"][0]["blocks"] -= 1
        del header["sections"][number], contents[number]

    shared = rebuilt(sample.data, share)
    (tmp_path / "shared").write_bytes(shared)
    kinds = [section["kind"] for section in split(shared)[1]["sections"]]
    assert kinds == ["id_map", "blocks", "blocks"]
    for table in ("a", "b"):
        with tolpack.open(tmp_path / "shared", table=table) as pack:
            assert np.array_equal(pack.row_ids(TEXT), reference_row_ids(sample.data, TEXT))
            assert pack.verify() == []


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pack of n-grams of the demo model's tokens, and its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("rows")
    ngrams = NGramHash("xor", (2, 3), (31, 33), (0, 31), (5, 7, 11), pad=0)
    recipe = Recipe(8, (Layer((int8(8),)),), (Run(64, "raw", 4),), ngrams=ngrams)
    write(folder / "p.tolpack", recipe)
    shutil.copy(MODEL / "tokenizer.json", folder)
    return folder


def test_rows_of_a_text_are_shown_by_token(folder):
    """`rows --text` has a line for each token, with the number of its row by each head."""
    text = "The cat sat"
    ids = TextTokenizer(MODEL / "tokenizer.json").encode(text).tolist()
    with tolpack.open(folder / "p.tolpack") as pack:
        numbers = pack.row_ids(ids)
        extents = np.unique(pack.extents(np.unique(numbers)), axis=0)
    done = CliRunner().invoke(main, ["rows", str(folder / "p.tolpack"), "--text", text])
    assert done.exit_code == 0, done.output
    header, _, *lines = done.stdout.split("\n\n")[0].splitlines()
    assert header.split() == ["token", "id", "head", "0", "head", "1"]
    cells = [line.rpartition("'")[2].split() for line in lines]
    assert cells == [[str(t), *map(str, row)] for t, row in zip(ids, numbers.tolist())]
    assert f"{2 * len(ids)} rows of {len(ids)} tokens" in done.stdout
    assert f"{len(extents)} extents, {extents[:, 1].sum()} bytes" in done.stdout
    arguments = ["rows", str(folder / "p.tolpack"), "--text", text, "--json"]
    found = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert set(found) == {"token_ids", "tokens", "row_ids"}
    assert (found["token_ids"], found["row_ids"]) == (ids, numbers.tolist())


def test_numbers_are_rows_of_the_table(folder):
    """Without a text, `rows` takes numbers of rows, as `Pack.rows` does."""
    done = CliRunner().invoke(main, ["rows", str(folder / "p.tolpack"), "63", "--json"])
    with tolpack.open(folder / "p.tolpack") as pack:
        assert json.loads(done.stdout)["rows"] == pack.rows([63]).tolist()
