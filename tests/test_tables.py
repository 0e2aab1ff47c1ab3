"""Rows of every kind of source against a computation of their own, FFN(Norm(x0)) token by token."""

import gc

import h5py
import models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tolpack.errors import CheckpointError, ConfigError, TolpackError
from tolpack.sources.held_table import HeldTable
from tolpack.sources.open_source import open_source
from tolpack.sources.protocol import SourceField

IDS = np.array([0, 96, 5, 5, 41], np.int64)


def rows_of(source, ids=None):
    """Return all rows of `source`: float32 (ids, layers, hidden)."""
    ids = np.arange(source.vocab_size) if ids is None else ids
    return np.stack([source.field_rows(n)(ids) for n in range(source.num_layers)], axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ["silu", "gelu"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_memory_rows_are_ffn_of_normed_embedding(tmp_path, norm, act, dtype):
    """Rows equal FFN(Norm(x0)) of the stored weights, for each norm, activation and dtype."""
    config = models.make_config(norm=norm, hidden_act=act)
    state = models.make_state(config, dtype, bias=norm == "layernorm")
    source = open_source(models.save_pt(tmp_path / "m.pt", state, config))
    found = rows_of(source)
    assert found.dtype == np.float32
    assert source.dtype == "float32"
    np.testing.assert_allclose(found, models.Naive(state, config).table(), atol=2e-5)


def test_layernorm_without_bias(tmp_path):
    """LayerNorm weights may come without a bias."""
    config = models.make_config(norm="layernorm")
    state = models.make_state(config)
    found = rows_of(open_source(models.save_pt(tmp_path / "m.pt", state, config)))
    np.testing.assert_allclose(found, models.Naive(state, config).table(), atol=2e-5)


@pytest.mark.parametrize("flex_input", ["post_attention", "residual"])
@pytest.mark.parametrize("linear_mlp", [False, True])
def test_flex_rows_are_those_of_its_memory_ffn(tmp_path, flex_input, linear_mlp):
    """In a Flex model FFN-C, of either kind, does not enter the table."""
    config = models.make_config("flex_memoryllm", flex_input=flex_input)
    state = models.make_state(config, linear_mlp=linear_mlp)
    found = rows_of(open_source(models.save_pt(tmp_path / "m.pt", state, config)))
    np.testing.assert_allclose(found, models.Naive(state, config).table(), atol=2e-5)


def test_rows_come_in_the_order_asked_for(memoryllm):
    """Any list of ids, with repeats, gives its rows in its order."""
    source = open_source(memoryllm)
    np.testing.assert_allclose(rows_of(source, IDS), rows_of(source)[IDS], atol=1e-6)


def test_ffn_bytes_count_the_memory_as_stored(tmp_path):
    """ffn_bytes are the memory FFNs and their norms in their stored dtype."""
    config = models.make_config()
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        state = models.make_state(config, dtype)
        source = open_source(models.save_pt(tmp_path / "m.pt", state, config))
        assert source.ffn_bytes == size * 3 * (3 * 20 * 24 + 24)


def test_rows_that_overflow_are_refused(tmp_path):
    """Finite weights whose FFN overflows float32 give an error, not rows of NaN or Inf."""
    config = models.make_config()
    state = models.make_state(config)
    for part in ("gate", "up"):
        state[f"layers.1.memory_mlp.{part}_proj.weight"] *= 1e25
    source = open_source(models.save_pt(tmp_path / "m.pt", state, config))
    with pytest.raises(CheckpointError, match="layer 1|layers.1"):
        source.field_rows(1)(IDS)


def test_memory_fingerprint_sees_weights_and_settings_not_names(tmp_path):
    """Another spelling has the same fingerprint; another weight, norm or activation has not."""
    config = models.make_config()
    state = models.make_state(config)
    first = open_source(models.save_pt(tmp_path / "a.pt", state, config)).fingerprint()
    folder = models.save_folder(tmp_path / "b", models.prefixed(state), config, shards=2)
    assert open_source(folder).fingerprint() == first
    for change in ({"rms_norm_eps": 1e-4}, {"hidden_act": "gelu"}, {"norm": "layernorm"}):
        path = models.save_pt(tmp_path / "c.pt", state, config | change)
        assert open_source(path).fingerprint() != first
    for name in ("embed_tokens.weight", "layers.2.memory_mlp.down_proj.weight"):
        other = dict(state) | {name: state[name].clone()}
        other[name][-1, -1] += 1
        path = models.save_pt(tmp_path / "d.pt", other, config)
        assert open_source(path).fingerprint() != first


def save_table(path, table):
    """Save torch `table` by the suffix of `path`; returns it."""
    if path.suffix == ".npy":
        np.save(path, table.numpy())
    elif path.suffix == ".safetensors":
        save_file({"anything": table}, path)
    else:
        with h5py.File(path, "w") as file:
            file["group/table"] = table.numpy()
    return path


TABLE_KINDS = [
    (suffix, dtype)
    for suffix in (".npy", ".safetensors", ".h5", ".hdf5")
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    if dtype != torch.bfloat16 or suffix == ".safetensors"  # numpy and HDF5 have no bfloat16
]


@pytest.mark.parametrize(("suffix", "dtype"), TABLE_KINDS)
def test_plain_tables_give_their_values_exactly(tmp_path, suffix, dtype):
    """Tables of each kind and dtype, in two and three dimensions, give exactly their values."""
    table = torch.randn(31, 3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    ids = np.array([30, 0, 7, 7], np.int64)
    for shape, layers in (((31, 3, 8), None), ((31, 3, 8), 3), ((31, 24), 3)):
        path = save_table(tmp_path / f"{len(shape)}{layers}{suffix}", table.reshape(shape))
        source = open_source(path, layers=layers)
        assert (source.vocab_size, source.num_layers, source.hidden_size) == (31, 3, 8)
        assert source.dtype == str(dtype).removeprefix("torch.")
        assert source.ffn_bytes is None
        found = rows_of(source, ids)
        assert found.dtype == np.float32
        assert np.array_equal(found, table.float().numpy()[ids])


def test_fortran_order_table_gives_its_values(tmp_path):
    """A .npy in Fortran order gives the same rows as one in C order."""
    table = np.random.default_rng(0).standard_normal((20, 2, 4)).astype(np.float32)
    np.save(tmp_path / "f.npy", np.asfortranarray(table))
    assert np.array_equal(rows_of(open_source(tmp_path / "f.npy")), table)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".h5"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_table_names_token_and_layer(tmp_path, suffix, value):
    """A NaN or Inf in a table gives an error with its token and layer when it is met."""
    table = torch.zeros(9, 2, 4)
    table[7, 1, 3] = value
    source = open_source(save_table(tmp_path / f"t{suffix}", table))
    source.field_rows(0)(np.arange(9))
    with pytest.raises(CheckpointError, match="NaN or Inf at token 7, layer 1"):
        source.field_rows(1)(np.array([3, 7]))


def test_two_dimensional_table_needs_layers(tmp_path):
    """A two-dimensional table without --layers is refused with the remedy."""
    path = save_table(tmp_path / "t.npy", torch.zeros(9, 8))
    with pytest.raises(ConfigError, match="--layers N"):
        open_source(path)


@pytest.mark.parametrize(
    ("shape", "layers"),
    [((9,), None), ((9, 8), 3), ((9, 2, 4), 3), ((9, 2, 2, 2), None), ((0, 2, 4), None),
     ((9, 0), 2), ((), None)],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".h5"])
def test_table_of_another_shape_is_refused(tmp_path, suffix, shape, layers):
    """A table whose shape is none of the two, or contradicts --layers, is refused."""
    path = save_table(tmp_path / f"t{suffix}", torch.zeros(shape))
    with pytest.raises(CheckpointError, match=r"the table has shape .*expected \[vocab, layers"):
        open_source(path, layers=layers)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".h5"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_table_of_another_dtype_is_refused(tmp_path, suffix, dtype):
    """A table that is not fp32, fp16 or bf16 is refused rather than rounded."""
    path = save_table(tmp_path / f"t{suffix}", torch.zeros(9, 2, 4, dtype=dtype))
    with pytest.raises(CheckpointError, match="expected float32, float16 or bfloat16"):
        open_source(path)


def test_damaged_table_files_are_refused(tmp_path):
    """Empty, foreign, cut and pickled table files give tolpack's errors with the path."""
    good = save_table(tmp_path / "good.npy", torch.zeros(9, 2, 4)).read_bytes()
    for suffix in (".npy", ".h5", ".hdf5", ".safetensors"):
        for number, data in enumerate((b"", b"hello", good[:40], good[:-1])):
            path = tmp_path / f"{number}{suffix}"
            path.write_bytes(data)
            with pytest.raises(TolpackError, match=path.name):
                open_source(path)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"objects\.npy"):
        open_source(tmp_path / "objects.npy")


def test_npz_under_the_name_npy_is_refused_and_closed(tmp_path):
    """A ZIP of arrays that is called .npy is refused, and no file is left open."""
    with open(tmp_path / "t.npy", "wb") as file:
        np.savez(file, a=np.zeros((9, 2, 4), np.float32))
    with pytest.raises(CheckpointError, match=r"t\.npy"):
        open_source(tmp_path / "t.npy")
    gc.collect()  # a file left open would be warned of here


def test_h5_must_hold_one_dataset(tmp_path):
    """An HDF5 file with no dataset or several is refused with their names."""
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"] = file["b"] = np.zeros((9, 2, 4), np.float32)
        file["c"] = np.zeros((9, 2, 4), np.float32)
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    with pytest.raises(CheckpointError, match="must hold one dataset, found /a"):
        open_source(tmp_path / "two.h5")
    with pytest.raises(CheckpointError, match="must hold one dataset, found none"):
        open_source(tmp_path / "none.h5")


def test_sources_say_rows_fields_and_capabilities(tmp_path, memoryllm):
    """Each kind of source describes itself by rows and fields, and has each capability or none."""
    saved = save_table(tmp_path / "t.npy", torch.zeros(9, 2, 4, dtype=torch.float16))
    plain, ffn = open_source(saved), open_source(memoryllm)
    held = HeldTable(ffn)
    assert plain.fields == tuple(SourceField(f"layer.{n}", n, 4, "float16") for n in (0, 1))
    assert ffn.fields == tuple(SourceField(f"layer.{n}", n, 24, "float32") for n in range(3))
    assert (plain.rows, plain.checkpoint, plain.ffn_bytes) == (9, None, None)
    assert (ffn.rows, ffn.inner_size, held.rows, held.fields) == (97, 20, 97, ffn.fields)
    assert (plain.weight_bytes, ffn.weight_bytes) == (0, 4 * 3 * 24 * 20)
    assert held.weight_bytes == ffn.weight_bytes
    assert held.checkpoint is ffn.checkpoint
    assert held.fingerprint() == ffn.fingerprint()
    for source in (plain, ffn, held):
        assert (source.vocab_size, source.num_layers) == (source.rows, len(source.fields))
        assert (source.hidden_size, source.dtype) == (
            source.fields[0].width, source.fields[0].dtype
        )  # fmt: skip


def test_computed_in_changes_only_what_is_multiplied(tmp_path, memoryllm):
    """A table of FFNs, held or not, gives one multiplied otherwise; a plain table gives itself."""
    plain = open_source(save_table(tmp_path / "t.npy", torch.zeros(9, 2, 4)))
    assert plain.computed_in(torch.bfloat16) is plain
    ffn = open_source(memoryllm)
    rounded = ffn.computed_in(torch.bfloat16)
    assert (ffn.compute, rounded.compute) == (torch.float32, torch.bfloat16)
    held = HeldTable(ffn)
    assert np.allclose(rows_of(held), rows_of(ffn), atol=1e-6)
    again = held.computed_in(torch.bfloat16)
    assert again.compute is torch.bfloat16
    assert np.allclose(rows_of(again), rows_of(rounded), atol=1e-2)
    assert not np.array_equal(rows_of(again), rows_of(held))
    assert held.computed_in(torch.float32) is held


def test_table_of_more_layers_than_a_pack_holds_is_refused(tmp_path):
    """A table of over 4,096 layers is refused before anything is made for each of them."""
    path = save_table(tmp_path / "t.npy", torch.zeros(2, 4097))
    with pytest.raises(CheckpointError, match="4,097 layers, expected at most 4,096"):
        open_source(path, layers=4097)


def test_layers_with_a_checkpoint_is_refused(memoryllm):
    """--layers means nothing for a checkpoint and is refused."""
    with pytest.raises(ConfigError, match="--layers is for two-dimensional tables"):
        open_source(memoryllm, layers=3)


def test_table_fingerprint_sees_values_and_shape(tmp_path):
    """Kind of file does not enter a table's fingerprint; values, shape and dtype do."""
    table = torch.randn(31, 2, 8, generator=torch.Generator().manual_seed(1))
    prints = [
        open_source(save_table(tmp_path / f"t{suffix}", table)).fingerprint()
        for suffix in (".npy", ".safetensors", ".h5")
    ]
    assert len(set(prints)) == 1
    changed = table.clone()
    changed[30, 1, 7] += 1
    others = [
        open_source(save_table(tmp_path / "u.npy", changed)).fingerprint(),
        open_source(save_table(tmp_path / "v.npy", table.reshape(31, 4, 4))).fingerprint(),
        open_source(save_table(tmp_path / "w.npy", table.half())).fingerprint(),
    ]
    assert len({prints[0], *others}) == 4


@pytest.mark.parametrize(("room", "kept"), [(1 << 20, 32 * 4 * 32 * 2), (100, 0)])
def test_chunks_of_a_row_are_decompressed_once(tmp_path, room, kept):
    """HDF5 keeps all chunks that a row lies in, unless they are too many for the memory given."""
    import h5py

    from tolpack.sources.arrays.hdf5_worker import TableHandlers

    table = np.random.default_rng(1).normal(size=(70, 3, 20)).astype(np.float16)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("t", data=table, chunks=(32, 2, 16), compression="gzip")
    worker = TableHandlers()
    worker.open({"path": str(tmp_path / "t.h5"), "cache_bytes": room}, b"")
    assert worker.describe({}, b"")[0]["band_bytes"] == kept
    if kept:
        assert worker._dataset.id.get_access_plist().get_chunk_cache()[1] == kept
    assert worker.stored({"start": 3, "stop": 60}, b"")[1] == table[3:60].tobytes()
