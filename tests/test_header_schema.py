"""``formats/v1/header.schema.json`` agrees with the reader on types and ranges."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from edits import MEANINGS, PART0, RANGES, set_value
from packs import GOLDEN_ONLY, RECIPES, TARGET, forge, split, write

import tolpack
from tolpack.errors import FormatError

FORMAT = Path(__file__).parents[1] / "formats" / "v1"
SCHEMA = json.loads((FORMAT / "header.schema.json").read_text("utf-8"))
sys.path.insert(0, str(FORMAT))

from validate import BadPack, Check  # noqa: E402 (found by the line above)

# What section 4 forbids and a JSON Schema cannot see: 1.0 for 1, and limits that other numbers set.
BEYOND = (
    "=0.0", "=8.0", "=4096.0", "=4.0", "[6.0]",  # integers with a fraction of zero
    "token_map=6", "blocks=6", "index=6", "basis=6", "mean=6",  # sections that are not there
    "file={'index': 1, 'count': 1}", "rank=9", "sections.1.shape=[0", "encoding=-",
)  # fmt: skip


def header_of(data):
    """Decode the header in a pack's bytes."""
    return split(data)[1]


@pytest.fixture(scope="module")
def validator():
    """The schema, itself checked."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("name", RECIPES)
def test_headers_of_packs_are_valid(name, validator, tmp_path):
    """The header of every kind of pack is valid under the schema."""
    validator.validate(header_of(write(tmp_path / "pack", RECIPES[name]).data))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The bytes of the pack that is edited."""
    return write(tmp_path_factory.mktemp("target") / "pack", TARGET).data


@pytest.mark.parametrize(
    ("edit", "code"),
    [(edit, code) for edit, code in RANGES if not any(b in edit.__name__ for b in BEYOND)],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_values_out_of_range_are_invalid(edit, code, validator, target):
    """What the reader refuses for its type or range alone, the schema refuses too."""
    header = header_of(target)
    edit(header)
    assert not validator.is_valid(header)


@pytest.mark.parametrize(
    "edit",
    [edit for edit, code in MEANINGS if code != "header-field"],
    ids=lambda edit: edit.__name__,
)
def test_contradictions_are_not_the_schemas_business(edit, validator, target):
    """Headers whose parts contradict each other have the right types and ranges all the same."""
    header = header_of(target)
    edit(header)
    assert validator.is_valid(header)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The bytes of a pack of coded bases, ``step16`` rows and raw blocks."""
    return write(tmp_path_factory.mktemp("coded") / "pack", GOLDEN_ONLY["coded-int8"]).data


def refusals(data, validator, path):
    """Return the codes of library and ``validate.py``, or ``None``, and whether the schema does."""
    path.write_bytes(data)
    found = []
    for call, kind in ((lambda: tolpack.open(path).close(), FormatError),
                       (Check(data).opening, BadPack)):  # fmt: skip
        try:
            call()
            found.append(None)
        except kind as error:
            found.append(error.code)
    return (*found, not validator.is_valid(header_of(data)))


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, True, "int3", [], {}, [0, -1]])
@pytest.mark.parametrize(("pack", "place"), [
    *[("target", f"sections.{number}.{key}") for number in (3, 5)
      for key in ("crc32", "dtype", "shape", "codec", "group_size", "step")],
    *[("target", f"sections.{number}.{key}") for number in (0, 1, 2)
      for key in ("codec", "group_size", "step", "values")],
    ("coded", "sections.0.dtype"), ("coded", "sections.0.step"), ("coded", "sections.0.values"),
    ("target", "tables.0.group_size"), ("target", "encodings.0.codec"),
])  # fmt: skip
def test_keys_of_other_kinds_mean_nothing(pack, place, value, validator, request, tmp_path):
    """A key in a section of a kind that has no such key is ignored, whatever its value."""
    data = forge(request.getfixturevalue(pack), set_value(place, value))
    assert refusals(data, validator, tmp_path / "pack") == (None, None, False)


@pytest.mark.parametrize("value", [0, 2, 1.5, True, "a", [], {}])
@pytest.mark.parametrize(("pack", "key"), [("target", "step"), ("coded", "group_size")])
def test_keys_of_other_codecs_are_errors(pack, key, value, validator, request, tmp_path):
    """A part with a step or a group size that its codec has not is refused; null is not a key."""
    data = request.getfixturevalue(pack)
    wrong = forge(data, set_value(f"{PART0}.{key}", value))
    expected = ("header-field", "header-field", True)
    assert refusals(wrong, validator, tmp_path / "pack") == expected
    absent = forge(data, set_value(f"{PART0}.{key}", None))
    assert refusals(absent, validator, tmp_path / "pack") == (None, None, False)


def test_edits_reach_the_file(target):
    """The edits above are those that the reader's own tests make."""
    changed = forge(target, lambda header: header.update(producer="another"))
    assert header_of(changed)["producer"] == "another"


@pytest.mark.parametrize("codec", ["f8e4m3-e8m0", "f8e4m3-step", "q8_0", "q4_0"])
@pytest.mark.parametrize("wrong", [
    {"group_size": None}, {"group_size": 3}, {"group_size": 0}, {"step": 0.5}, {"step": 0},
    {"step": None, "group_size": 2}, {"step": 1e39, "group_size": None}, {"codec": "q5_0"},
])  # fmt: skip
def test_parts_of_stored_codecs_have_their_keys_and_no_others(codec, wrong, validator, tmp_path):
    """A group size with scales, a step with a step: reader, schema and validator agree."""
    data = write(tmp_path / "pack", RECIPES[codec]).data
    right = {"step": 0.5} if codec == "f8e4m3-step" else {"group_size": 2}
    part = {key: header_of(data)["encodings"][0]["fields"][0]["parts"][0].get(key)
            for key in ("codec", "values", "group_size", "step")}  # fmt: skip
    given = part | right | wrong
    data = forge(data, set_value("encodings.0.fields.0.parts.0", given))
    has = {key for key in ("group_size", "step") if given[key] is not None}
    good = given["codec"] == codec and given["step"] in (None, 0.5)
    good = good and has == set(right) and given["group_size"] in (None, 2)
    assert validator.is_valid(header_of(data)) == good
    (tmp_path / "pack").write_bytes(data)
    for call in (lambda: tolpack.open(tmp_path / "pack").close(), Check(data).opening):
        assert (_code_of(call) != "header-field") == good


def _code_of(call):
    try:
        call()
    except (FormatError, BadPack) as error:
        return error.code
    return None
