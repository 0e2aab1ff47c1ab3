"""Builds: every setting, optimal bases, equal bytes, interruptions, and what stays untouched."""

import gc
import os
import subprocess
import sys
from contextlib import contextmanager

import models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tolpack
from tolpack.compress.fixed.planner import FixedBitsPlanner
from tolpack.compress.outputs import output_path
from tolpack.compress.settings import parse_size
from tolpack.errors import CheckpointError, ConfigError, FileAccessError, TolpackError
from tolpack.evaluation.pack_description import describe_pack
from tolpack.runtime.progress import Reporter
from tolpack.sources.ffn_table import FFNTable

LARGE = {"vocab_size": 2300, "hidden_size": 16, "num_hidden_layers": 2,
         "memory_intermediate_size": 12}  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A MemoryLLM of three chunks of tokens, as a ``.pt``: for reading only."""
    return models.save_model(tmp_path_factory.mktemp("large"), **LARGE)


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Token counts for `large` whose last chunks are cold, as ``.npy``: for reading only."""
    path = tmp_path_factory.mktemp("counts") / "counts.npy"
    ids = models.zipf_ids(60_000, 300)
    found = np.bincount(np.random.default_rng(1).permutation(2300)[ids], minlength=2300)
    np.save(path, found)
    return path


@pytest.fixture(scope="module")
def table():
    """The table of the tiny MemoryLLM in float64, computed by the naive code."""
    config = models.make_config()
    return models.Naive(models.make_state(config), config).table()


class Log(Reporter):
    """Remembers what is said, and the phases with the units done."""

    def __init__(self):
        self.said, self.phases = [], []

    def say(self, text):
        """Remember a line."""
        self.said.append(text)

    @contextmanager
    def phase(self, name, total, unit):
        """Remember a phase when it ends."""
        done = []
        yield done.append
        self.phases.append((name, total, sum(done)))


class Killed(BaseException):
    """Stands for a kill in the middle of a build."""


class Killer(Reporter):
    """Raises `Killed` at the n-th report of progress."""

    def __init__(self, after):
        self.left = after

    @contextmanager
    def phase(self, name, total, unit):
        """Count this phase's reports with all others; when it checks, the pack is complete."""
        yield (lambda _: None) if name == "checking" else self.step

    def step(self, _):
        """Count one report."""
        self.left -= 1
        if self.left < 0:
            raise Killed


def all_rows(path, **choice):
    """Return every row of the pack at `path`."""
    with tolpack.open(path) as pack:
        return pack.rows(np.arange(pack.vocab_size), **choice)


def save_array(path, array):
    """Save an array as ``.npy``; returns the path."""
    np.save(path, array)
    return path


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "expected"),
    [("none", [None] * 3), ("full", [24] * 3), ("7", [7] * 3), (7, [7] * 3), ("50%", [12] * 3),
     ("1,24,5", [1, 24, 5])],
)  # fmt: skip
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rank_and_bits(memoryllm, tmp_path, table, rank, expected, bits):
    """Every form of rank at every number of bits gives those ranks, and rows as close as told."""
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", rank=rank, bits=bits)
    assert [layer.rank for layer in result.layers] == expected
    rows = all_rows(result.path)
    assert rows.shape == table.shape
    for layer in result.layers:
        error = np.linalg.norm(rows[:, layer.layer] - table[:, layer.layer])
        relative = error / np.linalg.norm(table[:, layer.layer])
        assert layer.relative_error == pytest.approx(relative, rel=1e-3, abs=1e-6)
        if layer.rank in (None, 24):
            assert relative < {16: 2e-3, 8: 0.02, 4: 0.2}[bits]
    assert result.bytes == result.path.stat().st_size
    assert result.ratio_fp16 == pytest.approx(2 * table.size / result.bytes)
    assert result.bits_per_weight == pytest.approx(8 * result.bytes / table.size)


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7)])
def test_rounding_stays_within_half_a_step(memoryllm, tmp_path, table, bits, limit):
    """Without a basis a value is off by at most half the step of its layer's largest value."""
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", bits=bits)
    step = np.abs(table).max(axis=2, keepdims=True) / limit
    assert (np.abs(all_rows(result.path) - table) <= 0.505 * step + 1e-6).all()


@pytest.mark.parametrize(
    ("drop", "dropped"), [("none", []), ("1", [1]), ("0,2", [0, 2]), ("1-2", [1, 2])]
)
@pytest.mark.parametrize("rank", ["none", "5"])
def test_dropped_layers_are_zeros_and_others_unchanged(memoryllm, tmp_path, drop, dropped, rank):
    """Dropped layers read as zeros and take no bytes; the others are as without dropping."""
    whole = tolpack.build(memoryllm, tmp_path / "whole.tolpack", rank=rank)
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", rank=rank, drop=drop)
    kept = [n for n in range(3) if n not in dropped]
    rows = all_rows(result.path)
    assert not rows[:, dropped].any()
    np.testing.assert_allclose(rows[:, kept], all_rows(whole.path)[:, kept], atol=1e-5)
    for layer in result.layers:
        assert (layer.relative_error is None) == (layer.layer in dropped)
        assert (layer.bytes == 0) == (layer.layer in dropped)
    with tolpack.open(result.path) as pack:
        assert list(pack.kept_layers) == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "--bits is 3, expected auto, lossless, 16, 8 or 4"),
        ({"bits": "4"}, "--bits"),
        ({"bits": 4.0}, "--bits"),
        ({"rank": "bogus"}, "--rank 'bogus' is not understood"),
        ({"rank": "25"}, "outside 1 … 24"),
        ({"rank": "1,2"}, "lists 2 ranks, but there are 3 layers"),
        ({"drop": "auto"}, "needs --bits auto"),
        ({"drop": "3"}, "--drop 3 is out of range"),
        ({"drop": "0-2"}, "keep at least one"),
        ({"size": "10MB"}, "needs --rank auto"),
        ({"size": "600B", "rank": "auto"}, "--size is too small"),
        ({"size": "nonsense", "rank": "auto"}, "--size 'nonsense' is not understood"),
        ({"layers": 3}, "--layers is for two-dimensional tables"),
    ],
)
def test_wrong_settings_are_refused_and_leave_nothing(memoryllm, tmp_path, settings, message):
    """A wrong setting gives ConfigError with the option's name, and no pack appears."""
    with pytest.raises(ConfigError, match=message):
        tolpack.build(memoryllm, tmp_path / "p.tolpack", **settings)
    assert not (tmp_path / "p.tolpack").exists()


# -- tables --------------------------------------------------------------------------------------


def test_fp16_table_at_16_bits_is_exact(tmp_path):
    """A float16 table, its largest and smallest values included, comes back bit by bit."""
    table = np.random.default_rng(0).standard_normal((50, 2, 12)).astype(np.float16)
    table[0, 0, :4] = [65504, -65504, 6e-8, -0.0]
    path = tolpack.build(save_array(tmp_path / "t.npy", table), bits=16).path
    assert path == tmp_path / "t.tolpack"
    rows = all_rows(path, dtype="float16")
    assert np.array_equal(rows.view(np.uint16), table.view(np.uint16))


def test_bf16_table_at_16_bits_is_exact(tmp_path):
    """A bfloat16 table, beyond float16's range too, comes back bit by bit."""
    table = torch.randn(50, 2, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    table[0, 0, :4] = torch.tensor([3e38, -3e38, 1e-38, -0.0])
    save_file({"t": table}, tmp_path / "t.safetensors")
    rows = all_rows(tolpack.build(tmp_path / "t.safetensors", bits=16).path)
    assert np.array_equal(rows.view(np.uint32), table.float().numpy().view(np.uint32))


def test_fp32_table_at_16_bits_is_rounded_to_float16(tmp_path):
    """A float32 table at 16 bits is what numpy rounds it to."""
    table = np.random.default_rng(0).standard_normal((50, 2, 12)).astype(np.float32)
    rows = all_rows(tolpack.build(save_array(tmp_path / "t.npy", table), bits=16).path)
    assert np.array_equal(rows, table.astype(np.float16).astype(np.float32))


def test_value_beyond_float16_is_refused_with_the_remedy(tmp_path):
    """A value that float16 cannot hold is refused at 16 bits, and fine at 8."""
    table = np.full((5, 1, 4), 1e5, np.float32)
    path = save_array(tmp_path / "t.npy", table)
    with pytest.raises(ConfigError, match="layer 0: .*65504: use --bits 8 or 4"):
        tolpack.build(path, bits=16)
    rows = all_rows(tolpack.build(path, tmp_path / "other.tolpack", bits=8).path)
    np.testing.assert_allclose(rows, table, rtol=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (5, 3, 1), (1, 2, 70), (3, 1, 129)])
@pytest.mark.parametrize("rank", ["none", "full", "1", "auto"])
@pytest.mark.parametrize("bits", [16, 4])
def test_odd_shapes(tmp_path, shape, rank, bits):
    """Tables of one token, one layer or odd widths build and read back."""
    table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = tolpack.build(save_array(tmp_path / "t.npy", table), rank=rank, bits=bits)
    rows = all_rows(result.path)
    assert rows.shape == shape
    assert np.isfinite(rows).all()
    if rank in ("none", "full") and bits == 16:
        np.testing.assert_allclose(rows, table, atol=0.01)


@pytest.mark.parametrize("rank", ["none", "full", "auto"])
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_constant_table(tmp_path, rank, value):
    """A table without any variation builds, and reads back as what it is."""
    table = np.full((40, 2, 16), value, np.float32)
    result = tolpack.build(save_array(tmp_path / "t.npy", table), rank=rank)
    np.testing.assert_allclose(all_rows(result.path), table, rtol=0.01)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_a_table_does_not_matter(tmp_path, scale):
    """Very small and very large tables keep their relative precision at 4 bits."""
    table = np.random.default_rng(0).standard_normal((60, 2, 32)).astype(np.float32) * scale
    path = save_array(tmp_path / "t.npy", table.astype(np.float32))
    for rank in ("none", "full"):
        result = tolpack.build(path, rank=rank, force=True)
        assert all(0 < layer.relative_error < 0.2 for layer in result.layers)


def test_two_dimensional_table_equals_three_dimensional(tmp_path):
    """[vocab, layers·hidden] with layers gives the pack of [vocab, layers, hidden]."""
    table = np.random.default_rng(0).standard_normal((30, 3, 8)).astype(np.float32)
    three = tolpack.build(save_array(tmp_path / "a.npy", table), rank="4")
    flat = save_array(tmp_path / "b.npy", table.reshape(30, 24))
    two = tolpack.build(flat, rank="4", layers=3)
    assert two.path.read_bytes() == three.path.read_bytes()


def test_nan_row_stops_the_build(tmp_path):
    """A NaN anywhere in a table stops the build with its place, and no pack appears."""
    table = np.zeros((2300, 2, 8), np.float32)
    table[2222, 1, 3] = np.nan
    path = save_array(tmp_path / "t.npy", table)
    with pytest.raises(CheckpointError, match="token 2222, layer 1"):
        tolpack.build(path)
    assert not (tmp_path / "t.tolpack").exists()


def test_overflowing_ffn_stops_the_build(tmp_path):
    """A model whose rows overflow float32 gives an error, not a pack of clipped numbers."""
    config = models.make_config()
    state = models.make_state(config)
    for part in ("gate", "up"):
        state[f"layers.1.memory_mlp.{part}_proj.weight"] *= 1e25
    path = models.save_pt(tmp_path / "m.pt", state, config)
    with pytest.raises(CheckpointError):
        tolpack.build(path)


# -- the basis -----------------------------------------------------------------------------------


def best_error(table, rank, weights):
    """Smallest possible weighted squared error of rank `rank` around the mean, by numpy's SVD."""
    mean = weights @ table
    values = np.linalg.svd(np.sqrt(weights)[:, None] * (table - mean), compute_uv=False)
    return float(np.square(values[rank:]).sum())


@pytest.mark.parametrize("rank", [1, 6, 17, 23])
def test_basis_is_optimal(memoryllm, tmp_path, table, rank):
    """A basis of rank r leaves the error that numpy's SVD leaves, within float16's rounding."""
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", rank=rank, bits=16)
    rows, weights = all_rows(result.path), np.full(97, 1 / 97)
    for layer in range(3):
        error = np.square(rows[:, layer] - table[:, layer]).sum(axis=1) @ weights
        best = best_error(table[:, layer], rank, weights)
        assert best * 0.999 <= error <= best * 1.01 + 1e-6


def test_basis_is_optimal_under_token_weights(memoryllm, tmp_path, table, token_ids):
    """With counts the error weighted by (count + 1)^0.7 is the smallest possible."""
    counts = np.bincount(np.load(token_ids), minlength=97)
    path = save_array(tmp_path / "c.npy", counts)
    result = tolpack.build(memoryllm, tmp_path / "p", rank=6, bits=16, frequencies=path)
    weights = (counts + 1) ** 0.7
    weights /= weights.sum()
    rows = all_rows(result.path)
    for layer in range(3):
        error = np.square(rows[:, layer] - table[:, layer]).sum(axis=1) @ weights
        best = best_error(table[:, layer], 6, weights)
        assert best * 0.999 <= error <= best * 1.01 + 1e-6


def test_full_rank_at_16_bits_is_next_to_exact(memoryllm, tmp_path, table):
    """A basis of full rank loses only float16's rounding."""
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", rank="full", bits=16)
    assert max(layer.relative_error for layer in result.layers) < 2e-3
    np.testing.assert_allclose(all_rows(result.path), table, atol=5e-3)


# -- rank auto -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_auto_rank_of_a_model(tmp_path, token_ids, model_type, calibrated):
    """Rank auto measures on the given text, or else on one sampled from the model, and says so."""
    path, log = models.save_model(tmp_path, model_type), Log()
    text = token_ids if calibrated else None
    result = tolpack.build(path, rank="auto", calibrate=text, reporter=log)
    assert all(1 <= layer.rank <= 24 for layer in result.layers)
    said = "\n".join(log.said)
    assert ("sampled from the model itself (seed 0)" in said) != calibrated
    assert ("token order: by token id" in said) != calibrated
    assert any("rank auto:" in line and "nats per token" in line for line in log.said)
    assert all(total == done for _, total, done in log.phases)
    names = [name for name, _, _ in log.phases]
    assert ("sampling" in names) != calibrated
    assert "measuring truncation" in names


def test_auto_rank_cuts_less_at_more_bits(memoryllm, tmp_path, token_ids):
    """Truncation may cost what rounding costs, so more bits keep more rank."""
    ranks = []
    for bits in (4, 8, 16):
        out = tmp_path / f"{bits}.tolpack"
        result = tolpack.build(memoryllm, out, rank="auto", bits=bits, calibrate=token_ids)
        ranks.append(sum(layer.rank for layer in result.layers))
    assert ranks == sorted(ranks)
    assert ranks[-1] >= 3 * 19  # the FFN's width limits the table's rank to 20


def test_auto_rank_of_a_bare_table_says_what_is_missing(tmp_path):
    """A plain table cannot be run: every direction counts alike, and the build says so."""
    table = np.random.default_rng(0).standard_normal((90, 2, 16)).astype(np.float32)
    log = Log()
    result = tolpack.build(save_array(tmp_path / "t.npy", table), rank="auto", reporter=log)
    assert all(layer.rank for layer in result.layers)
    assert any("cannot be run" in line for line in log.said)


def test_auto_rank_of_a_model_that_cannot_be_run(tmp_path, token_ids):
    """Without the decoder's settings auto falls back and says so; with a text it is an error."""
    config = models.make_config(num_attention_heads=None)
    path = models.save_pt(tmp_path / "m.pt", models.make_state(models.make_config()), config)
    log = Log()
    tolpack.build(path, rank="auto", reporter=log)
    assert any("cannot be run" in line and "num_attention_heads" in line for line in log.said)
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        tolpack.build(path, rank="auto", calibrate=token_ids, force=True)


def tailed_table(power=3):
    """Return a table for `counts` with heavy tails, which zstd makes smaller at 4 bits."""
    values = np.random.default_rng(3).standard_normal((2300, 2, 48))
    return (np.sign(values) * np.abs(values) ** power).astype(np.float32)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("known", ["nothing", "counts"])
@pytest.mark.parametrize("power", [1, 4])
def test_size_is_never_exceeded(counts, tmp_path, bits, known, power):
    """With --size the file is at most that large, for every size that can be met."""
    path = save_array(tmp_path / "t.npy", tailed_table(power))
    given = {"frequencies": counts} if known == "counts" else {}
    low = {16: 30, 8: 20, 4: 12}[bits]
    for percent in range(low, low + 60, 5):
        size = parse_size(f"{percent}%", 2 * 2300 * 2 * 48)
        try:
            result = tolpack.build(
                path, tmp_path / "p", rank="auto", bits=bits, size=size, force=True, **given
            )
        except ConfigError as error:
            assert "too small" in str(error)
            continue
        assert result.bytes <= size, f"{percent}%"


def misleading(folder, cold):
    """Save a table and counts whose rarest tokens compress worst, after 1,024 that are all alike.

    Returns the settings of a build of them.
    """
    table = np.random.default_rng(3).standard_normal((1024 + cold, 2, 48)).astype(np.float32)
    table[1024:2048] = 0.5
    counts = np.zeros(1024 + cold, np.int64)
    counts[:1024] = 1000
    counts[1024:2048] = 1
    return {
        "checkpoint": save_array(folder / "t.npy", table),
        "frequencies": save_array(folder / "c.npy", counts),
        "rank": "auto",
    }


@pytest.mark.parametrize("cold", [1276, 2040])
def test_size_is_not_exceeded_where_the_rarest_tokens_compress_worst(tmp_path, cold):
    """What zstd saves on some cold tokens is not taken for granted on the others."""
    given = misleading(tmp_path, cold)
    for percent in (20, 25, 30):
        size = parse_size(f"{percent}%", 2 * (1024 + cold) * 2 * 48)
        result = tolpack.build(output=tmp_path / "p", size=size, force=True, **given)
        assert result.bytes <= size, f"{percent}%"


def test_size_is_not_exceeded_for_a_model_with_a_text(large, tmp_path):
    """With --size and a calibration text the file is at most that large."""
    text = save_array(tmp_path / "ids.npy", models.zipf_ids(300, 2300))
    for percent in (65, 80, 95):
        result = tolpack.build(
            large, tmp_path / "p", rank="auto", size=f"{percent}%", force=True, calibrate=text
        )
        assert result.bytes <= 2 * 2300 * 2 * 16 * percent / 100, f"{percent}%"


def test_more_size_gives_less_error(large, tmp_path):
    """A larger --size is used: ranks grow with it up to the full rank."""
    text = save_array(tmp_path / "ids.npy", models.zipf_ids(300, 2300))
    ranks = []
    for size in ("60%", "80%", "300%"):
        result = tolpack.build(
            large, tmp_path / "p", rank="auto", bits=8, size=size, force=True, calibrate=text
        )
        ranks.append(sum(layer.rank for layer in result.layers))
    assert ranks[0] < ranks[1] <= ranks[2]
    assert ranks[2] >= 2 * 11  # the FFN's width limits the table's rank to 12


@pytest.mark.parametrize(
    ("changed", "values"),
    [
        ("weights", (1, 3, 30)),
        ("rope_theta", (2.0, 100.0, 1e6)),
        ("max_position_embeddings", (4, 16, 200)),
        ("num_attention_heads", (1, 2, 6)),
    ],
)
def test_pack_id_identifies_what_went_in(tmp_path, token_ids, changed, values):
    """Packs of unequal bytes never share their id, which resuming relies on."""
    config = models.make_config(num_key_value_heads=None)
    state, packs = models.make_state(config), {}
    for number, value in enumerate(values):
        factor = value if changed == "weights" else 30
        other = {n: t * (factor if "self_attn" in n else 1) for n, t in state.items()}
        given = config if changed == "weights" else config | {changed: value}
        path = models.save_pt(tmp_path / f"{number}.pt", other, given)
        out = tolpack.build(path, rank="auto", bits=4, calibrate=token_ids).path
        with tolpack.open(out) as pack:
            packs.setdefault(pack.container.preamble.pack_id, set()).add(out.read_bytes())
    assert all(len(contents) == 1 for contents in packs.values())


# -- frequencies ---------------------------------------------------------------------------------


def test_tokens_are_stored_by_falling_count(large, counts, tmp_path):
    """With counts, frequent tokens come first in the file, and rows are the same as without."""
    plain = tolpack.build(large, tmp_path / "plain.tolpack")
    sorted_ = tolpack.build(large, tmp_path / "sorted.tolpack", frequencies=counts)
    assert np.array_equal(all_rows(plain.path), all_rows(sorted_.path))
    found = np.load(counts)
    order = np.argsort(-found, kind="stable")
    with tolpack.open(sorted_.path) as pack:
        offsets = pack.extents(order)[:, 0]
        assert (np.diff(offsets) >= 0).all()
        info = describe_pack(pack)
    assert info["token_map"]
    assert [chunk["tokens"] for chunk in info["chunks"]] == [1024, 1024, 252]
    with tolpack.open(plain.path) as pack:
        assert not describe_pack(pack)["token_map"]


@pytest.mark.parametrize("frame", ["zstd", "raw"])
def test_cold_chunks_are_compressed_where_it_pays(tmp_path, counts, frame):
    """Chunks beyond 95 % of the text are zstd frames if that saves enough, else raw; it is said."""
    table, bits, rank = tailed_table(4), 4, "none"
    if frame == "raw":  # 8-bit codes that are spread evenly cannot be compressed
        table, bits = np.random.default_rng(0).uniform(-1, 1, table.shape).astype("f4"), 8
    log = Log()
    path = save_array(tmp_path / "t.npy", table)
    result = tolpack.build(path, rank=rank, bits=bits, frequencies=counts, reporter=log)
    (line,) = [line for line in log.said if line.startswith("cold chunks: zstd saves")]
    assert line.endswith("zstd frames" if frame == "zstd" else "raw records")
    with tolpack.open(result.path) as pack:
        encodings = [chunk["encoding"] for chunk in describe_pack(pack)["chunks"]]
        assert pack.verify() == []
    assert encodings == ["raw", frame, frame]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("rank", ["none", "32"])
def test_compressed_rows_equal_raw_ones(tmp_path, counts, bits, rank):
    """Rows of a file with cold chunks are those of the same records stored raw."""
    path = save_array(tmp_path / "t.npy", tailed_table(4))
    cold = tolpack.build(path, tmp_path / "a", rank=rank, bits=bits, frequencies=counts).path
    # The same order and token weights would change the basis, so only no basis compares exactly.
    if rank == "none":
        raw = tolpack.build(path, tmp_path / "b", rank=rank, bits=bits).path
        assert np.array_equal(all_rows(cold), all_rows(raw))
    with tolpack.open(cold) as pack:
        bulk = pack.rows(np.arange(2300))
        single = np.concatenate([pack.rows([n]) for n in range(0, 2300, 97)])
        np.testing.assert_allclose(single, bulk[::97], atol=1e-5 * np.abs(bulk).max())


def test_calibration_text_alone_gives_the_order(memoryllm, tmp_path, token_ids):
    """A calibration text counts tokens as --frequencies of the same text would."""
    found = np.bincount(np.load(token_ids), minlength=97)
    path = save_array(tmp_path / "c.npy", found)
    by_text = tolpack.build(memoryllm, tmp_path / "a", rank="6", calibrate=token_ids)
    by_counts = tolpack.build(memoryllm, tmp_path / "b", rank="6", frequencies=path)
    assert np.array_equal(all_rows(by_text.path), all_rows(by_counts.path))


@pytest.mark.parametrize("dtype", [np.uint64, np.int32, np.uint8])
def test_counts_of_any_integer_width(memoryllm, tmp_path, dtype):
    """Counts may be of any integer dtype: the same counts give the same file."""
    base = np.arange(97)[::-1] % 50
    packs = {
        tolpack.build(
            memoryllm,
            tmp_path / f"{kind.__name__}.tolpack",
            frequencies=save_array(tmp_path / f"{kind.__name__}.npy", base.astype(kind)),
        ).path.read_bytes()
        for kind in (np.int64, dtype)
    }
    assert len(packs) == 1


def test_counts_of_nothing(memoryllm, tmp_path):
    """Counts that are all zero build the same rows as none."""
    zeros = save_array(tmp_path / "c.npy", np.zeros(97, np.int64))
    first = tolpack.build(memoryllm, tmp_path / "a", frequencies=zeros)
    second = tolpack.build(memoryllm, tmp_path / "b")
    assert np.array_equal(all_rows(first.path), all_rows(second.path))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(96, np.int64), r"shape \[96\], expected \[97\]"),
        (np.zeros((97, 1), np.int64), "expected \\[97\\]"),
        (np.zeros(97, np.float64), "must hold integer counts"),
        (np.full(97, -1), "outside 0"),
        (np.full(97, 2**63, np.uint64), "outside 0"),
    ],
)
def test_counts_that_do_not_fit_are_refused(memoryllm, tmp_path, counts, message):
    """Counts of another shape, kind or range are refused by the option's name."""
    path = save_array(tmp_path / "c.npy", counts)
    with pytest.raises(ConfigError, match=f"--frequencies .*{message}"):
        tolpack.build(memoryllm, tmp_path / "p.tolpack", frequencies=path)


@pytest.mark.parametrize("data", [b"", b"hello", None])
def test_unreadable_counts_are_refused(memoryllm, tmp_path, data):
    """Counts that are absent, empty or no .npy are refused by the option's name."""
    path = tmp_path / "c.npy"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"cannot read --frequencies .*c\.npy"):
        tolpack.build(memoryllm, tmp_path / "p.tolpack", frequencies=path)


def test_npz_of_counts_is_refused_and_closed(memoryllm, tmp_path):
    """A ZIP of arrays in place of counts is refused, and no file is left open."""
    with open(tmp_path / "c.npy", "wb") as file:
        np.savez(file, a=np.zeros(97, np.int64))
    with pytest.raises(ConfigError, match="--frequencies"):
        tolpack.build(memoryllm, tmp_path / "p.tolpack", frequencies=tmp_path / "c.npy")
    gc.collect()  # a file left open would be warned of here


# -- same input, same bytes ----------------------------------------------------------------------

SETTINGS = [
    {},
    {"bits": 16},
    {"rank": "50%", "bits": 8, "drop": "1"},
    {"rank": "auto", "calibrate": True},
    {"rank": "auto", "size": "300%", "bits": 8},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_builds_are_byte_identical(tmp_path, token_ids, settings):
    """The same input and settings give the same bytes, from wherever and under whatever name."""
    settings = dict(settings)
    if settings.get("calibrate"):
        settings["calibrate"] = token_ids
    (tmp_path / "elsewhere").mkdir()
    first = models.save_model(tmp_path, num_hidden_layers=3)
    second = models.save_model(tmp_path / "elsewhere", name="another-name.pt")
    packs = [tolpack.build(path, **settings).path.read_bytes() for path in (first, second)]
    assert packs[0] == packs[1]


def test_spellings_of_one_model_give_identical_packs(tmp_path, token_ids):
    """A .pt, a .safetensors, a folder and shards of the same weights give the same bytes."""
    config = models.make_config()
    state = models.make_state(config, torch.bfloat16)
    long = models.prefixed(state)
    beside = models.save_config(tmp_path / "c.json", config)
    paths = [
        (models.save_pt(tmp_path / "a.pt", state, config), None),
        (models.save_pt(tmp_path / "b.pt", long), beside),
        (models.save_safetensors(tmp_path / "c.safetensors", long), beside),
        (models.save_folder(tmp_path / "d", long, config), None),
        (models.save_folder(tmp_path / "e", state, config, shards=4), None),
    ]
    for settings in ({"bits": 4}, {"rank": "auto", "calibrate": token_ids}):
        packs = {
            tolpack.build(path, config=given, force=True, **settings).path.read_bytes()
            for path, given in paths
        }
        assert len(packs) == 1


@pytest.mark.parametrize("settings", [{}, {"rank": "8"}, {"rank": "auto"}])
def test_number_of_threads_does_not_matter(large, counts, tmp_path, settings):
    """One torch thread or two, the bytes are the same, and the setting is left as it was."""
    text = save_array(tmp_path / "ids.npy", models.zipf_ids(300, 2300))
    before, packs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tmp_path / f"{threads}.tolpack"
            tolpack.build(large, out, frequencies=counts, calibrate=text, **settings)
            assert torch.get_num_threads() == threads
            packs.append(out.read_bytes())
    finally:
        torch.set_num_threads(before)
    assert packs[0] == packs[1]


def test_file_holds_no_names(tmp_path, token_ids):
    """Neither the checkpoint's name nor its folder nor the text's name is in the file."""
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    path = models.save_model(folder, name="secret-model.pt")
    text = save_array(folder / "secret-text.npy", np.load(token_ids))
    data = tolpack.build(path, rank="4", calibrate=text).path.read_bytes()
    assert b"secret" not in data
    assert b"model.pt" not in data


# -- interruptions -------------------------------------------------------------------------------


def interrupted(settings):
    """Return a function that builds with a reporter, and the number of reports of a whole build."""

    class Counter(Killer):
        total = 0

        def step(self, _):
            Counter.total += 1

    tolpack.build(reporter=Counter(0), **settings)
    return Counter.total


@pytest.mark.parametrize("rank", ["none", "8"])
def test_build_killed_anywhere_resumes_to_the_same_bytes(large, counts, tmp_path, rank):
    """A build that is killed at any step shows no pack, and --resume ends in the same bytes."""
    settings = {"checkpoint": large, "rank": rank, "frequencies": counts}
    reference = tmp_path / "reference.tolpack"
    total = interrupted({**settings, "output": reference})
    expected, out = reference.read_bytes(), tmp_path / "p.tolpack"
    resumed = []
    for after in range(total):
        with pytest.raises(Killed):
            tolpack.build(output=out, reporter=Killer(after), **settings)
        assert not out.exists()
        log = Log()
        tolpack.build(output=out, resume=True, reporter=log, **settings)
        assert out.read_bytes() == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, reference.name]
        resumed += [int(line.split()[2]) for line in log.said if line.startswith("resuming")]
        out.unlink()
    assert resumed == sorted(resumed)
    assert resumed[0] == 0
    assert resumed[-1] >= (3 if rank == "none" else 7) - 1


def test_build_killed_twice_resumes(large, counts, tmp_path):
    """A resumed build may be killed again and resumed again."""
    settings = {"checkpoint": large, "rank": "8", "frequencies": counts}
    reference, out = tmp_path / "reference.tolpack", tmp_path / "p.tolpack"
    total = interrupted({**settings, "output": reference})
    with pytest.raises(Killed):
        tolpack.build(output=out, reporter=Killer(total // 2), **settings)
    for after in (1, 2):
        with pytest.raises(Killed):
            tolpack.build(output=out, reporter=Killer(after), resume=True, **settings)
    tolpack.build(output=out, resume=True, **settings)
    assert out.read_bytes() == reference.read_bytes()


def test_auto_build_resumes_to_the_same_bytes(memoryllm, token_ids, tmp_path):
    """An interrupted build with allocated ranks repeats the allocation and ends in equal bytes."""
    settings = {"checkpoint": memoryllm, "rank": "auto", "calibrate": token_ids}
    reference, out = tmp_path / "reference.tolpack", tmp_path / "p.tolpack"
    total = interrupted({**settings, "output": reference})
    for after in range(0, total, 3):
        with pytest.raises(Killed):
            tolpack.build(output=out, reporter=Killer(after), **settings)
        tolpack.build(output=out, resume=True, force=True, **settings)
        assert out.read_bytes() == reference.read_bytes()
        out.unlink()


def test_build_to_a_size_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    """A build whose size was misjudged tries again, and resumes from a kill in any attempt."""
    given = misleading(tmp_path, 2040) | {"size": "30%"}
    monkeypatch.setattr(FixedBitsPlanner, "_saving_of", lambda *_: 0.9)  # far too hopeful
    reference, out = tmp_path / "reference.tolpack", tmp_path / "p.tolpack"
    log = Log()
    result = tolpack.build(output=reference, reporter=log, **given)
    assert [name for name, _, _ in log.phases].count("encoding") > 1
    assert result.bytes <= 0.3 * 2 * 3064 * 2 * 48
    reference.unlink()
    total = interrupted({**given, "output": reference})
    for after in range(0, total, 4):
        with pytest.raises(Killed):
            tolpack.build(output=out, reporter=Killer(after), **given)
        assert not out.exists()
        tolpack.build(output=out, resume=True, **given)
        assert out.read_bytes() == reference.read_bytes()
        out.unlink()


@pytest.mark.parametrize("after", range(0, 10, 2))
def test_error_in_the_source_leaves_a_build_to_resume(large, counts, tmp_path, monkeypatch, after):
    """An error while rows are computed leaves no pack, and resuming ends in the same bytes."""
    settings = {"checkpoint": large, "rank": "8", "frequencies": counts}
    reference, out = tmp_path / "reference.tolpack", tmp_path / "p.tolpack"
    tolpack.build(output=reference, **settings)
    layer, calls = FFNTable.field_rows, []

    def failing(self, number):
        calls.append(number)
        if len(calls) > after:
            raise MemoryError("no room")
        return layer(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(FFNTable, "field_rows", failing)
        with pytest.raises(MemoryError):
            tolpack.build(output=out, **settings)
    assert not out.exists()
    tolpack.build(output=out, resume=True, **settings)
    assert out.read_bytes() == reference.read_bytes()


def test_process_that_dies_leaves_a_build_to_resume(memoryllm, tmp_path):
    """A process that ends at once in the middle of a build leaves what --resume continues."""
    out = tmp_path / "p.tolpack"
    script = (
        "import os, sys, tolpack.container.writer as w, tolpack\n"
        "write, calls = w.PackWriter._write_section, []\n"
        "def dying(*args, **kinds):\n"
        "    write(*args, **kinds); calls.append(1)\n"
        "    if len(calls) == 3: os._exit(9)\n"
        "w.PackWriter._write_section = dying\n"
        "tolpack.build(sys.argv[1], sys.argv[2], rank='8')\n"
    )
    code = subprocess.run([sys.executable, "-c", script, str(memoryllm), str(out)], check=False)
    assert code.returncode == 9
    assert not out.exists()
    log = Log()
    tolpack.build(memoryllm, out, rank="8", resume=True, reporter=log)
    assert "resuming after 3 finished sections" in log.said
    reference = tolpack.build(memoryllm, tmp_path / "reference.tolpack", rank="8")
    assert out.read_bytes() == reference.path.read_bytes()


def test_resume_of_other_settings_is_refused(large, tmp_path):
    """What was begun with other settings or weights is not continued: an error names the remedy."""
    out = tmp_path / "p.tolpack"
    settings = {"checkpoint": large, "output": out, "rank": "8"}
    total = interrupted(settings)
    out.unlink()
    with pytest.raises(Killed):
        tolpack.build(reporter=Killer(total - 2), **settings)
    partial = (tmp_path / "p.tolpack.partial").read_bytes()
    other = models.save_model(tmp_path, seed=5, **LARGE)
    for source, rank in ((large, "9"), (other, "8")):
        log = Log()
        with pytest.raises(ConfigError, match="other inputs or settings: .*without --resume"):
            tolpack.build(source, out, rank=rank, resume=True, reporter=log)
        assert [name for name, _, _ in log.phases] == ["checking the input"]  # before the work
    assert (tmp_path / "p.tolpack.partial").read_bytes() == partial
    tolpack.build(large, out, rank="9")
    assert out.exists()
    assert not (tmp_path / "p.tolpack.partial").exists()


def test_resume_without_a_leftover_is_a_plain_build(memoryllm, tmp_path):
    """--resume with nothing to continue builds from the start."""
    first = tolpack.build(memoryllm, tmp_path / "a.tolpack", resume=True)
    second = tolpack.build(memoryllm, tmp_path / "b.tolpack")
    assert first.path.read_bytes() == second.path.read_bytes()


# -- outputs -------------------------------------------------------------------------------------


def test_existing_output_needs_force(memoryllm, tmp_path):
    """An existing output is refused and left as it is; with force it is replaced."""
    out = tmp_path / "p.tolpack"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists: use --force to replace it"):
        tolpack.build(memoryllm, out)
    assert out.read_bytes() == b"precious"
    with pytest.raises(Killed):
        tolpack.build(memoryllm, out, force=True, reporter=Killer(0))
    assert out.read_bytes() == b"precious"
    tolpack.build(memoryllm, out, force=True)
    assert all_rows(out).shape == (97, 3, 24)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_output_that_is_the_input_is_refused(tmp_path, link):
    """The checkpoint is never replaced, by its own name or through a link, force or not."""
    path = models.save_model(tmp_path)
    data, out = path.read_bytes(), path
    if link is not None:
        out = tmp_path / "link.tolpack"
        link(path, out)
    for force in (False, True):
        with pytest.raises(ConfigError, match="is one of the inputs"):
            tolpack.build(path, out, force=force)
    assert path.read_bytes() == data


@pytest.mark.parametrize("part", ["model.safetensors", "config.json"])
def test_output_inside_the_checkpoint_folder_is_refused(tmp_path, part):
    """A file of the checkpoint's folder that the build reads is never replaced, even by force."""
    config = models.make_config()
    folder = models.save_folder(tmp_path / "m", models.make_state(config), config)
    data = (folder / part).read_bytes()
    with pytest.raises(ConfigError, match="input"):
        tolpack.build(folder, folder / part, force=True)
    assert (folder / part).read_bytes() == data


@pytest.mark.parametrize("option", ["calibrate", "frequencies", "config"])
def test_output_that_is_another_input_is_refused(memoryllm, tmp_path, token_ids, option):
    """Text, counts and config are inputs too and never replaced, even by force."""
    path = tmp_path / "given.npy"
    if option == "config":
        models.save_config(path, models.make_config())
    else:
        ids = np.load(token_ids)
        np.save(path, ids if option == "calibrate" else np.bincount(ids, minlength=97))
    data = path.read_bytes()
    with pytest.raises(ConfigError, match="input"):
        tolpack.build(memoryllm, path, force=True, **{option: path})
    assert path.read_bytes() == data


def test_output_that_is_a_folder_is_refused(memoryllm, tmp_path):
    """A folder as output is refused with the remedy."""
    with pytest.raises(ConfigError, match="is a folder: give a file name with -o"):
        tolpack.build(memoryllm, tmp_path, force=True)


def test_output_in_a_folder_that_cannot_be_written(memoryllm, tmp_path):
    """A folder that is absent, or a file, gives FileAccessError with the path."""
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(FileAccessError, match=str(folder)):
            tolpack.build(memoryllm, folder / "p.tolpack")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_output_in_a_read_only_folder(memoryllm, tmp_path):
    """A folder without write permission gives FileAccessError with the path."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(FileAccessError, match=str(folder)):
        tolpack.build(memoryllm, folder / "p.tolpack")


def test_denied_write_is_one_of_our_errors(memoryllm, tmp_path, monkeypatch):
    """A write that the system denies or cannot finish gives FileAccessError, and no pack."""
    denied = PermissionError(13, "Permission denied")

    def refuse(*_):
        raise denied

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(FileAccessError, match="Permission denied"):
            tolpack.build(memoryllm, tmp_path / "p.tolpack")
    assert not (tmp_path / "p.tolpack").exists()


@pytest.mark.parametrize(
    ("checkpoint", "pack"),
    [
        ("a/model.pt", "a/model.tolpack"),
        ("a/model.v2.safetensors", "a/model.v2.tolpack"),
        ("a/model", "a/model.tolpack"),
        ("a/model-v1.5", "a/model-v1.5.tolpack"),
    ],
)
def test_default_output_stands_beside_the_checkpoint(tmp_path, checkpoint, pack):
    """Without -o the pack is NAME.tolpack beside the file or folder, dots in names and all."""
    path = tmp_path / checkpoint
    path.parent.mkdir()
    if path.suffix in (".pt", ".safetensors"):
        path.touch()
    else:
        path.mkdir()
    assert output_path(path, None, False) == tmp_path / pack


def test_default_output_of_the_current_folder(tmp_path, monkeypatch):
    """`tolpack build .` gives tolpack's own error or a pack with a name, never another error."""
    config = models.make_config()
    folder = models.save_folder(tmp_path / "m", models.make_state(config), config)
    monkeypatch.chdir(folder)
    try:
        assert tolpack.build(".").path.resolve() == tmp_path / "m.tolpack"
    except TolpackError as error:
        assert "-o" in str(error)


def test_result_as_json(memoryllm, tmp_path):
    """The result gives plain values with the layers' ranks, bits, errors and bytes."""
    result = tolpack.build(memoryllm, tmp_path / "p.tolpack", rank="5", drop="2").to_json()
    assert set(result) == {
        "path", "bytes", "ratio_fp16", "bits_per_weight", "layers", "ffn_bytes", "ffn_bytes_16",
        "table_bytes", "provenance", "warnings",
    }  # fmt: skip
    assert result["path"] == str(tmp_path / "p.tolpack")
    assert [set(layer) for layer in result["layers"]] == [
        {"layer", "rank", "bits", "relative_error", "bytes", "entropy_bits", "gaussian_bits",
         "table", "field"}
    ] * 3  # fmt: skip
