"""Format 1.4: entropy-coded rows and bases, two-byte token maps, and how they are read."""

import json
import sys
import zlib
from contextlib import closing
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from coded_rows import code_models
from edits import many, rebuilt, remove, set_value
from malformed_coding import BASIS, ROWS
from packs import RECIPES, Layer, Recipe, Run, forge, split, step8, write

import tolpack
from tolpack.codecs import kernels
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.payload_sizes import longest_payload
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.codecs.encodings import CoderSettings, Encoding
from tolpack.container.block_sizes import block_sizes
from tolpack.container.header import parse_header
from tolpack.container.header_features import required_features
from tolpack.container.preamble import version_of
from tolpack.container.token_chunks import map_bytes, pack_numbers
from tolpack.container.verified_reader import Container
from tolpack.errors import FormatError
from tolpack.evaluation.pack_description import describe_pack
from tolpack.pack import open_first_table
from tolpack.reading import block_checks, record_reader
from tolpack.reading.summary import layer_summaries
from tolpack.report.tables import pack_table

FORMAT = Path(__file__).parents[1] / "formats" / "v1"
SCHEMA = jsonschema.Draft202012Validator(json.loads((FORMAT / "header.schema.json").read_text()))
sys.path.insert(0, str(FORMAT))

from decode import Pack as Decoder  # noqa: E402 (found by the line above)
from validate import BadPack, Check, validate  # noqa: E402 (found by the line above)

# What a JSON Schema cannot see: 4.0 for 4, and limits that other numbers set.
BEYOND = ("=10", "models=5", "classes=5", "=4.0", "=8.0", "group_size=4")
CODER, PART, BASIS_SECTION = "encodings.0", "encodings.0.fields.0.parts.0", "sections.3"


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Packs of rows, with and without a trellis, and of bases, by name."""
    folder = tmp_path_factory.mktemp("coded")
    recipes = {"rows": ROWS, "basis": BASIS, "ans-trellis": RECIPES["ans-trellis"]}
    return {name: write(folder / name, recipe) for name, recipe in recipes.items()}


def refusal(call, *arguments):
    """Return the code with which a call refuses a file, or ``None``."""
    try:
        call(*arguments)
    except (FormatError, BadPack) as error:
        return error.code
    return None


# ---- the header ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "edit", "code"), [
    *[("ans-trellis", set_value(f"{CODER}.{key}", value), "header-field")
      for key, values in {
          "models": (None, -1, 10, "4", 4.0), "classes": (None, -1, 10),
          "class_row": (None, -1, 2**18, True), "lanes": (None, 0, 33, 4.0, "4"),
          "trellis": (0, 4, 16, True, "8", 8.0), "frame": ("ANS", "raw", "zstd"),
      }.items() for value in values],
    *[("ans-trellis", set_value(f"{PART}.codec", codec), "header-field")
      for codec in ("int8", "f16", "f8e4m3-step")],
    *[("basis", set_value(f"{BASIS_SECTION}.{key}", value), "header-field")
      for key, values in {
          "models": (None, -1, 5), "classes": (None, -1, 5), "class_row": (None, -1, 2**18),
          "lanes": (None, 0, 33), "frame": ("zstd", "", 1, True), "codec": ("int4", "step8"),
          "group_size": (4, 5, None),
      }.items() for value in values],
    ("ans-trellis", set_value(f"{CODER}.models", 5), "section-kind"),
    ("ans-trellis", set_value(f"{CODER}.classes", 4), "section-kind"),
    ("ans-trellis", set_value(f"{CODER}.class_row", 2), "reference"),
    ("ans-trellis", set_value("sections.4.shape", [15, 8]), "array-shape"),
    ("ans-trellis", set_value("sections.4.shape", [120]), "array-shape"),
    ("ans-trellis", set_value("sections.5.shape", [42]), "array-shape"),
    ("ans-trellis", set_value("sections.5.shape", [21, 2]), "array-shape"),
    ("ans-trellis", set_value("sections.4.dtype", "float16"), "array-dtype"),
    ("ans-trellis", set_value("sections.5.dtype", "uint16"), "array-length"),
    ("ans-trellis", set_value(f"{CODER}.lanes", 5), None),  # is found in a block
    ("ans-trellis", remove(f"{CODER}.trellis"), None),
    ("ans-trellis", set_value(f"{CODER}.rows_per_block", 1), "index-length"),
    ("ans-trellis", set_value(f"{CODER}.rows_per_block", 4000), "index-length"),
    ("basis", set_value(f"{BASIS_SECTION}.shape", [12]), "array-shape"),
    ("basis", set_value(f"{BASIS_SECTION}.shape", [3, 6]), "array-shape"),
    ("basis", many(set_value(f"{BASIS_SECTION}.shape", [2, 60000]),
                   set_value(f"{BASIS_SECTION}.group_size", 60000)), "array-length"),
    ("basis", set_value(f"{BASIS_SECTION}.lanes", 16), "array-length"),
    ("basis", set_value(f"{BASIS_SECTION}.class_row", 1), "reference"),
    ("basis", set_value(f"{BASIS_SECTION}.models", 1), "section-kind"),
    ("basis", remove(f"{BASIS_SECTION}.frame"), "array-length"),
], ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", str(v)))  # fmt: skip
def test_coders_are_held_against_their_sections(name, edit, code, packs, tmp_path):
    """Reader and validator refuse a coder for the same reason, and the schema its types."""
    data = forge(packs[name].data, edit)
    (tmp_path / "pack").write_bytes(data)
    assert refusal(Check(data).opening) == code
    assert refusal(lambda: tolpack.open(tmp_path / "pack").close()) == code
    seen = code == "header-field" and not edit.__name__.endswith(BEYOND)
    assert SCHEMA.is_valid(split(data)[1]) == (not seen)


def test_keys_without_a_frame_mean_nothing(packs, tmp_path):
    """A coded basis that is not entropy-coded may have the keys of one, whatever they are."""
    data = write(tmp_path / "good", RECIPES["coded-basis"]).data
    number = [section["kind"] for section in split(data)[1]["sections"]].index("coded_basis")
    edits = [set_value(f"sections.{number}.{key}", -1) for key in ("models", "lanes", "classes")]
    data = forge(data, many(*edits, set_value(f"sections.{number}.frame", None)))
    (tmp_path / "pack").write_bytes(data)
    assert refusal(lambda: tolpack.open(tmp_path / "pack").close()) is None
    assert refusal(Check(data).opening) is None
    assert SCHEMA.is_valid(split(data)[1])


def test_headers_come_back(packs):
    """What a header says of coders is written as it was read, and sets the bits of 1.4."""
    for sample in packs.values():
        assert parse_header(sample.header.to_json()) == sample.header
        assert version_of(required_features(sample.header)) == (1, 4)
    assert version_of(1 << 9) == (1, 2)


def test_the_longest_payload_is_one_number():
    """Header and coder agree on the longest payload; no payload is longer, escapes alone."""
    models = code_models()[:1].copy()
    models[0, :2], models[0, 2:] = (256, 1), 0
    models[0, 8] = 16383
    for lanes in (1, 3, 32):
        coder = RowCoder((7, 9), np.zeros(16, np.uint8), CodeModels.of(models, "m"), lanes, False)
        codes = np.full((40, 16), 30000)
        (payload,) = coder.encode(codes, 40)
        assert len(payload) <= longest_payload(lanes, 640) == coder.longest_payload(40)
        assert len(payload) > 0.955 * longest_payload(lanes, 640)


def test_blocks_have_two_bytes_of_a_checksum_and_the_states_at_least():
    """The shortest block has the states of its lanes alone, and its checksum."""
    encoding = Encoding("ans", 7, ((step8(5, 0.5),),), CoderSettings(0, 1, 0, 2))
    sizes = block_sizes(encoding, 5)
    assert (sizes.checksum_bytes, sizes.shortest) == (2, 10)


# ---- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "basis"])
def test_every_flipped_bit_is_found(name, packs, tmp_path):
    """Each bit of blocks, index, models, classes and bases is found if it is another."""
    sample, path = packs[name], tmp_path / "pack"
    missed = []
    for section in sample.header.sections:
        step = {"code_models": 31, "blocks": 1 if name == "rows" else 13}.get(section.kind, 1)
        for bit in range(8 * section.offset_bytes, 8 * section.end_bytes, step):
            data = bytearray(sample.data)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            with open_first_table(path) as pack:
                missed += [] if pack.verify() else [(section.kind, bit)]
    assert missed == []


def test_damaged_models_are_named_once(packs, tmp_path):
    """Verification tells of damaged models for each of their chunks, and of blocks besides."""
    sample = packs["ans-trellis"]
    data, sections = bytearray(sample.data), sample.header.sections
    data[sections[4].offset_bytes] ^= 1
    data[sections[6].offset_bytes] ^= 1
    (tmp_path / "pack").write_bytes(data)
    with tolpack.open(tmp_path / "pack") as pack:
        found = [(damage.code, damage.first_slot, damage.rows) for damage in pack.verify()]
        assert refusal(pack.rows, [0]) == "array-checksum"
    assert found == [("array-checksum", 0, 9), ("block-checksum", 0, 2), ("array-checksum", 9, 7)]


def test_a_payload_is_a_check_of_itself(packs, tmp_path):
    """Without checksums, most damage of a payload still ends in `frame`."""
    sample, path = packs["rows"], tmp_path / "pack"
    section, refused = sample.header.sections[2], 0
    for byte in range(section.length_bytes):
        data = bytearray(sample.data)
        data[section.offset_bytes + byte] ^= 16
        path.write_bytes(data)
        with tolpack.open(path, checksums=False) as pack:
            refused += refusal(pack.rows, range(5)) == "frame"
    assert 0.75 * (section.length_bytes - 2 * 3) < refused < section.length_bytes


def test_half_a_checksum_finds_each_single_bit():
    """In payloads of up to 10,732 bytes: no single bit changes the other half of a CRC-32 alone."""
    assert "10,732 bytes" in (FORMAT / "SPEC.md").read_text("utf-8")

    def unchanged(length):
        """Bits of a payload's first byte that do not change the stored half."""
        zero = zlib.crc32(bytes(length))
        ones = [zlib.crc32(bytes([1 << bit]) + bytes(length - 1)) for bit in range(8)]
        return [one for one in ones if (one ^ zero) & 0xFFFF == 0]

    tables = [zlib.crc32(bytes([1 << bit])) ^ zlib.crc32(b"\0") for bit in range(8)]
    zeros = [zlib.crc32(bytes([n])) ^ zlib.crc32(b"\0") for n in range(256)]
    for _ in range(10_732):
        assert all(one & 0xFFFF for one in tables)
        tables = [one >> 8 ^ zeros[one & 255] for one in tables]
    assert unchanged(10_732) == []
    assert len(unchanged(10_733)) == 1


# ---- reading ------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Numbers of payloads that are decoded together, one for each call."""
    found, plain = [], RecordCoder.decode_records

    def decode(self, payloads, *arguments):
        found.append(len(payloads))
        return plain(self, payloads, *arguments)

    monkeypatch.setattr(RecordCoder, "decode_records", decode)
    return found


def test_blocks_are_decoded_together(calls, samples, monkeypatch):
    """One call for the blocks of a chunk, of a few scattered rows, or of a check's batch."""
    with tolpack.open(samples["ans"].path) as pack:
        pack.rows(range(pack.vocab_size))
        assert calls == [3, 520, 9, 1]
        calls.clear()
        order = np.argsort(samples["ans"].slots)
        pack.rows(order[[8, 9, 10, 537]])
        assert calls in ([3, 1], [1, 3])
        calls.clear()
        assert pack.verify() == []
        assert calls == [3, 512, 8, 9, 1]
        monkeypatch.setattr(
            record_reader, "_CODED_BYTES", 100 * pack.container.chunks[2].record_bytes
        )
        monkeypatch.setattr(record_reader, "_DECODE_BYTES", 40 * 4 * 21)
        calls.clear()
        rows = pack.rows(range(pack.vocab_size))
        assert sum(calls) == 533
        assert max(calls) == 100
    with tolpack.open(samples["ans"].path) as pack:
        assert (rows == np.concatenate([pack.rows([n]) for n in range(pack.vocab_size)])).all()


def test_a_damaged_block_leaves_the_others(packs, tmp_path, monkeypatch):
    """Of blocks that are checked together, the damaged ones alone are told, and rows of others."""
    monkeypatch.setattr(block_checks, "_TOGETHER_BLOCKS", 3)
    sample = write(tmp_path / "pack", Recipe(6, ROWS.layers, (Run(40, "ans", 2),)))
    with closing(Container.open(sample.path)) as container:
        extents = [container.block_extent(0, block) for block in (4, 5, 11)]
    data = bytearray(sample.data)
    for offset, _ in extents:
        data[offset] ^= 1
    sample.path.write_bytes(data)
    with tolpack.open(sample.path) as pack:
        found = [(damage.first_slot, damage.rows, damage.code) for damage in pack.verify()]
        assert found == [(8, 4, "block-checksum"), (22, 2, "block-checksum")]
        assert refusal(pack.rows, range(40)) == "block-checksum"
        assert pack.rows([0, 7, 12, 21, 24, 39]).shape == (6, 1, 6)


@pytest.mark.parametrize("name", ["ans", "ans-trellis", "ans-basis"])
@pytest.mark.parametrize("compiled", [False, True])
def test_loops_and_numpy_read_and_write_the_same_packs(name, compiled, tmp_path, monkeypatch):
    """With compiled loops and without: the golden pack is written, and its rows are read."""
    monkeypatch.setattr(kernels, "_loaded", [kernels.load() if compiled else None])
    golden = FORMAT / "golden" / f"{name}.tolpack"
    assert write(tmp_path / "pack", RECIPES[name]).data == golden.read_bytes()
    expected = np.load(golden.with_suffix(".npy"))
    with tolpack.open(golden) as pack:
        found = pack.rows(range(pack.vocab_size))
    assert np.allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_coders_are_read_once(packs):
    """Models and classes are read with the first row, kept, and counted as resident."""
    with tolpack.open(packs["ans-trellis"].path) as pack:
        before = pack.container.counters.array_reads
        pack.rows(range(16))
        arrays = pack.container.counters.array_reads - before
        assert arrays == 6  # token map, two bases, a mean, models, classes
        pack.rows(range(16))
        assert pack.container.counters.array_reads - before == arrays
        kept = [s for s in packs["ans-trellis"].header.sections if s.kind != "blocks"]
        header = pack.container.preamble.header_length
        assert pack.container.resident_bytes == 64 + header + sum(s.length_bytes for s in kept)


def test_what_codes_cost_is_told(samples, tmp_path):
    """Codes by the models, states and checksums add up to the blocks; a state takes less than
    4.5 bytes. Of rows that no models code nothing is told.
    """
    layers = (Layer((step8(300, 0.3),)),)
    sample = write(tmp_path / "pack", Recipe(300, layers, (Run(50, "ans", 1, lanes=2),)))
    with open_first_table(sample.path) as pack:
        coding, text = describe_pack(pack)["coding"], pack_table(describe_pack(pack), "pack")
        blocks = sum(s.length_bytes for s in pack.container.header.sections if s.kind == "blocks")
    assert coding["checksums"] == 2 * 50
    assert coding["codes"] + coding["states"] + coding["checksums"] == pytest.approx(blocks)
    assert 0 < coding["states"] < 4.5 * 2 * 50
    assert coding["stored_per_cost"] == pytest.approx(1 + coding["states"] / coding["codes"])
    assert coding["models"] == 2 * 8 * 15 + 300
    assert "by the models" in text
    with open_first_table(samples["ans"].path) as pack:  # its first chunk is raw
        assert describe_pack(pack)["coding"] is None


@pytest.mark.parametrize("rows", [5, 65536])
def test_token_maps_take_two_bytes(rows, tmp_path):
    """A map of 2 bytes a token is read in full, and gives tokens by slot; the largest too."""
    recipe = Recipe(1, (Layer((step8(1, 0.1),)),), (Run(rows, "zstd", 4096),), shuffled=True,
                    map_dtype="uint16")  # fmt: skip
    sample = write(tmp_path / "pack", recipe)
    ids = np.array([0, 3, rows - 1])
    with tolpack.open(sample.path) as pack:
        assert pack.verify() == []
        assert (pack.most_frequent(rows) == np.argsort(sample.slots)).all()
        step = np.float32(0.1)
        expected = np.rint(sample.values[0][sample.slots[ids]] / step) * step
        assert np.allclose(pack.rows(ids)[:, 0], expected)
    assert refusal(validate, sample.data) is None


@pytest.mark.parametrize(
    ("chunks", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (256, 8)]
)
def test_token_maps_of_chunks_come_back(chunks, bits, tmp_path):
    """A map of chunks takes 1, 2, 4 or 8 bits a token, and gives tokens by slot."""
    layers = (Layer((step8(1, 0.1),)),)
    runs = tuple(Run(1 + n % 3) for n in range(chunks))
    recipe = Recipe(1, layers, runs, shuffled=True, map_dtype="uint8", header_room=60_000)
    sample = write(tmp_path / "pack", recipe)
    rows, section = recipe.rows, sample.header.sections[0]
    assert section.length_bytes == map_bytes(rows, chunks) == -(-rows * bits // 8)
    packed = np.frombuffer(sample.data, np.uint8, section.length_bytes, section.offset_bytes)
    numbers = np.searchsorted(np.cumsum([run.rows for run in runs]), sample.slots, side="right")
    assert (pack_numbers(numbers, chunks) == packed).all()
    with tolpack.open(sample.path) as pack:
        assert pack.verify() == []
        assert (pack.slots(range(rows)) == sample.slots).all()
    assert refusal(validate, sample.data) is None
    assert [Decoder(sample.data).slot(n) for n in range(rows)] == sample.slots.tolist()


def test_a_map_of_two_bytes_is_too_small_for_more(tmp_path):
    """A table of 65,537 rows with a map in uint16 is an ``array-dtype``."""
    recipe = Recipe(1, (Layer((step8(1, 0.1),)),), (Run(65537, "zstd", 4096),), shuffled=True)
    data = write(tmp_path / "pack", recipe).data

    def shorter(header, contents):
        header["sections"][0]["dtype"] = "uint16"
        contents[0] = contents[0][: 2 * 65537]

    features = split(data)[0]["required_features"] | 1 << 48
    (tmp_path / "pack").write_bytes(data := rebuilt(data, shorter, required_features=features))
    assert refusal(lambda: tolpack.open(tmp_path / "pack").close()) == "array-dtype"
    assert refusal(Check(data).opening) == "array-dtype"


def test_rates_and_bits_are_those_of_the_codes(samples):
    """Summaries tell the bits of each field; the codes' entropy is below the bits stored."""
    with tolpack.open(samples["ans-trellis"].path) as pack:
        for layer in layer_summaries(pack.container):
            assert 0 < layer.entropy_bits < 16
            assert layer.bits > 0


def test_an_open_pack_survives_a_fork_with_its_coder_held(packs):
    """A fork while another thread makes a coder leaves the child a lock of its own."""
    with tolpack.open(packs["rows"].path) as pack:
        held = pack.container.coders._lock
        with held:
            pack.container.coders.reset_after_fork()
            assert pack.rows([1]).shape == (1, 1, 6)
