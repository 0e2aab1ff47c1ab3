"""Codecs with a step, and coded bases: what version 1.1 added to the format."""

import json
import zlib

import jsonschema
import numpy as np
import pytest
from edits import set_value
from packs import RECIPES, forge, split, step8, step16, write
from test_header_schema import SCHEMA

import tolpack
from tolpack.codecs.part_values import decode_values, encode_values
from tolpack.codecs.record import record_layout
from tolpack.reading.code_rates import code_rates

PART = "encodings.0.fields.0.parts.0"
SECTION = "sections.1"


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A pack with steps of both sizes and bases of both codecs."""
    return write(tmp_path_factory.mktemp("coded") / "pack", RECIPES["coded-basis"]).data


@pytest.mark.parametrize("part", [step8(5, 0.25), step16(5, 2.0**-10)])
def test_rounding_is_to_half_a_step_within_the_range(part):
    """Values come back within half a step; what is out of range is cut to the largest code."""
    largest = 127 if part.codec == "step8" else 32767
    values = np.random.default_rng(0).uniform(-largest, largest, (64, 5)).astype(np.float32)
    values *= np.float32(part.step)
    values[0, 0] = 1e6
    scales, codes = encode_values(values, part)
    decoded = decode_values(scales, codes, part)
    assert scales.shape == (64, 0)
    assert codes.shape == (64, part.code_bytes)
    assert decoded[0, 0] == largest * part.step
    assert np.abs(decoded - values).ravel()[1:].max() <= part.step / 2 * (1 + 1e-6)


def test_neighbouring_fields_with_other_steps_decode_together():
    """Fields that differ in nothing but their step form one run, each with its own step."""
    layout = record_layout(((step8(3, 0.5),), (step8(3, 2.0),), (step8(3, -0.125),)))
    assert [run.count for run in layout.runs] == [3]
    records = np.arange(18, dtype=np.uint8).reshape(2, 9)
    found = layout.decode(records, {0, 1, 2})
    whole = np.concatenate([found[n] for n in range(3)], axis=1)
    steps = np.repeat(np.array([0.5, 2.0, -0.125]), 3)
    assert np.array_equal(whole, np.arange(18).reshape(2, 9) * steps)
    assert np.array_equal(layout.decode(records, {1})[1], found[1])


@pytest.mark.parametrize(("path", "value", "code"), [
    (f"{PART}.step", None, "header-field"), (f"{PART}.step", 0, "header-field"),
    (f"{PART}.step", 1e-45, "header-field"), (f"{PART}.step", 1e39, "header-field"),
    (f"{PART}.step", "1", "header-field"), (f"{PART}.step", True, "header-field"),
    (f"{PART}.group_size", 2, "header-field"),
    ("encodings.0.fields.2.parts.0.step", 1.5, "header-field"),
    (f"{SECTION}.codec", "f16", "header-field"), (f"{SECTION}.codec", "step8", "header-field"),
    (f"{SECTION}.codec", None, "header-field"), (f"{SECTION}.codec", "int4", "array-length"),
    (f"{SECTION}.group_size", None, "header-field"), (f"{SECTION}.group_size", 3, "header-field"),
    (f"{SECTION}.group_size", 2, "array-length"), (f"{SECTION}.shape", [5, 8], "array-length"),
    (f"{SECTION}.shape", [48], "array-length"), (f"{SECTION}.shape", [7, 5], "array-length"),
    (f"{SECTION}.shape", [2**48, 2**48], "array-length"),
    (f"{SECTION}.kind", "mean", "header-field"),
    ("tables.0.fields.0.mean", 1, "section-kind"), ("tables.0.fields.1.basis", 1, "array-shape"),
])  # fmt: skip
def test_malformed_steps_and_bases_are_refused(path, value, code, coded, tmp_path):
    """Every key that came with version 1.1 is held against the format, by reader and schema."""
    edit = set_value(path, value)
    (tmp_path / "pack").write_bytes(forge(coded, edit))
    with pytest.raises(tolpack.FormatError) as caught:
        tolpack.open(tmp_path / "pack")
    assert caught.value.code == code
    header = json.loads(json.dumps(split(coded)[1]))
    edit(header)
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(header)
    assert valid == (code != "header-field")


def test_a_scale_of_a_basis_that_is_not_finite_is_refused(coded, tmp_path):
    """What stands in a coded basis is checked behind its checksum, when a row first needs it."""
    section = split(coded)[1]["sections"][1]
    start = section["offset_bytes"]
    data = coded[:start] + b"\x80\x7f" + coded[start + 2 :]
    crc = zlib.crc32(data[start : start + section["length_bytes"]])
    (tmp_path / "pack").write_bytes(forge(data, set_value(f"{SECTION}.crc32", crc)))
    with tolpack.open(tmp_path / "pack") as pack, pytest.raises(tolpack.FormatError) as caught:
        pack.rows([0])
    assert caught.value.code == "scale-not-finite"


@pytest.mark.parametrize(("name", "known"), [("steps", True), ("f8e4m3-step", False)])
def test_rates_are_those_of_whole_numbers(name, known, samples):
    """The entropy of codes is given for integers times a step, and not for fp8 times one."""
    with tolpack.open(samples[name].path) as pack:
        assert (code_rates(pack.container) is not None) == known
