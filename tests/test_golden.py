"""The golden packs of ``formats/v1/golden`` decode to the rows that stand beside them."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from packs import GOLDEN_ONLY, RECIPES, split

import tolpack

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.tolpack"))


def close(found, name):
    """Whether rows are those that are stored; a basis multiplies in another order of summation."""
    expected = np.load(FOLDER / f"{name}.npy")
    header = split((FOLDER / f"{name}.tolpack").read_bytes())[1]
    if not any("basis" in field for field in header["tables"][0]["fields"]):
        return found.tobytes() == expected.tobytes()
    return np.allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_every_kind_of_pack_has_a_golden_one():
    """The folder holds one pack for each recipe of the tests, and its rows."""
    assert set(NAMES) == {*RECIPES, *GOLDEN_ONLY} == {path.stem for path in FOLDER.glob("*.npy")}


def test_the_readme_lists_every_golden_pack():
    """The table of the folder's README names each pack, once."""
    rows = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text("utf-8"), flags=re.M)
    assert sorted(re.findall(r"`(.*?)`", " ".join(rows))) == NAMES


def test_bases_that_are_all_coded_set_two_bits():
    """A coded basis sets bits 16 and 21, and its own codec none (SPEC section 9)."""
    for name, codec in (("coded-int8", 4), ("coded-int4", 5)):
        preamble, header, _ = split((FOLDER / f"{name}.tolpack").read_bytes())
        kinds = {section["kind"]: section.get("codec") for section in header["sections"]}
        assert (kinds["coded_basis"], "basis" in kinds) == (name.removeprefix("coded-"), False)
        assert preamble["required_features"] & (1 << 16 | 1 << 21 | 1 << codec) == 0x210000


@pytest.mark.parametrize("name", NAMES)
def test_golden_packs_decode_to_their_rows(name):
    """Tolpack reads the stored rows, and finds nothing to complain of."""
    with tolpack.open(FOLDER / f"{name}.tolpack") as pack:
        assert close(pack.rows(range(pack.vocab_size)), name)
        assert pack.verify() == []


@pytest.mark.parametrize("name", NAMES)
def test_golden_packs_decode_alike_from_the_specification(name):
    """``formats/v1/decode.py`` reads the stored rows."""
    decoder = runpy.run_path(str(FOLDER.parent / "decode.py"))["Pack"]
    data = (FOLDER / f"{name}.tolpack").read_bytes()
    pack = decoder(data)
    rows = np.stack([pack.row(token) for token in range(pack.table["rows"])])
    assert close(rows.astype(np.float32), name)
