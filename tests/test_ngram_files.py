"""N-gram tables in the containers of other projects, against slow decoders of their own."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.exl3 import EXL3
from tolpack.sources.families.mtplx import MTPLX
from tolpack.sources.open_source import open_tables

ROWS = 41
IDS = np.array([40, 0, 7, 8, 9, 7], np.int64)
KEY = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"


def open_family(family, path, config=None):
    """Open the one table of a file."""
    (table,) = family.open_tables(CheckpointFiles(path, open_store(path), config or {}))
    return table


def uint32(values):
    return torch.from_numpy(values.astype("<u4").view("<i4")).view(torch.uint32)


def save_mtplx(path, bits, group, width=160, dtype=torch.bfloat16, **changes):
    """Write a random table as MTPLX does; returns the codes, scales and biases."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (ROWS, width))
    words = np.zeros((ROWS, width * bits // 32), np.int64)
    for value in range(width):  # from the lowest bits of each word on
        words[:, value * bits // 32] |= codes[:, value] << value * bits % 32
    scales = torch.from_numpy(rng.normal(size=(ROWS, width // group))).to(dtype)
    biases = torch.from_numpy(rng.normal(size=(ROWS, width // group))).to(dtype)
    tensors = {"ngram.weight": uint32(words), "ngram.scales": scales, "ngram.biases": biases}
    metadata = {"ngram_bits": str(bits), "ngram_group_size": str(group)}
    for key, value in changes.items():
        (metadata if key.startswith("ngram_") else tensors)[key] = value
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})
    return codes, scales.float().numpy(), biases.float().numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("bits", "group", "width"), [(4, 32, 160), (8, 64, 128), (2, 128, 256)])
def test_affine_rows_are_scale_times_code_plus_bias(tmp_path, bits, group, width, dtype):
    """Every value is scale · code + bias of its group, in float32."""
    path = tmp_path / "ngram-table.safetensors"
    codes, scales, biases = save_mtplx(path, bits, group, width, dtype)
    table = open_family(MTPLX, path, {"text_config": {"ple_layer_ids": [2]}})
    expected = np.empty((ROWS, width), np.float32)
    for row in range(ROWS):
        for value in range(width):
            scale, bias = scales[row, value // group], biases[row, value // group]
            expected[row, value] = np.float32(np.float32(codes[row, value]) * scale) + bias
    assert (table.name, table.rows, table.fields[0].layer) == ("ngram_embedding", ROWS, 1)
    assert np.array_equal(table.field_rows(0)(IDS), expected[IDS])
    assert table.stored_rows(0)(IDS)[1].tobytes() == expected[IDS].tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ngram_bits": "3"}, "ngram_bits of the metadata is '3', expected 2, 4 or 8"),
        ({"ngram_bits": None}, "ngram_bits of the metadata is '', expected"),
        ({"ngram_group_size": "64"}, r"expected \[41, 2\]: a scale for each 64 of 160"),
        ({"ngram_group_size": "1"}, "ngram_group_size of the metadata is '1'"),
        ({"ngram.scales": torch.zeros(40, 5)}, r"shapes \[40, 5\] and \[41, 5\]"),
        ({"ngram.biases": torch.zeros(41, 5)}, "are bfloat16 and float32"),
        ({"ngram.weight": torch.zeros(41, 20)}, r"is float32 \[41, 20\], expected U32"),
        ({"ngram.weight": uint32(np.zeros(41))}, r"is U32 \[41\], expected U32 \[rows, col"),
    ],
)
def test_affine_tensors_must_fit(tmp_path, changes, message):
    """Bits, groups, shapes and dtypes that do not fit are errors that say what is expected."""
    path = tmp_path / "ngram-table.safetensors"
    save_mtplx(path, 4, 32, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_family(MTPLX, path)


def decode_mul1(state):
    """Return the value of a state, by the codebook's definition."""
    product = state * 0x83DCD12D & 0xFFFFFFFF
    total = 1024 + sum(product.to_bytes(4, "little"))
    slope, shift = (struct.unpack("<e", struct.pack("<H", bits))[0] for bits in (0x1EEE, 0xC931))
    return np.float32(np.float16(total * slope + shift))


def decode_ring(words, bits, width):
    """Return the values of a row without its bias: states read bit by bit around the ring."""
    scale = np.float32(np.frombuffer(struct.pack("<H", int(words[0])), np.float16)[0])
    stream = [int(word) >> bit & 1 for word in words[1:] for bit in range(16)]
    row = np.empty(width, np.float32)
    for place in range(width):
        state = 0
        for bit in range(16):
            symbol = (place - bit // bits) % width
            state |= stream[symbol * bits + bit % bits] << bit
        row[place] = decode_mul1(state) * scale
    return row


def save_exl3(path, bits, shards=3, width=160, key=KEY, **changes):
    """Write a random table as exllamav3 does; returns its words, uint16."""
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 1 << 16, (ROWS, 1 + width * bits // 16)).astype(np.uint16)
    words[:, 0] = rng.normal(size=ROWS).astype(np.float16).view(np.uint16)
    cuts = np.array_split(words, shards)
    names = [f".shard_{n}.trellis" for n in range(shards)] if shards > 1 else [".trellis"]
    tensors = {
        key + name: torch.from_numpy(part.view(np.int16).copy()) for name, part in zip(names, cuts)
    }
    tensors |= {
        f"{key}.head_bias": torch.from_numpy(rng.normal(size=(2, width)).astype(np.float16)),
        f"{key}.head_offsets": torch.tensor([0, 8]),
    }
    metadata = {"format": "exl3_ngram_trellis", "version": "1", "codebook": "mul1"}
    for name, value in changes.items():
        if name in metadata:
            metadata[name] = value
        elif value is None:
            del tensors[f"{key}.{name}"]
        else:
            tensors[f"{key}.{name}"] = value
    save_file(tensors, path, metadata)
    return words, tensors[
        f"{key}.head_bias"
    ].float().numpy() if "head_bias" not in changes else None


@pytest.mark.parametrize("bits", range(1, 9))
def test_trellis_rows_are_those_of_the_ring(tmp_path, bits):
    """Every value is the codebook's at its state, times the row's scale, plus its head's bias."""
    path = tmp_path / "ngram_embedding.safetensors"
    words, bias = save_exl3(path, bits, shards=1 + 2 * (bits % 2))
    table = open_family(EXL3, path)
    heads = (IDS >= 8).astype(int)
    expected = np.stack([decode_ring(words[row], bits, 160) for row in IDS]) + bias[heads]
    assert (table.name, table.rows, table.fields[0].layer) == ("ngram_embedding", ROWS, 1)
    assert np.array_equal(table.field_rows(0)(IDS), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "version of the metadata is '2', expected '1': other trellis codes"),
        ({"codebook": "mcg"}, "codebook of the metadata is 'mcg', expected 'mul1'"),
        ({"shard_1.trellis": None}, r"2 trellis tensors of 1 tables, .* missing: \[1\]"),
        ({"head_bias": None}, "head_bias' is missing"),
        ({"head_offsets": torch.tensor([0, 41])}, "ascending rows from 0, below 41"),
        ({"head_offsets": torch.tensor([1, 8])}, "ascending rows from 0"),
        ({"head_offsets": torch.tensor([0, 0])}, "ascending rows from 0"),
        ({"head_offsets": torch.tensor([0])}, r"shapes \[2, 160\] and \[1\]"),
        ({"head_bias": torch.zeros(2, 96)}, r"rows of 41 words, expected 1 \+ 96 · K / 16"),
        ({"shard_1.trellis": torch.zeros(14, 40, dtype=torch.int16)}, "rows of 80 bytes"),
        ({"shard_1.trellis": torch.zeros(14, 41)}, r"is float32 \[14, 41\], expected I16"),
    ],
)
def test_trellis_tensors_must_fit(tmp_path, changes, message):
    """Other codes, missing shards, and heads that do not fit are errors that name the tensor."""
    path = tmp_path / "ngram_embedding.safetensors"
    save_exl3(path, 4, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_family(EXL3, path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    """A scale that is infinite is an error that names the row."""
    path = tmp_path / "a.safetensors"
    scales = torch.ones(ROWS, 5, dtype=torch.bfloat16)
    scales[3, 1] = torch.inf
    save_mtplx(path, 4, 32, **{"ngram.scales": scales})
    with pytest.raises(CheckpointError, match="NaN or Inf at token 3, layer 0"):
        open_family(MTPLX, path).field_rows(0)(np.arange(ROWS))


def test_other_files_are_of_no_such_family(tmp_path):
    """Tensors of other names are left to other families."""
    path = tmp_path / "a.safetensors"
    save_file({"ngram.weight": torch.zeros(2, 2), "x": torch.zeros(2, 2)}, path)
    files = CheckpointFiles(path, open_store(path), {})
    assert MTPLX.open_tables(files) is None
    assert EXL3.open_tables(files) is None


# Two heads of 11 and 13 rows.
CONFIG = {
    "model_type": "qwen4_exp",
    "text_config": {
        "vocab_size": 50, "hidden_size": 320, "eos_token_id": 3, "ple_layer_ids": [2],
        "ngram_size": 3, "heads_per_ngram": 1, "ngram_vocab_size_base": 10,
    },
}  # fmt: skip


def save_folder(folder, save):
    """Write a folder whose index does not list the n-gram table, as converters do."""
    save_file({"model.norm.weight": torch.ones(4)}, folder / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save(folder)


def test_folders_and_files_are_recognised_with_their_hash(tmp_path):
    """The folder and the file itself give the same table, with the hash of the configuration."""
    save_folder(tmp_path, lambda folder: save_mtplx(folder / "ngram-table.safetensors", 4, 32))
    for path in (tmp_path, tmp_path / "ngram-table.safetensors"):
        (table,) = open_tables(path)
        assert (table.rows, table.fields[0].layer, table.fields[0].width) == (ROWS, 1, 160)
        assert (table.ngrams.sizes, table.ngrams.offsets) == ((11, 13), (0, 11))
        assert table.ngrams.boundary == 3
    assert table.describe()[0] == "family: MTPLX n-gram table"


def test_the_hash_of_a_trellis_table_is_in_its_file(tmp_path):
    """Multipliers, sizes and first rows are those of the file, not of the configuration."""
    stored = {
        "layer_multipliers": torch.tensor([5, 7, 9]),
        "head_vocab_sizes": torch.tensor([8, 33]),
    }

    def save(folder):
        save_exl3(folder / "ngram_embedding.safetensors", 6, **stored)

    save_folder(tmp_path, save)
    (table,) = open_tables(tmp_path)
    assert table.ngrams.multipliers == (5, 7, 9)
    assert (table.ngrams.sizes, table.ngrams.offsets) == ((8, 33), (0, 8))
    stored["head_vocab_sizes"] = torch.tensor([8, 34])
    save(tmp_path)
    with pytest.raises(CheckpointError, match="has 41 rows, but the heads .* have 42"):
        open_tables(tmp_path)


def test_fingerprints_see_codes_heads_and_hash(tmp_path):
    """Another code, bias of a head, or configuration changes the fingerprint."""
    seen = set()
    for bits, bias in ((4, 0.0), (5, 0.0), (4, 1.0)):
        path = tmp_path / "ngram_embedding.safetensors"
        save_exl3(path, bits, head_bias=torch.full((2, 160), bias, dtype=torch.float16))
        seen.add(open_family(EXL3, path).fingerprint())
    save_mtplx(path, 4, 32)
    seen |= {open_family(MTPLX, path, config).fingerprint() for config in ({}, CONFIG)}
    assert len(seen) == 5
