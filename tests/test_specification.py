"""What ``formats/v1/SPEC.md`` says in numbers is what the library does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from edits import change_raw_block
from packs import TARGET, write

import tolpack
from tolpack.codecs import kernels
from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.codecs.registry import CODECS
from tolpack.codecs.zero_runs import longest_content
from tolpack.container import preamble
from tolpack.container.preamble import FEATURES, SUPPORTED_FEATURES
from tolpack.errors import FormatError

FOLDER = Path(__file__).parents[1] / "formats" / "v1"
SPEC = (FOLDER / "SPEC.md").read_text("utf-8")
EXAMPLE = FOLDER / "golden" / "int4-odd-remainder.tolpack"


def section(number):
    """Return the text of one numbered section."""
    return re.split(r"^## ", SPEC, flags=re.M)[number]


def test_the_example_is_the_golden_pack():
    """Every byte of the dump in section 14 is the file's, and what it leaves out is blank."""
    data, seen = EXAMPLE.read_bytes(), set()
    lines = re.findall(r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  ", section(14), flags=re.M)
    assert len(lines) > 20
    for offset, text in lines:
        start, content = int(offset, 16), bytes.fromhex(text)
        assert data[start : start + len(content)] == content
        seen |= set(range(start, start + len(content)))
    header = re.search(r"```json\n(.*?)```", section(14), flags=re.S)[1].replace("\n", "").encode()
    assert data[64:4096].rstrip(b" ") == header
    seen |= set(range(64, 64 + len(header)))
    assert {data[n] for n in range(len(data)) if n not in seen} == {0, ord(" ")}


def test_the_example_decodes_as_it_says():
    """The worked row at the end of section 14 is the golden one."""
    numbers = section(14).rsplit("```", 2)[1].split()
    rows = np.load(EXAMPLE.with_suffix(".npy"))
    assert [np.float32(number) for number in numbers] == rows[0, 0].tolist()


def test_feature_bits_are_those_of_the_library():
    """Section 9 lists each bit that the library knows; all but that of part files are of packs."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \| 1\.\d \| .*? \|$", section(9), flags=re.M)
    assert [int(bit) for bit, _ in rows] == sorted(FEATURES.values())
    read = sum(1 << int(bit) for bit, what in rows if what != "a part file of a pack")
    assert read == SUPPORTED_FEATURES == sum(1 << int(bit) for bit, _ in rows if bit != "24")


def test_every_feature_has_its_golden_packs():
    """The golden packs beside a bit in section 9 exist and set that bit."""
    rows = re.findall(r"^\| (\d+) \| .*? \| 1\.\d \| (.*?) \|$", section(9), flags=re.M)
    for bit, packs in rows:
        names = re.findall(r"`(.*?)`", packs)
        assert names
        for name in names:
            path = FOLDER / "golden" / name
            files = path.glob("*.part") if path.is_dir() else [path.with_name(f"{name}.tolpack")]
            for data in (file.read_bytes() for file in files):
                assert int.from_bytes(data[24:32], "little") >> int(bit) & 1


@pytest.mark.parametrize(("words", "limit"), [
    ("header", preamble.MAX_HEADER_BYTES), ("nesting", preamble.MAX_NESTING),
    ("fields of a table", preamble.MAX_FIELDS), ("chunks of a table", preamble.MAX_CHUNKS),
    ("parts of a field", preamble.MAX_PARTS), ("width of a field", preamble.MAX_WIDTH),
    ("rows of a table", preamble.MAX_ROWS), ("values of a row", preamble.MAX_ROW_VALUES),
    ("rows of a block", preamble.MAX_ROWS_PER_BLOCK),
    ("`rows_per_block`", preamble.MAX_BLOCK_BYTES), ("bytes of an array", preamble.MAX_ARRAY_BYTES),
])  # fmt: skip
def test_limits_are_those_of_the_library(words, limit):
    """Each limit of section 3 has the value that the reader enforces."""
    (text,) = re.findall(rf"^\| {words}.*? \| (.*?) \|$", section(3), flags=re.M)
    number = re.search(r"(?:… )?(\d[\d,]*)(?:\^(\d+))?( - 1)?(?: \w+)?$", text)
    found = int(number[1].replace(",", "")) ** int(number[2] or 1)
    assert found - bool(number[3]) == limit


def test_codecs_are_those_of_the_library():
    """Section 7 gives the sizes of each codec."""
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (–|\d) \|", section(7), flags=re.M)
    found = {codec: (int(bits), 0 if size == "–" else int(size)) for codec, bits, size in rows}
    assert found == {c: (s.code_bits, s.scale_bytes) for c, s in CODECS.items()}


def test_fp8_is_what_the_specification_says():
    """Every code of f8e4m3 has the value of the formula in section 7."""
    codes = np.arange(256, dtype=np.uint8)[:, None]
    scales = np.ones((256, 1), "<f4").view(np.uint8)
    found = decode_values(scales, codes, Part("f8e4m3", 1, 2))[:, 0]
    for code in range(256):
        sign, exponent, mantissa = (-1) ** (code >> 7), code >> 3 & 15, code & 7
        if code & 127 == 127:
            assert np.isnan(found[code])
        elif exponent:
            assert found[code] == sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        else:
            assert found[code] == sign * mantissa / 8 * 2.0**-6


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bad_scale_refuses_its_own_values(compiled, tmp_path, monkeypatch):
    """Section 7: a lookup of a value with a bad scale is refused; this reader gives the others."""
    if compiled:
        kernels.load()
    else:
        monkeypatch.setattr(kernels, "loaded", lambda: None)
    good = write(tmp_path / "good", TARGET)
    (tmp_path / "bad").write_bytes(change_raw_block(good, 0, lambda old: b"\x80\x7f" + old[2:]))
    bad, neighbour = (int(np.flatnonzero(good.slots == slot)[0]) for slot in (0, 1))
    with tolpack.open(good.path) as pack, tolpack.open(tmp_path / "bad") as damaged:
        for ids, layers in (([bad], None), ([neighbour, bad], None), ([bad], [0])):
            with pytest.raises(FormatError) as caught:
                damaged.rows(ids, layers=layers)
            assert caught.value.code == "scale-not-finite"
        assert (damaged.rows([neighbour]) == pack.rows([neighbour])).all()
        assert (damaged.rows([bad], layers=[2]) == pack.rows([bad], layers=[2])).all()


def test_the_longest_content_of_a_frame_is_named():
    """Section 8 says how large a window a decoder must take: the longest content of any frame."""
    assert longest_content(preamble.MAX_BLOCK_BYTES) == 34_603_012
    assert "34,603,012 bytes" in section(8)


def test_packs_that_errata_name_exist():
    """Every pack that an erratum names is there."""
    text = (FOLDER.parent / "ERRATA.md").read_text("utf-8")
    names = re.findall(r"`((?:golden|malformed)/[^`]+)`", text)
    assert len(names) > 8
    for name in names:
        assert (FOLDER / name).is_dir() or (FOLDER / f"{name}.tolpack").exists(), name


def test_every_section_that_the_code_names_exists():
    """References such as "SPEC §8" in the code point to sections of the document."""
    numbers = {int(n) for n in re.findall(r"^## (\d+)\. ", SPEC, flags=re.M)}
    assert numbers == set(range(1, 16))
    used = set()
    for path in (FOLDER.parents[1] / "tolpack").rglob("*.py"):
        used |= {
            int(n)
            for n in re.findall(r"§(\d+)", path.read_text("utf-8"))
            if "SPEC" in path.read_text("utf-8")
        }
    assert used <= numbers


def test_schema_and_specification_name_the_same_keys():
    """Every key of the schema of a header stands in section 5, of a manifest in section 15."""
    for name, number in (("header", 5), ("manifest", 15)):
        schema = json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8"))
        keys = set(schema["properties"])
        for definition in schema["$defs"].values():
            keys |= set(definition.get("properties", {}))
            keys |= set(definition.get("then", {}).get("properties", {}))
        text = section(5) + section(number)
        assert keys - set(re.findall(r"`(\w+)`", text)) == set()
