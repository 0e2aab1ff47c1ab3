"""``formats/v1/header.schema.json`` agrees with the reader on types and ranges."""

import json
from pathlib import Path

import jsonschema
import pytest
from edits import MEANINGS, RANGES
from packs import RECIPES, TARGET, forge, split, write

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "formats" / "v1" / "header.schema.json").read_text("utf-8")
)
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


def test_edits_reach_the_file(target):
    """The edits above are those that the reader's own tests make."""
    changed = forge(target, lambda header: header.update(producer="another"))
    assert header_of(changed)["producer"] == "another"
