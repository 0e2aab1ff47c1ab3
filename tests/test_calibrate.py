"""LossMetrics against finite differences of the naive decoder, and the text that feeds it."""

import gc
from functools import partial

import models
import numpy as np
import pytest
import torch
from ngram_tables import save_folder, save_mtplx
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import tolpack
from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.calibration.loss_metrics import (
    MAX_GRADIENT_TOKENS,
    TruncatedLayer,
    measure_loss_metrics,
    sample_text,
    truncation_slopes,
)
from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.text import find_tokenizer, read_token_ids
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.open_source import open_source
from tolpack.workspace.resources import Resources
from tolpack.workspace.workspace import open_workspace

SMALL = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 2, "memory_intermediate_size": 6}


def small_model(folder, model_type="memoryllm"):
    """Return a decoder of hidden size 8 with two layers, and the naive one."""
    config = models.make_config(model_type, **SMALL)
    state = models.make_state(config)
    path = models.save_pt(folder / "m.pt", state, config)
    return Decoder(open_checkpoint(path)), models.Naive(state, config)


def finite_difference(naive, window, table):
    """Gradient of a window's summed loss at every memory output, by central differences."""
    added = np.zeros((2, len(window) - 1, 8))
    gradient = np.zeros_like(added)
    for index in np.ndindex(*added.shape):
        losses = []
        for step in (1e-5, -1e-5):
            added[index] = step
            losses.append(naive.nll(window, table, added))
        added[index] = 0
        gradient[index] = (losses[0] - losses[1]) / 2e-5
    return gradient


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm"])
def test_metrics_are_the_fisher_matrix_of_each_layer(tmp_path, model_type):
    """metrics[l] is E[g gᵀ] over positions, with g from finite differences of the loss."""
    decoder, naive = small_model(tmp_path, model_type)
    ids = models.zipf_ids(13, 19)
    found = measure_loss_metrics(decoder, ids, 4)
    table = naive.table()
    gradients = [finite_difference(naive, ids[n : n + 5], table) for n in (0, 4, 8)]
    flat = np.concatenate(gradients, axis=1)  # (layers, positions, hidden)
    expected = np.einsum("lpi,lpj->lij", flat, flat) / flat.shape[1]
    metrics = np.stack([metric.load() for metric in found.metrics])
    assert metrics.dtype == np.float64
    np.testing.assert_allclose(metrics, expected, atol=1e-4 * abs(expected).max())


def test_metrics_are_symmetric_and_positive(memoryllm):
    """Each metric is symmetric positive semidefinite, as a mean of squares must be."""
    decoder = Decoder(open_checkpoint(memoryllm))
    done = []
    found = measure_loss_metrics(decoder, models.zipf_ids(200, 97), 16, done.append)
    for metric in (kept.load() for kept in found.metrics):
        np.testing.assert_allclose(metric, metric.T, rtol=1e-6)
        assert np.linalg.eigvalsh(metric).min() > -1e-6 * np.trace(metric)
    assert sum(done) == 192  # twelve whole windows


def test_truncation_slopes_are_derivatives_along_each_component(tmp_path):
    """slopes[l, i] is the derivative of the loss as layer l loses component i, all layers cut."""
    decoder, naive = small_model(tmp_path)
    ids = models.zipf_ids(9, 19)
    table = naive.table()
    random = np.random.default_rng(0)
    mean = table.mean(0).astype(np.float32)
    vectors = [np.linalg.qr(random.standard_normal((8, 8)))[0].astype(np.float32) for _ in range(2)]
    ranks = (5, 3)
    cuts = [TruncatedLayer(mean[n], partial(vectors.__getitem__, n), ranks[n]) for n in range(2)]
    done = []
    found = truncation_slopes(decoder, ids, 4, cuts, done.append)
    assert sum(done) == 8
    coefficients = [(table[:, n] - mean[n]) @ vectors[n] for n in range(2)]
    kept = [coefficients[n][:, : ranks[n]] @ vectors[n][:, : ranks[n]].T for n in range(2)]
    cut = np.stack([mean[n] + kept[n] for n in range(2)], axis=1)

    def loss(layer, component, step):
        moved = cut.copy()
        lost = np.outer(coefficients[layer][:, component], vectors[layer][:, component])
        moved[:, layer] -= step * lost
        return (naive.nll(ids[:5], moved) + naive.nll(ids[4:9], moved)) / 8

    for layer, component in np.ndindex(2, 8):
        slope = (loss(layer, component, 1e-5) - loss(layer, component, -1e-5)) / 2e-5
        assert found[layer, component] == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_layers_that_are_not_cut_have_no_slope(tmp_path):
    """A layer that is left as it is has slope 0 everywhere."""
    decoder, _ = small_model(tmp_path)
    whole = TruncatedLayer(np.zeros(8, np.float32), partial(np.eye, 8, dtype=np.float32), 8)
    found = truncation_slopes(decoder, models.zipf_ids(9, 19), 4, [None, whole])
    assert found.shape == (2, 8)
    assert not found[0].any()
    assert found[1].all()


def test_calibration_leaves_the_decoder_as_it_was(tmp_path):
    """Logits, and whether gradients are kept, are the same before and after."""
    decoder, _ = small_model(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    before = decoder(ids)
    measure_loss_metrics(decoder, models.zipf_ids(9, 19), 4)
    after = decoder(ids)
    assert torch.equal(before, after)
    assert not after.requires_grad


def test_dense_model_cannot_be_calibrated(tmp_path):
    """A dense decoder has no memory outputs to differentiate at."""
    decoder = Decoder(open_checkpoint(models.save_model(tmp_path, "llama")))
    with pytest.raises(ValueError, match="no memory"):
        measure_loss_metrics(decoder, models.zipf_ids(9, 97), 4)


def test_long_text_is_thinned_evenly(tmp_path):
    """Beyond the limit, windows are spread evenly over the text, and counts still use all of it."""
    decoder, _ = small_model(tmp_path)
    context, chosen = 2048, MAX_GRADIENT_TOKENS // 2048
    ids = models.zipf_ids(3 * chosen * context // 2 + 1, 19)
    fed = []

    def memory(layer, ids):
        if layer == 0:
            fed.extend(ids.tolist())
        return torch.zeros(*ids.shape, 8)

    done = []
    measure_loss_metrics(decoder.with_memory(memory), ids, context, done.append)
    assert sum(done) == MAX_GRADIENT_TOKENS
    starts = [window * 3 // 2 * context for window in range(chosen)]
    assert fed == [ids[start : start + context].tolist() for start in starts]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_text_shorter_than_a_window_is_used(tmp_path, count):
    """A text of fewer tokens than a window is one shorter window."""
    decoder, _ = small_model(tmp_path)
    done = []
    found = measure_loss_metrics(decoder, models.zipf_ids(count, 19), 16, done.append)
    assert sum(done) == count - 1
    assert all(np.isfinite(metric.load()).all() for metric in found.metrics)


def test_sampled_text_is_reproducible(memoryllm):
    """The text sampled from a model follows from the seed alone and has 64 sequences."""
    decoder = Decoder(open_checkpoint(memoryllm))
    done = []
    first = sample_text(decoder, 6, progress=done.append)
    assert first.shape == (64 * 6,)
    assert first.dtype == np.int64
    assert sum(done) == 64 * 5
    assert np.array_equal(first, sample_text(decoder, 6))
    assert not np.array_equal(first, sample_text(decoder, 6, seed=1))
    assert 0 <= first.min() <= first.max() < 97


def save_tokenizer(path):
    """Save a byte-level tokenizer without merges: one token per byte; returns `path`."""
    vocab = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    return path


def test_text_is_encoded_whole(tmp_path):
    """A UTF-8 text is encoded in one piece without special tokens."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json")
    text = tmp_path / "a.txt"
    text.write_text("naïve\ntext", encoding="utf-8")
    ids = read_token_ids(text, 256, tokenizer)
    assert ids.dtype == np.int64
    assert Tokenizer.from_file(str(tokenizer)).decode(ids.tolist()) == "naïve\ntext"


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_ids_are_read_from_npy(tmp_path, dtype):
    """A .npy of integers of any width gives its ids as int64."""
    np.save(tmp_path / "ids.npy", np.array([4, 0, 96], dtype))
    ids = read_token_ids(tmp_path / "ids.npy", 97)
    assert ids.dtype == np.int64
    assert ids.tolist() == [4, 0, 96]


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.int64), np.zeros(3, np.float32), np.zeros(3, bool), np.array(5),
     np.array([{}], object)],
)  # fmt: skip
def test_npy_of_something_else_is_refused(tmp_path, array):
    """A .npy that holds no one-dimensional integers is refused by name."""
    np.save(tmp_path / "ids.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=r"ids\.npy"):
        read_token_ids(tmp_path / "ids.npy", 97)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY"])
def test_damaged_npy_is_refused(tmp_path, data):
    """An empty, foreign or cut .npy is refused by name."""
    (tmp_path / "ids.npy").write_bytes(data)
    with pytest.raises(ConfigError, match=r"ids\.npy"):
        read_token_ids(tmp_path / "ids.npy", 97)


def test_npz_under_the_name_npy_is_refused_and_closed(tmp_path):
    """A ZIP of arrays that is called .npy is refused, and no file is left open."""
    with open(tmp_path / "ids.npy", "wb") as file:
        np.savez(file, a=np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match=r"ids\.npy"):
        read_token_ids(tmp_path / "ids.npy", 97)
    gc.collect()  # a file left open would be warned of here


@pytest.mark.parametrize("ids", [[], [3]])
def test_too_short_text_is_refused(tmp_path, ids):
    """Fewer than two tokens score nothing and are refused."""
    np.save(tmp_path / "ids.npy", np.array(ids, np.int64))
    with pytest.raises(ConfigError, match=f"gives {len(ids)} tokens: at least 2"):
        read_token_ids(tmp_path / "ids.npy", 97)


@pytest.mark.parametrize("ids", [[3, 97], [-1, 3]])
def test_foreign_ids_are_refused(tmp_path, ids):
    """Ids outside the vocabulary say that text and checkpoint do not belong together."""
    np.save(tmp_path / "ids.npy", np.array(ids, np.int64))
    with pytest.raises(CheckpointError, match="vocabulary has 97: use the tokenizer"):
        read_token_ids(tmp_path / "ids.npy", 97)


def test_text_problems_name_file_and_remedy(tmp_path):
    """A missing tokenizer, a broken one, a missing text and a text of other bytes are refused."""
    text = tmp_path / "a.txt"
    text.write_bytes(b"caf\xe9")
    good = save_tokenizer(tmp_path / "good.json")
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.txt is text: give its --tokenizer"):
        read_token_ids(text, 97)
    with pytest.raises(ConfigError, match=r"cannot read tokenizer .*bad\.json"):
        read_token_ids(text, 97, tmp_path / "bad.json")
    with pytest.raises(ConfigError, match=r"cannot read text .*a\.txt"):
        read_token_ids(text, 97, good)
    with pytest.raises(ConfigError, match=r"cannot read text .*absent\.txt"):
        read_token_ids(tmp_path / "absent.txt", 97, good)


def test_tokenizer_is_found_inside_or_beside(tmp_path):
    """The given tokenizer wins; else the one in the folder, or beside the file, if there is one."""
    folder = tmp_path / "model"
    folder.mkdir()
    assert find_tokenizer(folder, None) is None
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert find_tokenizer(folder, None) == folder / "tokenizer.json"
    assert find_tokenizer(folder / "m.pt", None) == folder / "tokenizer.json"
    assert find_tokenizer(folder, "other.json").name == "other.json"


def test_texts_of_hashed_tables_hold_any_id_that_is_hashed(tmp_path):
    """Without compressed ids the highest id of a text is 2^31 - 1, as when rows are read."""
    save_folder(tmp_path, lambda folder: save_mtplx(folder / "ngram-table.safetensors", 4, 32))
    source, text = open_source(tmp_path), tmp_path / "ids.npy"
    with open_workspace([source], tmp_path, Resources(threads=1), Reporter()) as workspace:
        np.save(text, [2**31 - 1, 0, 2**31 - 1])
        counts = calibrate(source, CalibrationInputs(text), None, workspace).counts
        np.save(text, [2**31, 0])
        with pytest.raises(CheckpointError, match="the vocabulary has 2147483648"):
            calibrate(source, CalibrationInputs(text), None, workspace)
    rows = source.ngrams.rows([2**31 - 1, 0, 2**31 - 1])
    assert counts.tolist() == np.bincount(rows.ravel(), minlength=source.rows).tolist()


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_text_too_short_to_measure_on_is_refused(memoryllm, tmp_path, count):
    """With what it has and what is needed; a fifth of it is for trying packs."""
    np.save(tmp_path / "ids.npy", models.zipf_ids(count, 19))
    with pytest.raises(ConfigError, match="token"):
        tolpack.build(
            memoryllm, tmp_path / "p.tolpack", bits="auto", calibrate=tmp_path / "ids.npy"
        )
