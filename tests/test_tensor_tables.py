"""Tables that are tensors of a checkpoint: the bytes of the files, whatever they lie in."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.shards import open_store
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.tensors.finite_bytes import bad_rows
from tolpack.sources.tensors.last_rows import LastRows
from tolpack.sources.tensors.tensor_fields import StoredCodes
from tolpack.sources.tensors.tensor_rows import RowsFile
from tolpack.sources.tensors.tensor_table import TensorTable, tensor_names

ROWS = (5, 1, 7, 3)
NAMES = [f"t.shard_{n}.weight" for n in range(len(ROWS))]


def shards(dtype, width=6, seed=0):
    """Return random tensors of `ROWS` rows each, by name."""
    source = torch.Generator().manual_seed(seed)
    return {n: torch.randn(r, width, generator=source).to(dtype) for n, r in zip(NAMES, ROWS)}


def save(folder, tensors, suffix=".safetensors"):
    """Save tensors in two files of a folder; returns `CheckpointFiles`."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    for number in range(2):
        part = {name: tensors[name] for name in names[number::2]}
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        write = save_file if suffix == ".safetensors" else torch.save
        write(part, folder / f"{stem}-0000{number + 1}-of-00002{suffix}")
    return CheckpointFiles(folder, open_store(folder), {})


def table(files, names=NAMES):
    """Return the table of one field of these tensors."""
    codes = files.codes(*names)
    return TensorTable("t", "test", files.store.states, [codes.field("t", 0)])


def bytes_of(*tensors):
    """Return the rows of tensors one after the other, uint8 (rows, bytes)."""
    return np.concatenate([t.contiguous().view(torch.uint8).flatten(1).numpy() for t in tensors])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_those_of_the_files(tmp_path, dtype, suffix):
    """Any ids in any order give the bytes of the shards, and their values in float32."""
    tensors = shards(dtype)
    found = table(save(tmp_path / "m", tensors, suffix))
    whole = torch.cat(list(tensors.values()))
    for ids in ([], [3], [0, 15, 4, 4, 9], range(16), range(3, 14), [15, 14, 13]):
        ids = np.array(ids, np.int64)
        scales, codes = found.stored_rows(0)(ids)
        assert scales.shape == (len(ids), 0)
        assert np.array_equal(codes, bytes_of(whole)[ids])
        assert np.array_equal(found.field_rows(0)(ids), whole[ids].float().numpy())


@given(ids=st.lists(st.integers(0, 15), max_size=40), gap=st.sampled_from([0, 12, 30, 8192]))
def test_gaps_and_spans_change_nothing(tmp_path_factory, ids, gap):
    """Rows are the same however they are gathered into reads."""
    tensors = shards(torch.bfloat16)
    found = table(save(tmp_path_factory.mktemp("gaps") / "m", tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tolpack.sources.tensors.tensor_rows._GAP_BYTES", gap)
        patch.setattr("tolpack.sources.tensors.tensor_rows._SPAN_BYTES", 40)
        codes = found.stored_rows(0)(np.array(ids, np.int64))[1]
    assert np.array_equal(codes, bytes_of(*tensors.values())[np.array(ids, np.int64)])


@pytest.mark.parametrize("piece", [1, 50, 16 << 20])
def test_fields_are_columns_of_one_tensor(tmp_path, monkeypatch, piece):
    """Fields that are column ranges of a tensor, and are asked for in turn, in threads."""
    monkeypatch.setattr("tolpack.sources.tensors.last_rows._PIECE_BYTES", piece)
    tensor = shards(torch.bfloat16, width=12)[NAMES[2]]
    files = save(tmp_path / "m", {"e.weight": tensor, "other": tensor.clone()})
    codes = files.codes("e.weight")
    fields = [codes.field(f"layer.{n}", n, 4 * n, 4) for n in range(3)]
    found = TensorTable("e", "test", files.store.states, fields)
    wrong = []

    def ask():
        for ids in (np.array([6, 0, 2]), np.arange(7)):
            for n in range(3):
                expected = bytes_of(tensor[:, 4 * n : 4 * n + 4].contiguous())[ids]
                if not np.array_equal(found.stored_rows(n)(ids)[1], expected):
                    wrong.append(n)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert found.stored_bytes == tensor.nbytes


def test_rows_that_the_page_cache_has_not(tmp_path, monkeypatch):
    """Rows that have to be waited for are announced, and the same."""
    tensors, advised = shards(torch.bfloat16), []
    found = table(save(tmp_path / "m", tensors))
    monkeypatch.setattr("tolpack.sources.tensors.tensor_rows._GAP_BYTES", 0)
    monkeypatch.setattr(RowsFile, "_read_cached", lambda *_: False)
    monkeypatch.setattr(RowsFile, "advise", lambda _, *extent: advised.append(extent))
    ids = np.array([12, 2, 6, 5, 12])
    codes = found.stored_rows(0)(ids)[1]
    assert np.array_equal(codes, bytes_of(*tensors.values())[ids])
    assert sorted(length for _, length in advised) == [12, 12, 12, 12]  # 5 and 6 in two files


def test_rows_that_were_read_last_are_kept_within_the_limit(tmp_path):
    """The second field of the same ids reads nothing; what does not fit is not kept."""
    files = save(tmp_path / "m", shards(torch.bfloat16))
    rows = files.rows(*NAMES)
    last = LastRows(rows, limit=5 * rows.row_bytes)
    ids = np.array([1, 3, 5])
    first = last.take(ids)
    assert last.take(ids) is first
    last.take(np.array([0, 1, 2]))
    assert last.take(ids) is not first
    assert np.array_equal(last.take(np.arange(16)), rows.block(0, 16))


FLOAT8_SCALES = {
    torch.float32: ("f8e4m3", "float32"),
    torch.bfloat16: ("f8e4m3", "float32"),
    torch.float16: ("f8e4m3", "float32"),
    torch.float8_e8m0fnu: ("f8e4m3-e8m0", "bfloat16"),
}


@pytest.mark.parametrize("scale_dtype", FLOAT8_SCALES)
@pytest.mark.parametrize("groups", [1, 2])
def test_fp8_codes_and_scales_are_as_stored(tmp_path, scale_dtype, groups):
    """Codes and scales of fp8 tensors with a scale for each group, bit for bit; narrow scales are
    widened.
    """
    tensor = torch.randn(9, 8).to(torch.float8_e4m3fn)
    scale = torch.exp2(torch.randn(9, groups)).to(scale_dtype)
    files = save(tmp_path / "m", {"e.weight": tensor, "e.weight_scale": scale})
    found = table(files, ["e.weight"])
    assert (found.fields[0].part.codec, found.dtype) == FLOAT8_SCALES[scale_dtype]
    ids = np.array([8, 0, 3])
    scales, codes = found.stored_rows(0)(ids)
    assert np.array_equal(codes, bytes_of(tensor)[ids])
    wide = scale if scale_dtype == torch.float8_e8m0fnu else scale.float()
    assert np.array_equal(scales, bytes_of(wide)[ids])
    expected = tensor.float() * scale.float().repeat_interleave(8 // groups, dim=1)
    assert np.array_equal(found.field_rows(0)(ids), expected[ids].numpy())


@pytest.mark.parametrize(("step", "dtype"), [(0.3, "float32"), (0.25, "bfloat16")])
def test_fp8_with_one_scale_has_a_step(tmp_path, step, dtype):
    """One scale for the whole tensor is the step of the part; values are codes times it."""
    tensor, scale = torch.randn(9, 8).to(torch.float8_e4m3fn), torch.tensor(step)
    found = table(save(tmp_path / "m", {"e.weight": tensor, "e.weight_scale": scale}), ["e.weight"])
    part = found.fields[0].part
    assert (part.codec, part.step, found.dtype) == ("f8e4m3-step", float(scale), dtype)
    ids = np.array([8, 0, 3])
    assert np.array_equal(found.stored_rows(0)(ids)[1], bytes_of(tensor)[ids])
    assert np.array_equal(found.field_rows(0)(ids), (tensor.float() * scale)[ids].numpy())


def test_products_that_overflow_are_refused(tmp_path):
    """Finite codes and scales whose product is beyond float32 give an error, not infinity."""
    tensor, scale = torch.full((9, 8), 448.0).to(torch.float8_e4m3fn), torch.full((9, 1), 3e38)
    found = table(save(tmp_path / "m", {"e.weight": tensor, "e.weight_scale": scale}), ["e.weight"])
    with pytest.raises(CheckpointError, match="NaN or Inf at token 4"):
        found.field_rows(0)(np.array([4]))


def test_fp8_fields_take_their_groups(tmp_path):
    """Fields of fp8 columns take the scales of their groups, and must not cut one."""
    tensor, scale = torch.randn(9, 8).to(torch.float8_e4m3fn), torch.rand(9, 4) + 0.5
    files = save(tmp_path / "m", {"e.weight": tensor, "e.weight_scale": scale})
    codes = files.codes("e.weight")
    fields = [codes.field(f"layer.{n}", n, 4 * n, 4) for n in range(2)]
    found = TensorTable("e", "test", files.store.states, fields)
    ids = np.arange(9)
    assert np.array_equal(found.stored_rows(1)(ids)[0], bytes_of(scale[:, 2:].contiguous()))
    expected = tensor.float() * scale.repeat_interleave(2, dim=1)
    assert np.array_equal(found.field_rows(1)(ids), expected[:, 4:].numpy())
    with pytest.raises(CheckpointError, match="groups of 2: they do not divide it"):
        codes.field("e", 0, 3, 4)


def test_layout_of_the_files_leaves_the_fingerprint(tmp_path):
    """Shards, one tensor, safetensors or torch: the same rows have the same fingerprint."""
    tensors = shards(torch.bfloat16)
    whole = torch.cat(list(tensors.values()))
    files = save(tmp_path / "one", {"e.weight": whole, "f": whole[:1].clone()})
    assert files.codes("e.weight").rows.rows == sum(ROWS)
    prints = {
        table(save(tmp_path / "a", tensors)).fingerprint(),
        table(save(tmp_path / "b", tensors, ".bin")).fingerprint(),
        table(files, ["e.weight"]).fingerprint(),
    }
    assert len(prints) == 1
    tensors[NAMES[-1]][-1, -1] += 1
    assert table(save(tmp_path / "c", tensors)).fingerprint() not in prints


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_not_finite_rows_are_found(dtype, bad):
    """NaN and infinities of every dtype are found in their row, and nothing else is."""
    values = torch.randn(50, 7).to(dtype)
    rows = values.view(torch.uint8).numpy()
    assert len(bad_rows(str(dtype).removeprefix("torch."), rows)) == 0
    values[31, 2] = math.nan if dtype == torch.float8_e4m3fn else bad
    assert bad_rows(str(dtype).removeprefix("torch."), rows).tolist() == [31]


def test_not_finite_row_is_named_with_its_file(tmp_path):
    """`check` names file, tensor and row of a value that is not finite."""
    tensors = shards(torch.bfloat16)
    tensors[NAMES[2]][4, 1] = math.nan
    found = table(save(tmp_path / "m", tensors))
    with pytest.raises(CheckpointError, match=r"shard_2.weight' in model-00001-of.* at row 4"):
        found.check(lambda size: None)


def test_truncated_file_is_an_error(tmp_path):
    """A file that becomes shorter while it is read gives an error with its name."""
    found = table(save(tmp_path / "m", shards(torch.bfloat16)))
    path = found.stored[0].parts[3].path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10)
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors ends at byte"):
        found.stored_rows(0)(np.arange(16))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        found.check_unchanged()


@pytest.mark.parametrize("change", ["width", "dtype"])
def test_shards_that_do_not_fit_are_named(tmp_path, change):
    """A shard of another width or dtype is named with its file and the first one's."""
    tensors = shards(torch.bfloat16)
    other = shards(torch.float16) if change == "dtype" else shards(torch.bfloat16, width=4)
    tensors[NAMES[1]] = other[NAMES[1]]
    with pytest.raises(CheckpointError, match=r"shard_1.weight' in model-00002-of-00002"):
        table(save(tmp_path / "m", tensors))


def test_scales_that_do_not_fit_are_refused(tmp_path):
    """fp8 codes need scales: one kind, as many rows, positive."""
    tensor = torch.randn(9, 8).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="has no scales for it"):
        save(tmp_path / "a", {"e.weight": tensor, "x": tensor.clone()}).codes("e.weight")
    files = save(tmp_path / "b", {"e.weight": tensor, "e.weight_scale": torch.rand(8, 2)})
    with pytest.raises(CheckpointError, match="has 8 rows of 2 scales, expected 9 rows"):
        files.codes("e.weight")
    for scale in (0.0, -1.0, math.nan, math.inf):
        files = save(tmp_path / "c", {"e.weight": tensor, "e.weight_scale": torch.tensor(scale)})
        with pytest.raises(CheckpointError, match="expected a positive normal float32 number"):
            files.codes("e.weight")
    wide = torch.randn(9, 200).to(torch.float8_e4m3fn)
    files = save(tmp_path / "e", {"e.weight": wide, "e.weight_scale": torch.rand(9, 2)})
    with pytest.raises(CheckpointError, match="groups of 128 with a shorter last one, or of 100"):
        files.codes("e.weight")
    rows = save(tmp_path / "d", shards(torch.bfloat16)).rows(*NAMES)
    with pytest.raises(CheckpointError, match="has 1 kinds of scales, expected 0"):
        StoredCodes(rows, step=1.0)


def test_series_of_names_is_written_shortly():
    """Names that differ in one number are written with braces, unless numbers are left out."""
    assert tensor_names(NAMES) == "t.shard_{0…3}.weight"
    assert tensor_names(NAMES[:1]) == NAMES[0]
    assert tensor_names(["a.1.b.1", "a.2.b.2"]) == "a.1.b.1 … a.2.b.2 (2 tensors)"
    assert tensor_names(["a", "b"]) == "a … b (2 tensors)"
    assert tensor_names(["a.0", "a.2"]) == "a.0 … a.2 (2 tensors)"
