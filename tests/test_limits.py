"""Bounded memory: what is kept, dropped and streamed, and that none of it changes a result."""

import json
import resource
import subprocess
import sys

import models
import numpy as np
import pytest
import torch

import tolpack
from tolpack.calibration.loss_metrics import (
    METRIC_OPERATIONS,
    affordable_tokens,
    measure_loss_metrics,
    sampled_length,
    window_losses,
)
from tolpack.errors import ConfigError, FileAccessError
from tolpack.model.decoder import Decoder, macs_per_token
from tolpack.model.head import VocabularyMatrix, nll, nll_gradient
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.config import parse_config
from tolpack.sources.mapped_memory import MappedMemory
from tolpack.sources.open_source import open_source
from tolpack.workspace.limits import choose_compute, plan_limits

CONFIG = models.make_config()


# -- scratch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 100, 10**6])
def test_scratch_gives_back_what_was_put(tmp_path, limit):
    """Arrays come back equal whether they were held in memory or written to the file."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((3, n)).astype(t) for n in (1, 4, 9) for t in ("f4", "f8")]
    with Scratch(tmp_path, limit) as scratch:
        kept = [scratch.spill(array) for array in arrays]
        for one, array in zip(kept, arrays):
            assert one.load().dtype == array.dtype
            assert np.array_equal(one.load(), array)
        kept[2].replace(2 * arrays[2])
        assert np.array_equal(kept[2].load(), 2 * arrays[2])
        assert np.array_equal(kept[3].load(), arrays[3])
    assert list(tmp_path.iterdir()) == []


def test_scratch_holds_no_more_than_its_limit(tmp_path):
    """What goes over the limit is not held in memory."""
    with Scratch(tmp_path, 100) as scratch:
        first, second, third = (scratch.spill(np.zeros(n)) for n in (10, 5, 2))
        assert first.load() is first.load()
        assert second.load() is not second.load()
        assert third.load() is third.load()


def test_a_full_disk_under_scratch_is_an_access_error(tmp_path):
    """An array that cannot be spilled ends in one of our errors that names the way out."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with Scratch(tmp_path, 0) as scratch, pytest.raises(FileAccessError, match="--max-memory"):
            scratch.spill(np.zeros(1000))
        with Scratch(tmp_path, 0) as scratch, pytest.raises(FileAccessError, match="--max-memory"):
            for _ in range(9):
                scratch.spill(np.zeros(30))  # many small arrays: nothing waits for the end
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# -- mapped files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True], ids=["counted", "told by the system"])
def test_mapped_memory_releases_each_time_its_limit_is_resident(monkeypatch, told):
    """Maps are dropped whenever more than the limit may be resident since the last time."""
    resident = 10**6 if told else None
    monkeypatch.setattr("tolpack.sources.mapped_memory._resident_bytes", lambda: resident)
    released = []
    mapped = MappedMemory(lambda: released.append(1), 1000)
    for _ in range(5):
        resident = resident + 600 if told else None
        mapped.touch(600)
    assert len(released) == 2


def test_mapped_memory_does_not_release_what_the_system_says_is_not_there(monkeypatch):
    """Pages that were resident before, or are no longer, do not count."""
    told = iter([5000, 5900, 2000, 2900, 3001, 2000])  # the first when made, the last when released
    monkeypatch.setattr("tolpack.sources.mapped_memory._resident_bytes", lambda: next(told))
    released = []
    mapped = MappedMemory(lambda: released.append(1), 1000)
    for _ in range(3):
        mapped.touch(10_000)
    assert released == []
    mapped.touch(10_000)
    assert released == [1]


def test_scattered_rows_are_read_in_pieces_and_neighbours_together():
    """A piece of scattered rows maps no more than the limit, though each brings a huge page."""
    limit, row = 16 << 20, 1000
    mapped = MappedMemory(lambda: None, limit)
    scattered = np.random.default_rng(0).permutation(100_000)[:1000]
    pieces = list(mapped.pieces(scattered, row))
    assert np.array_equal(np.concatenate([scattered[piece] for piece in pieces]), scattered)
    assert max(piece.stop - piece.start for piece in pieces) * ((2 << 20) + row) <= limit
    assert list(mapped.pieces(np.arange(1000), row)) == [slice(0, 1000)]
    assert [p.stop - p.start for p in mapped.pieces(np.array([], np.int64), row)] == [0]


@pytest.mark.parametrize("kind", ["pt", "safetensors", "npy"])
def test_rows_are_right_after_every_release(tmp_path, monkeypatch, kind):
    """Rows do not change if maps are dropped all the time."""
    state = models.make_state(CONFIG)
    if kind == "npy":
        path = tmp_path / "t.npy"
        np.save(path, np.random.default_rng(0).standard_normal((97, 3, 24), np.float32))
    elif kind == "pt":
        path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    else:
        path = models.save_folder(tmp_path / "m", state, CONFIG, shards=2)
    ids = np.arange(97)
    expected = [open_source(path).field_rows(n)(ids) for n in range(3)]
    monkeypatch.setattr("tolpack.sources.mapped_memory.MappedMemory.touch", _always)
    source = open_source(path)
    for _ in range(2):
        for n in range(3):
            assert np.array_equal(source.field_rows(n)(ids), expected[n])


def _always(self, touched_bytes):
    self._release()


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_build_of_a_checkpoint_larger_than_its_limit_stays_below(tmp_path):
    """The peak of resident memory, mapped pages included, stays below --max-memory."""
    vocab, hidden, limit = 430_000, 512, 1_000_000_000
    config = models.make_config(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=1, memory_intermediate_size=2
    )
    models.save_config(tmp_path / "config.json", config)
    shapes = {"embed_tokens.weight": (vocab, hidden), "layers.0.memory_layernorm.weight": (hidden,)}
    for part, shape in (("gate", (2, hidden)), ("up", (2, hidden)), ("down", (hidden, 2))):
        shapes[f"layers.0.memory_mlp.{part}_proj.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:  # zeros that take no space on disk
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 850_000_000
    # Not ru_maxrss: a process inherits it from the one that started it, here pytest.
    script = (
        "import sys, tolpack\n"
        "tolpack.build(sys.argv[1], sys.argv[2], bits=16, max_memory=int(sys.argv[3]))\n"
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(1024 * int(peak[0].split()[1]))\n"
    )
    command = [sys.executable, "-c", script, tmp_path, tmp_path / "p.tolpack", limit]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit
    assert resource.getpagesize() < int(done.stdout)


# -- plans -----------------------------------------------------------------------------------------


def test_too_little_memory_says_how_much_is_needed(memoryllm):
    """A limit below the smallest steps is refused with one that is enough."""
    source = open_source(memoryllm)
    with pytest.raises(ConfigError, match=r"--max-memory 100MB is too small .* at least [\d.]+GB"):
        plan_limits([source], "100MB", 2)
    with pytest.raises(ConfigError) as caught:
        plan_limits([source], "100MB", 2)
    enough = str(caught.value).split("at least ")[1]
    assert plan_limits([source], enough, 2).scratch_bytes >= 0


def test_superblocks_grow_with_memory(memoryllm):
    """More memory means more tokens per superblock, in powers of two from 512 on."""
    source = open_source(memoryllm)
    sizes = [plan_limits([source], f"{n}GB", 1).superblock_tokens(26_000) for n in (1, 2, 4, 64)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 512
    assert sizes[-1] == 32768
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize("rank", ["none", "8", "auto"])
def test_memory_and_threads_change_no_byte(tmp_path, token_ids, rank):
    """--threads and --max-memory change how a pack is made, not what it is."""
    path = models.save_model(tmp_path, vocab_size=1300)
    packs = []
    for number, (memory, threads) in enumerate((("4GB", 2), ("1GB", 1), ("1.1GB", 3))):
        out = tmp_path / f"{number}.tolpack"
        settings = {"rank": rank, "calibrate": token_ids, "max_memory": memory}
        packs.append(tolpack.build(path, out, threads=threads, **settings).path.read_bytes())
    assert packs[0] == packs[1] == packs[2]


def test_spilled_build_gives_the_same_bytes(tmp_path, token_ids, monkeypatch):
    """A build whose arrays are all written aside and whose model is streamed gives the same."""
    path = models.save_model(tmp_path)
    settings = {"rank": "auto", "calibrate": token_ids}
    expected = tolpack.build(path, tmp_path / "a.tolpack", **settings).path.read_bytes()
    monkeypatch.setattr(Scratch, "holds", lambda self, size: False)
    monkeypatch.setattr(
        "tolpack.sources.checkpoint.checkpoint.Checkpoint.decoder_bytes", lambda _: 2**62
    )
    found = tolpack.build(path, tmp_path / "b.tolpack", **settings).path.read_bytes()
    assert found == expected


# -- models that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_streamed_decoder_equals_the_resident_one(tmp_path, monkeypatch, model_type, tied):
    """Reading weights when they are needed changes no logit, with a cache and without."""
    monkeypatch.setattr("tolpack.model.head._BLOCK_ROWS", 40)
    path = models.save_model(tmp_path, model_type, tie_word_embeddings=tied)
    resident = Decoder(open_checkpoint(path))
    streamed = Decoder(open_checkpoint(path), resident=False)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    assert torch.allclose(streamed(ids), resident(ids), atol=1e-6)
    cache = streamed.new_cache()
    steps = torch.cat([streamed(ids[:, :3], cache), streamed(ids[:, 3:], cache)], 1)
    assert torch.allclose(steps, resident(ids), atol=1e-5)


def test_streamed_calibration_equals_the_resident_one(tmp_path, monkeypatch):
    """Metrics and losses are the same for a model that is read layer by layer."""
    monkeypatch.setattr("tolpack.model.head._BLOCK_ROWS", 40)
    path, ids = models.save_model(tmp_path, "flex_memoryllm"), models.zipf_ids(65, 97)
    decoders = [Decoder(open_checkpoint(path), resident=resident) for resident in (True, False)]
    first, second = (measure_loss_metrics(decoder, ids, 8).metrics for decoder in decoders)
    for a, b in zip(first, second):
        np.testing.assert_allclose(a.load(), b.load(), atol=1e-5 * abs(a.load()).max())
    losses = [window_losses(decoder, ids, 8) for decoder in decoders]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("block", [7, 97, 1000])
def test_loss_over_blocks_equals_cross_entropy(memoryllm, monkeypatch, block):
    """The head's loss and gradient over blocks of the vocabulary are those of all of it."""
    monkeypatch.setattr("tolpack.model.head._BLOCK_ROWS", block)
    head = VocabularyMatrix(open_checkpoint(memoryllm), "embed_tokens.weight", resident=False)
    weight = VocabularyMatrix(open_checkpoint(memoryllm), "embed_tokens.weight", resident=True)
    states = torch.randn(11, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 96, 6, 7, 50, 13, 13, 14, 95, 1, 2])
    loss = torch.nn.functional.cross_entropy(weight.logits(states), targets, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), states)
    assert torch.allclose(nll(head, states, targets), loss.detach(), atol=1e-5)
    assert torch.allclose(nll_gradient(head, states, targets), gradient, atol=1e-5)


def test_large_models_are_measured_on_fewer_tokens(memoryllm):
    """The cost of a measurement is bounded; small models are not cut short."""
    small = macs_per_token(parse_config(CONFIG))
    assert affordable_tokens(small, 1 << 17) == 1 << 17
    config = models.make_config(
        vocab_size=128_256, hidden_size=2048, num_hidden_layers=24, memory_intermediate_size=5464,
        intermediate_size=None,
    )  # fmt: skip
    paper = macs_per_token(parse_config(config))
    assert 1000 < affordable_tokens(paper, 1 << 17) < 8000
    assert 16_000 < affordable_tokens(paper, 1 << 17, METRIC_OPERATIONS) < 20_000
    assert sampled_length(Decoder(open_checkpoint(memoryllm)), 16) == 16


# -- bfloat16 --------------------------------------------------------------------------------------


def test_bfloat16_is_chosen_for_large_rounded_tables_only(memoryllm, monkeypatch):
    """`auto` is float32 unless the pass is long, the processor is able and 8 bits are enough."""
    source = open_source(memoryllm)
    monkeypatch.setattr("tolpack.workspace.limits.multiplies_bfloat16", lambda: True)
    assert choose_compute("auto", source, 4, Reporter()) is torch.float32
    monkeypatch.setattr("tolpack.workspace.limits._LARGE_PASS", 1.0)
    assert choose_compute("auto", source, 4, Reporter()) is torch.bfloat16
    assert choose_compute("auto", source, 16, Reporter()) is torch.float32
    assert choose_compute("float32", source, 4, Reporter()) is torch.float32
    monkeypatch.setattr("tolpack.workspace.limits.multiplies_bfloat16", lambda: False)
    assert choose_compute("auto", source, 4, Reporter()) is torch.float32
    assert choose_compute("bfloat16", source, 8, Reporter()) is torch.bfloat16


def test_bfloat16_rows_are_close_and_named(memoryllm, tmp_path):
    """bfloat16 moves rows by far less than 8 bits do; it is another build, and refused for 16."""
    exact = tolpack.build(memoryllm, tmp_path / "a.tolpack", bits=8)
    other = tolpack.build(memoryllm, tmp_path / "b.tolpack", bits=8, compute="bfloat16")
    for a, b in zip(exact.layers, other.layers):
        assert b.relative_error < 2 * a.relative_error < 0.02
    assert exact.path.read_bytes() != other.path.read_bytes()
    with pytest.raises(ConfigError, match="less exact than --bits 16 keeps"):
        tolpack.build(memoryllm, tmp_path / "c.tolpack", bits=16, compute="bfloat16")
    with pytest.raises(ConfigError, match="--compute 'half' is unknown"):
        tolpack.build(memoryllm, tmp_path / "c.tolpack", compute="half")
