"""Headers of several tables and of n-grams that are wrong: refused alike by library and validator.

The edits are of `make_malformed.TWO_TABLES`: two tables of one encoding, a hash and compressed ids
in the first.
"""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from edits import many, remove, set_value
from make_malformed import TWO_TABLES
from packs import forge, from_scratch, memory_limit, plain_header, split, write

from tolpack.container.header import parse_header
from tolpack.errors import FormatError
from tolpack.pack import open_first_table

FORMAT = Path(__file__).parents[1] / "formats" / "v1"
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((FORMAT / "header.schema.json").read_text("utf-8"))
)
sys.path.insert(0, str(FORMAT))

from validate import BadPack, Check  # noqa: E402 (found by the line above)

HASH = "tables.0.ngrams"
# Types and ranges: the schema refuses them too.
RANGES = [
    set_value(f"{HASH}.{key}", value)
    for key, values in {
        "mixing": ("", "XOR", "product", None, 1),
        "orders": ([], [0, 1], [1, 65], [1, -1], [1, 1.5], [True, 1], ["1", 2], [1] * 4097, 2, None,
                   [1, None], {}),
        "sizes": ([], [0, 1], [1, 2**48 + 1], [1, None], 5, None, [2] * 4097),
        "offsets": ([], [-1, 0], [0, 2**48], [0, "1"], None),
        "multipliers": ([], [1, None], [1, 0.5], [1] * 65, 7, None),
        "pad": (-1, 2**31, "0", None, 0.5, True),
        "boundary": (-1, 2**31, "0", 0.5, True, []),
        "id_map": (-1, "0", 0.5, True, []),
    }.items()
    for value in values
] + [
    set_value(HASH, []), set_value(HASH, 3), set_value(HASH, {}), set_value(HASH, "xor"),
    *(remove(f"{HASH}.{key}")
      for key in ("mixing", "orders", "sizes", "offsets", "multipliers", "pad")),
    set_value("tables.1.name", ""), set_value("tables.1.fields.0.layer", 4096),
    remove("sections.0.crc32"), remove("sections.0.shape"), set_value("sections.0.dtype", "uint64"),
    set_value("sections.0.kind", "idmap"),
]  # fmt: skip
MEANINGS = [
    (set_value(f"{HASH}.id_map", 3), "header-field"),  # there are three sections
    (set_value(f"{HASH}.multipliers", [1, 2**63]), "header-json"),
    (set_value(f"{HASH}.multipliers", [1, -(2**63)]), "header-json"),
    (set_value(f"{HASH}.offsets", [4, 2]), "ngram-heads"),
    (set_value(f"{HASH}.offsets", [0, 2**48 - 1]), "ngram-heads"),
    (set_value(f"{HASH}.sizes", [2, 2**48]), "ngram-heads"),
    (set_value(f"{HASH}.sizes", [2, 2, 2]), "ngram-heads"),
    (set_value(f"{HASH}.orders", [1]), "ngram-heads"),
    (set_value(f"{HASH}.orders", [1, 3]), "ngram-heads"),
    (set_value(f"{HASH}.orders", [1, 1]), "ngram-heads"),
    (set_value(f"{HASH}.id_map", 1), "section-kind"),
    (set_value(f"{HASH}.id_map", 2), "section-kind"),
    (many(set_value(f"{HASH}.id_map", 1), set_value("sections.1.shape", 7)), "section-kind"),
    (remove(f"{HASH}.id_map"), "unused-section"),
    (remove(HASH), "unused-section"),
    (set_value(HASH, None), "unused-section"),
    (set_value("sections.0.shape", [2, 2]), "array-shape"),
    (set_value("sections.0.shape", [3]), "array-length"),
    (set_value("sections.0.dtype", "float32"), "array-dtype"),
    (set_value("sections.0.kind", "mean"), "section-kind"),
    (set_value("sections.0.kind", "token_map"), "section-kind"),
    (set_value("tables.0.token_map", 0), "section-kind"),
    (set_value("tables.1.name", "first"), "table-name"),
    (set_value("tables.1.rows", 6), "row-count"),
    (set_value("tables.1.rows", 2**48), "row-count"),
    (set_value("tables.1.chunks.0.rows", 4), "row-count"),
    (set_value("tables.1.chunks.0.blocks", 1), "shared-section"),
    (set_value("tables.1.chunks.0.blocks", 0), "section-kind"),
    (set_value("tables.1.chunks.0.encoding", 1), "reference"),
    (set_value("tables.1.chunks.0.index", 1), "raw-with-index"),
    (set_value("tables.1.fields.0.width", 9), "encoding-fields"),
    (set_value("tables.1.fields.0.dropped", True), "no-data"),
    (set_value("tables.1.fields.0.mean", 0), "section-kind"),
    (set_value("tables.1.fields.0.layer", 3), "field-layer"),
    (set_value("tables.1.multiplier", 2), "feature-mismatch"),
    (lambda header: header["tables"].pop(), "unused-section"),
    (lambda header: header["tables"].append(header["tables"][1]), "table-name"),
]  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The bytes of the pack that is edited."""
    return write(tmp_path_factory.mktemp("target") / "pack", TWO_TABLES).data


def codes(data, path):
    """Return the codes with which library and validator refuse a file, or ``None``."""
    path.write_bytes(data)
    found = []
    for call, kind in (
        (lambda: open_first_table(path).close(), FormatError), (Check(data).opening, BadPack),
    ):  # fmt: skip
        try:
            with memory_limit():
                call()
            found.append(None)
        except kind as error:
            found.append(error.code)
    return tuple(found)


def test_the_pack_that_is_edited_is_a_right_one(target, tmp_path):
    """Nothing is wrong with it before."""
    assert codes(target, tmp_path / "p") == (None, None)
    assert SCHEMA.is_valid(split(target)[1])


@pytest.mark.parametrize("edit", RANGES, ids=lambda edit: edit.__name__)
def test_values_out_of_range_are_refused(edit, target, tmp_path):
    """Types and ranges of what 1.2 added, by library, validator and schema."""
    header = split(target)[1]
    edit(header)
    assert not SCHEMA.is_valid(header)
    code = "header-json" if "2**63" in edit.__name__ else "header-field"
    assert codes(forge(target, edit), tmp_path / "p") == (code, code)


@pytest.mark.parametrize(("edit", "code"), MEANINGS, ids=lambda v: getattr(v, "__name__", v))
def test_contradictions_are_refused(edit, code, target, tmp_path):
    """What tables, hashes and sections owe each other."""
    assert codes(forge(target, edit), tmp_path / "p") == (code, code)


@pytest.mark.parametrize(("bits", "code"), [
    (1 << 22, "feature-mismatch"), (1 << 25, "feature-mismatch"), (1 << 26, "feature-mismatch"),
    (1 << 27, "feature-mismatch"), (1 << 24, "unsupported-feature"), (1 << 18, "feature-mismatch"),
])  # fmt: skip
def test_the_mask_says_what_the_pack_uses(bits, code, target, tmp_path):
    """Each bit of 1.2, missing where it is used, or set where it is not."""
    features = split(target)[0]["required_features"] ^ bits
    assert codes(forge(target, required_features=features), tmp_path / "p") == (code, code)


def test_other_layers_need_their_bit(target, tmp_path):
    """With bit 27 any layer of the range is right, in any table."""
    edit = set_value("tables.1.fields.0.layer", 4095)
    features = split(target)[0]["required_features"] | 1 << 27
    data = forge(target, edit, required_features=features)
    assert codes(data, tmp_path / "p") == (None, None)


@pytest.mark.parametrize("value", [None, 0, "a", [], {}])
def test_unknown_keys_of_a_hash_are_ignored(value, target, tmp_path):
    """As at every level of a header."""
    data = forge(target, set_value(f"{HASH}.seed", value))
    assert codes(data, tmp_path / "p") == (None, None)
    assert codes(forge(target, set_value(f"{HASH}.boundary", None)), tmp_path / "p") == (None, None)


def many_tables(count, heads=1):
    """Return a pack of that many tables of one row, each with a hash of `heads` heads."""
    header = plain_header(1, 1, 1, 64)
    table = header["tables"][0]
    ngrams = {
        "mixing": "xor", "orders": [1] * heads, "sizes": [1] * heads, "offsets": [0] * heads,
        "multipliers": [1], "pad": 0,
    }  # fmt: skip
    header["tables"] = [
        {**table, "name": str(n), "ngrams": ngrams, "chunks": [{**table["chunks"][0], "blocks": n}]}
        for n in range(count)
    ]
    room = -(-(64 + len(json.dumps(header)) + 100 * count) // 4096) * 4096
    header["sections"] = [
        {"kind": "blocks", "offset_bytes": room + 4096 * n, "length_bytes": 64}
        for n in range(count)
    ]
    text = json.dumps(header, separators=(",", ":")).encode()
    length = room + 4096 * (count - 1) + 64
    head = from_scratch(header, length, 1 | 1 << 25)[: 64 + len(text)]
    start = forge(head, text=text.ljust(room - 64), file_length=length)
    return start.ljust(length, b"\0")


def test_too_many_tables_are_refused(target):
    """The limit of section 3: such a header is longer than the format allows besides."""
    header = split(target)[1]
    header["tables"] = [header["tables"][1]] * 4097
    assert not SCHEMA.is_valid(header)
    with pytest.raises(FormatError, match=r"header.tables: found 4097 items"):
        parse_header(json.dumps(header).encode())


VERIFY = """
import sys
from tolpack.evaluation.pack_description import describe_pack
from tolpack.pack import open_first_table
with open_first_table(sys.argv[1]) as pack:
    damages = pack.verify()
    assert {one.code for one in damages} == {'block-checksum', 'more'}
    assert len(damages) == 2500
    assert len(describe_pack(pack)["tables"]) == int(sys.argv[2])
"""


def test_many_tables_cost_what_their_header_is_long(tmp_path):
    """Thousands of tables are verified and described soon: nothing is done by pairs of them."""
    path = tmp_path / "p"
    path.write_bytes(many_tables(2500))
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(path), "2500"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
