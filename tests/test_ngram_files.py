"""N-gram tables in the containers of other projects, against slow decoders of their own."""

import numpy as np
import pytest
import torch
from ngram_tables import CONFIG, ROWS, decode_ring, save_exl3, save_folder, save_mtplx, uint32
from safetensors.torch import save_file

from tolpack.errors import CheckpointError
from tolpack.ngrams import NGramHash
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.families.exl3 import EXL3
from tolpack.sources.families.mtplx import MTPLX
from tolpack.sources.open_source import open_tables

IDS = np.array([40, 0, 7, 8, 9, 7], np.int64)


def open_family(family, path, config=None):
    """Open the one table of a file."""
    (table,) = family.open_tables(CheckpointFiles(path, open_store(path), config or {}))
    return table


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
    stored["layer_multipliers"] = torch.tensor([5, 7, -(2**63)])
    save(tmp_path)
    with pytest.raises(CheckpointError, match="give no hash: multipliers hold -9223372036854775"):
        open_tables(tmp_path)
    stored["layer_multipliers"] = torch.tensor([5, 7, 9])
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


def test_fingerprints_see_every_compressed_id(tmp_path):
    """One id among thousands changes the fingerprint, although numpy prints none of them."""
    path, seen = tmp_path / "ngram-table.safetensors", set()
    save_mtplx(path, 4, 32)
    for place in (None, 0, 2500, 4999):
        ids = np.zeros(5000, np.uint32)
        if place is not None:
            ids[place] = 1
        table = open_family(MTPLX, path)
        table.ngrams = NGramHash("xor", (1,), (ROWS,), (0,), (3,), 0, compressed_ids=ids)
        seen.add(table.fingerprint())
    assert len(seen) == 4
