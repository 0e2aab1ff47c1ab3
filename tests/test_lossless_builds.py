"""Builds without loss, to a relative error, and of packs of several tables."""

import json
import weakref
from types import SimpleNamespace

import models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_build import Killed, Killer, Log, interrupted

import tolpack
from tolpack.calibration import calibrate
from tolpack.errors import ConfigError
from tolpack.ngrams import qwen4_exp_hash
from tolpack.sources.ffn_table import FFNTable
from tolpack.sources.open_source import open_source, open_tables
from tolpack.workspace.limits import choose_compute

ROWS, LAYERS, WIDTH = 3000, 2, 24
# Rows of two tables by layer: the primes from 90 on, 16 each, padded to a multiple of 128.
TWO = {0: 2176, 2: 3584}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def values(dtype, rows=ROWS, seed=0):
    """Return a table of a normal distribution, [rows, LAYERS, WIDTH]."""
    source = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, LAYERS, WIDTH, generator=source) * 0.02).to(dtype)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain table of each dtype: name → path."""
    folder, found = tmp_path_factory.mktemp("plain"), {}
    for name, dtype in DTYPES.items():
        found[name] = folder / f"{name}.safetensors"
        save_file({"table": values(dtype)}, found[name])
    return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Counts of the rows, a few of them frequent."""
    path = tmp_path_factory.mktemp("counts") / "counts.npy"
    np.save(path, np.random.default_rng(0).zipf(1.5, ROWS).clip(max=10**6))
    return path


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory):
    """A folder with the n-gram embeddings of layers 0 and 2 of a Qwen4Exp."""
    folder = tmp_path_factory.mktemp("two")
    config = {
        "model_type": "qwen4_exp_text", "vocab_size": 50, "eos_token_id": 3, "hidden_size": 1024,
        "ngram_vocab_size_base": 90, "ple_layer_ids": [1, 3], "ple_embed_dim": 1024,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    source, tensors = torch.Generator().manual_seed(0), {}
    for layer, rows in TWO.items():
        name = f"model.layers.{layer}.ple.ple_embedding.ngram_embedding.weight"
        tensors[name] = torch.randn(rows, 64, generator=source).bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("compression", ["auto", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lossless_rows_are_those_of_the_table(plain, tmp_path, dtype, compression):
    """Every bit comes back, from frames of byte planes and from raw records."""
    path = tmp_path / "p.tolpack"
    tolpack.build(plain[dtype], path, bits="lossless", compression=compression)
    with tolpack.open(path) as pack:
        assert np.array_equal(pack.rows(np.arange(ROWS)), values(DTYPES[dtype]).float().numpy())
        frames = {encoding.frame for encoding in pack.container.header.encodings}
        assert frames == ({"raw"} if compression == "none" else {"zstd-planes"})
        assert pack.verify() == []


def test_frames_save_what_was_said_before(plain, tmp_path):
    """The line about byte planes tells the share that the file then lacks, and a time."""
    log, packs = Log(), {}
    for compression in ("auto", "none"):
        packs[compression] = tolpack.build(
            plain["bfloat16"], tmp_path / f"{compression}.tolpack", bits="lossless",
            compression=compression, reporter=log,
        ).bytes  # fmt: skip
    (line,) = [line for line in log.said if "byte planes" in line]
    said = float(line.split("save ")[1].split("%")[0]) / 100
    raw = ROWS * LAYERS * WIDTH * 2
    pages = 8 * 4096  # the header, and what sections do not fill
    assert 0 <= packs["auto"] - (1 - said) * raw < pages
    assert packs["auto"] < 0.75 * packs["none"]
    assert "µs; stored as frames" in line


def test_frequent_rows_stay_raw(plain, counts, tmp_path):
    """With counts, hot chunks are raw records and cold ones frames, and all rows come back."""
    path = tmp_path / "p.tolpack"
    tolpack.build(plain["bfloat16"], path, bits="lossless", frequencies=counts)
    with tolpack.open(path) as pack:
        header = pack.container.header
        frames = [header.encodings[c.encoding].frame for c in header.tables[0].chunks]
        assert frames[0] == "raw"
        assert frames[-1] == "zstd-planes"
        assert np.array_equal(pack.rows(np.arange(ROWS)), values(torch.bfloat16).float().numpy())


def test_noise_stays_raw(tmp_path):
    """Values of which no byte is more frequent than others are not made into frames."""
    source = np.random.default_rng(0)
    bits = source.integers(0, 0x7F80, (ROWS, LAYERS, WIDTH)).astype(np.uint16)
    bits |= source.integers(0, 2, bits.shape, np.uint16) << 15
    table = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    save_file({"table": table}, tmp_path / "noise.safetensors")
    log, path = Log(), tmp_path / "p.tolpack"
    tolpack.build(tmp_path / "noise.safetensors", path, bits="lossless", reporter=log)
    with tolpack.open(path) as pack:
        assert {encoding.frame for encoding in pack.container.header.encodings} == {"raw"}
    assert any("stored as raw records" in line for line in log.said)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": "lossless"},
        {"bits": "lossless", "compression": "none"},
        {"bits": 4},
        {"bits": "auto", "max_relative_error": "5%"},
    ],
)
def test_threads_and_memory_change_no_byte(two_tables, tmp_path, settings):
    """One thread with little memory writes the bytes that two threads with much of it write."""
    few = tolpack.build(two_tables, tmp_path / "a.tolpack", threads=1, max_memory="1GB", **settings)
    many = tolpack.build(two_tables, tmp_path / "b.tolpack", threads=2, **settings)
    assert few.path.read_bytes() == many.path.read_bytes()


@pytest.mark.parametrize("settings", [{"bits": "lossless"}, {"bits": 4}, {"bits": "auto"}])
def test_several_tables_of_one_pack(two_tables, tmp_path, settings):
    """A pack has every table under its name, with its hash; alone it has the same rows."""
    result = tolpack.build(two_tables, tmp_path / "p.tolpack", **settings)
    assert {layer.table for layer in result.layers} == {"layer.0", "layer.2"}
    text = np.random.default_rng(0).integers(0, 50, 40)
    for table in open_tables(two_tables):
        ids, part = np.arange(table.rows), table.fields[0].part
        with tolpack.open(result.path, table=table.name) as pack:
            rows, expected = pack.rows(ids)[:, 0], table.field_rows(0)(ids)
            assert pack.fields[0].layer == table.fields[0].layer
            assert np.array_equal(pack.row_ids(text), table.ngrams.rows(text))
            assert np.array_equal(pack.lookup(text)[:, :, 0], rows[table.ngrams.rows(text)])
            if settings["bits"] == "lossless":
                assert pack.container.header.encodings[0].fields[0][0] == part
                assert np.array_equal(rows, expected)
            else:
                assert 0 < np.abs(rows - expected).max() < 1.0
            assert pack.verify() == []


def test_counts_of_each_table_from_a_folder(two_tables, tmp_path):
    """Tables of several lengths have counts of their own, and their frequent rows come first."""
    counts = {f"layer.{n}": np.arange(rows)[::-1] for n, rows in TWO.items()}
    for name, values in counts.items():
        np.save(tmp_path / f"{name}.npy", values)
    path = tmp_path / "p.tolpack"
    tolpack.build(two_tables, path, bits="lossless", frequencies=tmp_path)
    for table in open_tables(two_tables):
        with tolpack.open(path, table=table.name) as pack:
            assert pack.most_frequent(3).tolist() == [0, 1, 2]
            assert np.array_equal(pack.rows([7])[0, 0], table.field_rows(0)(np.array([7]))[0])
    np.save(tmp_path / "layer.2.npy", counts["layer.0"])
    with pytest.raises(ConfigError, match=r"one count for each row of layer\.2; .* TABLE\.npy"):
        tolpack.build(two_tables, tmp_path / "q.tolpack", frequencies=tmp_path)


def test_size_is_divided_among_tables(two_tables, tmp_path):
    """The whole file meets --size, and both tables have a share of it."""
    limit = 250_000
    result = tolpack.build(two_tables, tmp_path / "p.tolpack", bits="auto", size=limit)
    assert 0.8 * limit < result.bytes <= limit
    with pytest.raises(ConfigError, match="table 'layer.0': --size of .* is too small"):
        tolpack.build(two_tables, tmp_path / "q.tolpack", bits="auto", size="0.3%")
    by_table = {layer.table: layer.bytes for layer in result.layers}
    assert by_table["layer.2"] / by_table["layer.0"] == pytest.approx(TWO[2] / TWO[0], rel=0.15)


def test_build_of_two_tables_killed_anywhere_resumes_to_the_same_bytes(two_tables, tmp_path):
    """A kill in either table leaves what --resume continues."""
    settings = {"checkpoint": two_tables, "bits": "lossless", "threads": 1}
    reference = tmp_path / "reference.tolpack"
    total = interrupted({**settings, "output": reference})
    for after in range(0, total, 2):
        out = tmp_path / f"{after}.tolpack"
        with pytest.raises(Killed):
            tolpack.build(output=out, reporter=Killer(after), **settings)
        tolpack.build(output=out, resume=True, **settings)
        assert out.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize("rank", ["none", "auto"])
def test_relative_error_is_met(plain, counts, tmp_path, rank):
    """The error on all rows, weighted by their counts, is the one asked for, and not much less."""
    path = tmp_path / "p.tolpack"
    tolpack.build(
        plain["float32"], path, bits="auto", rank=rank, max_relative_error="4%", frequencies=counts
    )
    weights = np.load(counts) + 0.5
    with tolpack.open(path) as pack:
        exact = values(torch.float32).numpy().astype(np.float64)
        errors = np.square(pack.rows(np.arange(ROWS)) - exact).sum(axis=(1, 2))
    found = np.sqrt(weights @ errors / (weights @ np.square(exact).sum(axis=(1, 2))))
    assert 0.036 < found < 0.0405


@pytest.mark.parametrize("rank", ["none", "full"])
@pytest.mark.parametrize("size", ["130%", "1000%"])
def test_more_room_than_codes_need_costs_no_exactness(plain, tmp_path, size, rank):
    """A size that no codes of 16 bits can fill ends at the finest step, its rows close to exact."""
    result = tolpack.build(
        plain["float32"], tmp_path / "p.tolpack", bits="auto", rank=rank, size=size
    )
    assert max(layer.relative_error for layer in result.layers) < 1e-3


def test_small_errors_are_met_beside_large_values(tmp_path):
    """One value that is many times the others does not let codes overflow, or stop the search."""
    table = values(torch.float32).numpy()
    table[7, 0, 3] = 1.0
    np.save(tmp_path / "t.npy", table)
    path = tmp_path / "p.tolpack"
    tolpack.build(tmp_path / "t.npy", path, bits="auto", max_relative_error="0.1%")
    with tolpack.open(path) as pack:
        rows = pack.rows(np.arange(ROWS))
    assert np.abs(rows - table).max() < 0.01
    error = np.linalg.norm(rows.astype(np.float64) - table) / np.linalg.norm(table)
    assert 0.0005 < error < 0.00101
    with pytest.raises(ConfigError, match=r"the finest one tried has 0\.0\d\d %"):
        tolpack.build(
            tmp_path / "t.npy", tmp_path / "q.tolpack", bits="auto", max_relative_error="0.01%"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "lossless", "rank": "8"}, "has no basis"),
        ({"bits": "lossless", "size": "50%"}, "--size chooses ranks or bits"),
        ({"bits": "auto", "compression": "none"}, "has no --compression none"),
        ({"bits": 4, "compression": "zstd"}, "expected auto or none"),
        ({"bits": 4, "max_relative_error": "5%"}, "needs --bits auto"),
        ({"bits": "auto", "max_relative_error": "5%", "size": "50%"}, "give one"),
        ({"bits": "auto", "max_relative_error": "much"}, "not understood"),
        ({"bits": "auto", "max_ppl_increase": "1%"}, "use --size or --max-relative-error"),
    ],
)
def test_wrong_settings_are_refused(plain, tmp_path, settings, message):
    """Settings that contradict each other are refused, and leave nothing."""
    with pytest.raises(ConfigError, match=message):
        tolpack.build(plain["float32"], tmp_path / "p.tolpack", **settings)
    assert list(tmp_path.iterdir()) == []


def test_header_of_many_tables_has_room(tmp_path):
    """Numbers of sections and offsets grow with the tables before: the header still fits."""
    layers, width = 17, 2
    config = {
        "model_type": "qwen4_exp_text", "vocab_size": 50, "eos_token_id": 3,
        "hidden_size": 16 * width, "ple_embed_dim": 16 * width, "ngram_vocab_size_base": 70_000,
        "ple_layer_ids": list(range(1, layers + 1)),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for layer in range(layers):
        ngrams = qwen4_exp_hash(
            vocab_size=50, eos_token_id=3, ngram_vocab_size_base=70_000, ple_layer_index=layer
        )
        rows = -(-ngrams.table_rows // 128) * 128
        name = f"model.layers.{layer}.ple.ple_embedding.ngram_embedding.weight"
        tensors[name] = torch.zeros(rows, width, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    out = tmp_path / "p.tolpack"
    tolpack.build(tmp_path, out, bits="lossless", compression="none")
    with tolpack.open(out, table="layer.16") as pack:
        assert len(pack.tables) == layers
        assert not pack.rows([pack.vocab_size - 1]).any()


@pytest.mark.parametrize("force", [False, True])
def test_pack_that_the_format_does_not_have_is_refused_before_it_is_written(tmp_path, force):
    """A record of more bytes than the format allows ends a build, and an older pack stays."""
    np.save(tmp_path / "t.npy", np.zeros((1, 160, 1 << 16), np.float16))
    out = tmp_path / "t.tolpack"
    if force:
        out.write_bytes(b"older")
    with pytest.raises(ConfigError, match="no such pack: .*at most 16777216"):
        tolpack.build(tmp_path / "t.npy", out, bits=16, force=force)
    assert out.exists() == force
    assert {path.name for path in tmp_path.iterdir()} <= {"t.npy", "t.tolpack"}


@pytest.mark.parametrize("bits", [16, "lossless"])
def test_exact_packs_are_not_computed_in_bfloat16(tmp_path, bits):
    """What is to be exact is multiplied in float32, whatever is faster."""
    path = models.save_model(tmp_path)
    with pytest.raises(ConfigError, match=f"--compute bfloat16 is less exact than --bits {bits}"):
        tolpack.build(path, tmp_path / "p.tolpack", bits=bits, compute="bfloat16")
    source = open_source(path)
    large = SimpleNamespace(inner_size=10**6, rows=10**6, fields=source.fields)
    assert choose_compute("auto", large, bits, Log()) is torch.float32


def test_weights_of_one_field_are_held_at_a_time(tmp_path, monkeypatch):
    """A lossless pack of computed rows loads each layer's weights once a run of tokens, in turn."""
    path, held, most = models.save_model(tmp_path, num_hidden_layers=4), [], []
    load = FFNTable.field_rows

    def counted(self, field):
        rows = load(self, field)
        held.append(weakref.ref(rows))
        most.append(sum(one() is not None for one in held))
        return rows

    monkeypatch.setattr(FFNTable, "field_rows", counted)
    tolpack.build(path, tmp_path / "p.tolpack", bits="lossless", compression="none")
    assert max(most) == 1


def test_rows_of_a_long_text_are_counted_in_pieces(two_tables, tmp_path, monkeypatch):
    """Counts do not depend on how many tokens are hashed together."""
    ids, packs = np.random.default_rng(0).integers(0, 50, 500), []
    np.save(tmp_path / "ids.npy", ids)
    for size in (7, 1000):
        monkeypatch.setattr(calibrate, "_COUNTED_TOKENS", size)
        out = tmp_path / f"{size}.tolpack"
        tolpack.build(two_tables, out, bits=4, calibrate=tmp_path / "ids.npy")
        packs.append(out.read_bytes())
    assert packs[0] == packs[1]
    with tolpack.open(tmp_path / "7.tolpack", table="layer.0") as pack:
        expected = np.bincount(pack.row_ids(ids).ravel(), minlength=pack.vocab_size)
        order = expected[pack.most_frequent(pack.vocab_size)]
        assert (order[1:] <= order[:-1]).all()


def test_drop_names_layers_of_the_model(two_tables, tmp_path):
    """--drop speaks of the model's layers, not of the numbers of fields."""
    with pytest.raises(ConfigError, match="--drop 1 is out of range 0"):
        tolpack.build(two_tables, tmp_path / "p.tolpack", drop="1")
