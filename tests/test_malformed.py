"""The malformed packs of ``formats/v1/malformed`` end in the codes that stand beside them."""

import json
import re
import sys
from pathlib import Path

import pytest
from make_malformed import INSEPARABLE, NOT_FILES, cases
from packs import memory_limit

from tolpack.errors import FormatError
from tolpack.pack import open_first_table

FOLDER = Path(__file__).parents[1] / "formats" / "v1" / "malformed"
CODES = json.loads((FOLDER / "codes.json").read_text("utf-8"))
SETS = json.loads((FOLDER / "parts" / "codes.json").read_text("utf-8"))
sys.path.insert(0, str(FOLDER.parent))

from validate import BadPack, Check, validate  # noqa: E402 (found by the line above)


def code_of(name):
    """Return the code that a file shows: its name, up to a plus."""
    return name.partition("+")[0]


def refusal(call, *arguments, kind=BadPack):
    """Return the code with which a call refuses a file, or ``None``."""
    try:
        call(*arguments)
    except kind as error:
        return error.code
    return None


@pytest.fixture(params=CODES)
def name(request):
    """One malformed pack after the other."""
    return request.param


def test_every_code_of_the_specification_has_a_pack():
    """The codes of SPEC.md, section 10, are those of the folder, but for what no file shows."""
    text = (FOLDER.parent / "SPEC.md").read_text("utf-8")
    text = text[text.index("## 10.") : text.index("## 11.")]
    rows = re.findall(r"^\| (`.*) \|.*\|$", text, flags=re.M)
    found = {code_of(name) for name in CODES | SETS}
    assert set(re.findall(r"`([a-z0-9-]+)`", " ".join(rows))) == found | NOT_FILES
    assert {path.stem for path in FOLDER.glob("*.tolpack")} == set(CODES)


def test_the_readme_says_what_is_wrong_in_each():
    """The tables of the folder's README have a line for each file and each set, once."""
    text = (FOLDER / "README.md").read_text("utf-8").split("\n## ")
    for part, codes in zip(text, (CODES, SETS), strict=True):
        assert sorted(re.findall(r"^\| `([^`]*)` \| \S", part, flags=re.M)) == sorted(codes)


def test_the_script_knows_the_files(tmp_path):
    """``make_malformed.py`` makes these files, to be refused at these times."""
    assert {name: when for name, (when, _) in cases(tmp_path).items()} == CODES


def test_malformed_packs_end_in_their_code(name):
    """Each is refused with its code when it is opened, looked up or verified, and cheaply."""
    path, code = FOLDER / f"{name}.tolpack", code_of(name)
    with memory_limit():
        if CODES[name] == "open":
            assert refusal(open_first_table, path, kind=FormatError) == code
            return
        with open_first_table(path) as pack:
            assert {damage.code for damage in pack.verify()} == {code}
            found = refusal(pack.rows, range(pack.vocab_size), kind=FormatError)
            assert found == (code if CODES[name] == "rows" else None)


def test_the_validator_gives_the_code(name):
    """``formats/v1/validate.py`` refuses each with its code, at opening exactly those of then."""
    data = (FOLDER / f"{name}.tolpack").read_bytes()
    assert refusal(validate, data) == code_of(name)
    assert refusal(Check(data).opening) == (code_of(name) if CODES[name] == "open" else None)


def test_one_thing_is_wrong_in_each(name):
    """Without the rules of its code a file is valid, but for the four that cannot be."""
    data = (FOLDER / f"{name}.tolpack").read_bytes()
    assert refusal(validate, data, {code_of(name)}) == INSEPARABLE.get(name)
    both = {code_of(name), INSEPARABLE.get(name)}
    if name != "truncated":  # whose last block is not there
        assert refusal(validate, data, both) is None
