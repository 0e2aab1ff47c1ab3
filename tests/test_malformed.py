"""The malformed packs of ``formats/v1/malformed`` end in the codes that stand beside them."""

import json
import re
import runpy
from pathlib import Path

import pytest
import zstandard
from make_malformed import NOT_FILES
from packs import memory_limit

import tolpack
from tolpack.errors import FormatError

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "malformed"
CODES = json.loads((FOLDER / "codes.json").read_text("utf-8"))


def test_every_code_of_the_specification_has_a_pack():
    """The codes of SPEC.md, section 10, are those of the folder, but for what no file shows."""
    text = (FOLDER.parent / "SPEC.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*) \|.*\|$", text[text.index("## 10.") :], flags=re.M)
    assert set(re.findall(r"`([a-z0-9-]+)`", " ".join(rows))) == set(CODES) | NOT_FILES
    assert {path.stem for path in FOLDER.glob("*.tolpack")} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_malformed_packs_end_in_their_code(code):
    """Each is refused with its code when it is opened, looked up or verified, and cheaply."""
    path = FOLDER / f"{code}.tolpack"
    with memory_limit():
        if CODES[code] == "open":
            with pytest.raises(FormatError) as caught:
                tolpack.open(path)
            assert caught.value.code == code
            return
        with tolpack.open(path) as pack:
            assert code in " ".join(damage.message for damage in pack.verify())
            if CODES[code] == "rows":
                with pytest.raises(FormatError) as caught:
                    pack.rows(range(pack.vocab_size))
                assert caught.value.code == code


@pytest.mark.parametrize("code", [code for code, when in CODES.items() if when == "rows"])
def test_damage_shows_in_the_independent_decoder(code):
    """``formats/v1/decode.py`` gives no rows for a pack whose contents are damaged."""
    decoder = runpy.run_path(str(FOLDER.parent / "decode.py"))
    data = (FOLDER / f"{code}.tolpack").read_bytes()
    with pytest.raises((decoder["BadPack"], zstandard.ZstdError)):
        pack = decoder["Pack"](data)
        for token in range(pack.table["rows"]):
            pack.row(token)
