"""The golden packs of ``formats/v1/golden`` decode to the rows that stand beside them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from make_golden import EDITED
from packs import GOLDEN_ONLY, RECIPES, SHAPES, split

import tolpack
from tolpack.pack import open_first_table

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.tolpack"))
# Edits are not a pack by themselves: they are read with theirs.
PACKS = [name for name in NAMES if name != "edits"]
sys.path.insert(0, str(FOLDER.parent))

from decode import Pack as Decoder  # noqa: E402 (found by the line above)


def tables(name):
    """Return the tables of a pack's header that are not edits of another one, and the name of each
    one's files without suffix.
    """
    found = split((FOLDER / f"{name}.tolpack").read_bytes())[1]["tables"]
    found = [one for one in found if "edits" not in one or name == "edits"]
    return [(one, f"{name}.{n}" if len(found) > 1 else name) for n, one in enumerate(found)]


def close(found, table, files):
    """Whether rows are those that are stored; a basis multiplies in another order of summation."""
    expected = np.load(FOLDER / f"{files}.npy")
    if not any("basis" in field for field in table["fields"]):
        return found.tobytes() == expected.tobytes()
    return np.allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def rows_of(pack):
    """All rows of a pack, (tokens, values) if its fields differ in width."""
    if len(set(pack.widths)) == 1:
        return pack.rows(range(pack.vocab_size))
    fields = [pack.rows(range(pack.vocab_size), [n])[:, 0] for n in range(pack.num_layers)]
    return np.concatenate(fields, axis=1)


def test_every_kind_of_pack_has_a_golden_one():
    """The folder holds one pack for each recipe of the tests, its rows, and rows of texts."""
    assert set(NAMES) == {*RECIPES, *GOLDEN_ONLY, *SHAPES, *EDITED}
    wanted = {f"{files}.npy" for name in NAMES for _, files in tables(name)}
    wanted |= {f"{f}.text.npy" for name in NAMES for one, f in tables(name) if "ngrams" in one}
    assert {path.name for path in FOLDER.glob("*.npy")} == wanted


def test_the_readme_lists_every_golden_pack():
    """The tables of the folder's README name each pack and each set, once."""
    rows = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text("utf-8"), flags=re.M)
    sets = [f"parts/{path.name}" for path in (FOLDER / "parts").iterdir()]
    assert sorted(re.findall(r"`(.*?)`", " ".join(rows))) == sorted(NAMES + sets)


def test_bases_that_are_all_coded_set_two_bits():
    """A coded basis sets bits 16 and 21, and its own codec none (SPEC section 9)."""
    for name, codec in (("coded-int8", 4), ("coded-int4", 5)):
        preamble, header, _ = split((FOLDER / f"{name}.tolpack").read_bytes())
        kinds = {section["kind"]: section.get("codec") for section in header["sections"]}
        assert (kinds["coded_basis"], "basis" in kinds) == (name.removeprefix("coded-"), False)
        assert preamble["required_features"] & (1 << 16 | 1 << 21 | 1 << codec) == 0x210000


@pytest.mark.parametrize("name", PACKS)
def test_golden_packs_decode_to_their_rows(name):
    """Tolpack reads the stored rows, and finds nothing to complain of."""
    for table, files in tables(name):
        with tolpack.open(FOLDER / f"{name}.tolpack", table=table["name"]) as pack:
            assert close(rows_of(pack), table, files)
            assert pack.verify() == []


def test_golden_edits_are_read_with_their_pack():
    """Tolpack and ``decode.py`` give the stored rows, however often the edits are named; ``verify``
    takes them alone.
    """
    base, edits = (FOLDER / f"{name}.tolpack" for name in (EDITED["edits"], "edits"))
    expected = np.load(FOLDER / "edits.npy")
    with tolpack.open(base, edits=[edits]) as pack:
        assert rows_of(pack).tobytes() == expected.tobytes()
        assert pack.edited_tokens.tolist() == [0, 3, 4, 8]
    decoder = Decoder(base.read_bytes(), edits=[edits.read_bytes()] * 2)
    rows = np.stack([decoder.row(token) for token in range(len(expected))])
    assert rows.astype(np.float32).tobytes() == expected.tobytes()
    with open_first_table(edits) as alone:
        assert alone.verify() == []
        assert np.array_equal(alone.rows(range(4)), expected[[0, 3, 4, 8]])
    with pytest.raises(ValueError, match="edits of another pack"):
        Decoder((FOLDER / "int4.tolpack").read_bytes(), edits=[edits.read_bytes()])
    for name in ("edits-merged", "int4"):  # packs are not edits of another one
        with pytest.raises(ValueError, match="edits of another pack"):
            Decoder(base.read_bytes(), edits=[(FOLDER / f"{name}.tolpack").read_bytes()])


@pytest.mark.parametrize("name", PACKS)
def test_golden_packs_decode_alike_from_the_specification(name):
    """``formats/v1/decode.py`` reads the stored rows."""
    data = (FOLDER / f"{name}.tolpack").read_bytes()
    for number, (table, files) in enumerate(tables(name)):
        pack = Decoder(data, number)
        rows = np.stack([pack.row(token) for token in range(table["rows"])])
        assert close(rows.astype(np.float32), table, files)


@pytest.mark.parametrize(("name", "number"), [("ngrams", 0), ("two-tables", 1)])
def test_texts_touch_the_rows_beside_golden_packs(name, number):
    """Tolpack and ``decode.py`` hash the stored text to the stored rows."""
    table, files = tables(name)[number]
    expected = np.load(FOLDER / f"{files}.text.npy")
    text, path = expected[:, 0].tolist(), FOLDER / f"{name}.tolpack"
    with tolpack.open(path, table=table["name"]) as pack:
        assert np.array_equal(pack.row_ids(text), expected[:, 1:])
    assert Decoder(path.read_bytes(), number).row_ids(text) == expected[:, 1:].tolist()
