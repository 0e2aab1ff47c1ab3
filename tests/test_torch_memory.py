"""`ToLMemory`: rows of a pack as the module that inference code mounts."""

import copy
import sys
import threading

import models
import numpy as np
import pytest
import torch
from packs import RECIPES, WITH_BASIS

import tolpack
from tolpack.codecs import kernels
from tolpack.errors import ConfigError, TokenIdError
from tolpack.model.decoder import Decoder
from tolpack.runtime import buffers
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory


@pytest.fixture(scope="module")
def path(memoryllm, tmp_path_factory):
    """A pack of the tiny MemoryLLM with a basis and a dropped layer."""
    out = tmp_path_factory.mktemp("pack") / "p.tolpack"
    return tolpack.build(memoryllm, out, rank="9,24,3", drop="1", bits=8).path


@pytest.fixture
def pack(path):
    """The open pack."""
    with tolpack.open(path) as opened:
        yield opened


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "ids", [5, [3], [3, 96, 3], [[0, 7], [7, 1]], [[[4]]], [], [[], []]]
)  # fmt: skip
def test_rows_have_the_shape_of_the_ids(pack, dtype, ids):
    """Ids of any shape give (*shape, hidden) in the dtype asked for; dropped layers are zeros."""
    ids = torch.tensor(ids, dtype=torch.int64)
    memory = ToLMemory(pack, dtype)
    expected = pack.rows(ids.reshape(-1).numpy())
    for layer in range(3):
        found = memory(layer, ids)
        assert found.dtype == dtype
        assert found.shape == (*ids.shape, 24)
        wanted = torch.from_numpy(expected[:, layer]).reshape(found.shape)
        if dtype == torch.bfloat16:  # coefficients and basis are rounded, too
            error = (found.float() - wanted).norm(dim=-1)
            assert (error <= 2**-7 * wanted.norm(dim=-1)).all()
        else:
            torch.testing.assert_close(found, wanted.to(dtype), atol=1e-6, rtol=1e-5)
        assert layer != 1 or not found.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_ids_of_any_integer_dtype(pack, dtype):
    """Ids of narrower integer dtypes give the same rows."""
    ids = torch.tensor([1, 90, 1])
    memory = ToLMemory(pack)
    torch.testing.assert_close(memory(0, ids.to(dtype)), memory(0, ids))


def test_all_layers_cost_one_fetch(pack):
    """Calling layer after layer with the same ids reads the pack once."""
    memory, ids = ToLMemory(pack), torch.tensor([[1, 2, 3, 2]])
    before = pack.stats()["rows"]
    for layer in range(3):
        memory(layer, ids.clone())
    assert pack.stats()["rows"] - before == 3


def test_changed_ids_are_fetched_again(pack):
    """Ids that were changed in place, or differ in shape only, never give old rows."""
    memory, ids = ToLMemory(pack), torch.tensor([1, 2])
    memory(0, ids)
    ids[0] = 50
    torch.testing.assert_close(memory(0, ids), torch.from_numpy(pack.rows([50, 2])[:, 0]))
    assert memory(0, ids[None]).shape == (1, 2, 24)


def test_decoder_runs_on_it(memoryllm, tmp_path):
    """A decoder with a 16-bit pack for its memory gives the logits of its own FFNs."""
    with tolpack.open(tolpack.build(memoryllm, tmp_path / "p.tolpack", bits=16).path) as pack:
        decoder = Decoder(open_checkpoint(memoryllm))
        ids = torch.from_numpy(models.zipf_ids(12, 97))[None]
        packed = decoder.with_memory(ToLMemory(pack))
        torch.testing.assert_close(packed(ids), decoder(ids), atol=0.02, rtol=0.02)
        assert list(packed.generate([5], 8)) == list(decoder.generate([5], 8))


def test_failed_lookup_leaves_the_module_usable(pack):
    """After an error the next lookup gives right rows, not those of the failed one."""
    memory, good = ToLMemory(pack), torch.tensor([7, 8])
    memory(0, good)
    with pytest.raises(TokenIdError, match="token id 97 is out of range"):
        memory(0, torch.tensor([7, 97]))
    torch.testing.assert_close(memory(2, good), torch.from_numpy(pack.rows([7, 8])[:, 2]))


@pytest.mark.parametrize(
    "ids", [torch.tensor([0.0]), torch.tensor([True]), torch.tensor([-1]), torch.tensor([2**40])]
)
def test_wrong_ids_are_refused(pack, ids):
    """Ids of another kind or out of range give TokenIdError."""
    with pytest.raises(TokenIdError):
        ToLMemory(pack)(0, ids)


@pytest.mark.parametrize("layer", [-1, 3])
def test_wrong_layer_is_refused(pack, layer):
    """A layer that the pack does not have is refused with the range."""
    with pytest.raises(ConfigError, match=rf"layer {layer} is out of range 0 … 2"):
        ToLMemory(pack)(layer, torch.tensor([0]))


def test_wrong_dtype_is_refused(pack):
    """Outputs are float32, bfloat16 or float16."""
    with pytest.raises(ConfigError, match="expected float32, bfloat16 or float16"):
        ToLMemory(pack, torch.float64)


def test_closed_pack_gives_our_error(path):
    """A lookup after the pack was closed gives tolpack's error."""
    pack = tolpack.open(path)
    memory = ToLMemory(pack)
    pack.close()
    with pytest.raises(tolpack.TolpackError):
        memory(0, torch.tensor([0]))


def test_it_is_a_module_without_weights(pack):
    """Mounted in a model it adds nothing to the state dict and survives train and eval."""
    model = torch.nn.ModuleDict({"memory": ToLMemory(pack)})
    assert model.state_dict() == {}
    assert model.eval()["memory"](0, torch.tensor([1])).shape == (1, 24)


def test_gradients_flow_around_it_after_inference(pack):
    """Rows first fetched in inference mode can be used where gradients are recorded."""
    memory, ids = ToLMemory(pack), torch.tensor([1, 2])
    with torch.inference_mode():
        memory(0, ids)
    scale = torch.ones(24, requires_grad=True)
    (scale * memory(0, ids)).sum().backward()
    np.testing.assert_allclose(scale.grad, pack.rows([1, 2])[:, 0].sum(0), rtol=1e-5)


# ---- places of decoding, hot rows, prefetch ------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("expand", ["host", "device"])
@pytest.mark.parametrize("hot_rows", [0, 1, 3])
def test_every_codec_gives_the_packs_rows(name, expand, hot_rows, samples):
    """In float32 the bits of `Pack.rows` without a basis, and within 1e-5 with one, wherever
    records are decoded and rows stay.
    """
    with tolpack.open(samples[name].path) as pack:
        hot = min(hot_rows, pack.vocab_size)
        memory = ToLMemory(pack, hot_rows=hot, expand=expand)
        source = np.random.default_rng(0)
        for size in (1, 1, pack.vocab_size, 2 * pack.vocab_size):
            ids = source.integers(0, pack.vocab_size, size)
            expected = pack.rows(ids)
            for layer in range(pack.num_layers):
                found = memory(layer, torch.from_numpy(ids)).numpy()
                own = expected[:, layer]
                if name in WITH_BASIS:
                    limit = 1e-5 * np.abs(own).max(axis=1, keepdims=True)
                    assert (np.abs(found - own) <= limit).all()
                else:
                    assert found.tobytes() == np.ascontiguousarray(own).tobytes()


@pytest.mark.parametrize("name", sorted({*RECIPES} - WITH_BASIS))
@pytest.mark.parametrize("expand", ["host", "device"])
@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_rows_are_the_packs_rounded(name, expand, compiled, samples, monkeypatch):
    """Without a basis: to the nearest, ties to even, infinite where too large, as torch rounds."""
    monkeypatch.setattr(kernels, "_loaded", [kernels.load() if compiled else None])
    with tolpack.open(samples[name].path) as pack:
        ids = torch.arange(pack.vocab_size)
        memory = ToLMemory(pack, torch.bfloat16, expand=expand)
        for layer, own in enumerate(np.moveaxis(pack.rows(ids.numpy()), 1, 0)):
            expected = torch.from_numpy(np.ascontiguousarray(own)).to(torch.bfloat16)
            assert torch.equal(memory(layer, ids), expected)


def test_hot_rows_are_not_fetched(pack):
    """A step of hot tokens reads nothing of the pack; of others, those alone."""
    memory = ToLMemory(pack, hot_rows=10)
    hot = pack.most_frequent(10)
    before = pack.stats()["rows"]
    memory(0, torch.from_numpy(hot[[3, 3, 0]]))
    memory(0, torch.from_numpy(hot[[7]]))
    assert pack.stats()["rows"] == before
    cold = int(pack.most_frequent(11)[-1])
    memory(0, torch.tensor([cold, int(hot[0]), cold]))
    assert pack.stats()["rows"] == before + 1


def test_prefetched_steps_are_taken(pack):
    """The next call with the ids waits for them; other ids are fetched for themselves."""
    memory, ids = ToLMemory(pack), torch.tensor([[5, 6, 5]])
    memory.prefetch(ids)
    memory._coming[1].result(30)
    before = pack.stats()["rows"]
    found = memory(0, ids)
    assert pack.stats()["rows"] == before
    torch.testing.assert_close(found, torch.from_numpy(pack.rows([5, 6, 5])[None, :, 0]))
    memory.prefetch(torch.tensor([1]))
    expected = torch.from_numpy(pack.rows([9])[:, 2])
    torch.testing.assert_close(memory(2, torch.tensor([9])), expected)


def test_what_goes_wrong_ahead_is_raised_by_the_step(pack):
    """An id out of range, once its step comes."""
    memory = ToLMemory(pack)
    memory.prefetch(torch.tensor([97]))
    with pytest.raises(TokenIdError, match="out of range"):
        memory(0, torch.tensor([97]))
    assert memory(0, torch.tensor([1])).shape == (1, 24)


@pytest.mark.parametrize("given", [{"hot_rows": -1}, {"hot_rows": 98}, {"expand": "gpu"}])
def test_settings_that_cannot_be_are_refused(pack, given):
    """With what is allowed."""
    with pytest.raises(ConfigError, match="expected"):
        ToLMemory(pack, **given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_rows_on_a_gpu(name, samples):
    """The rows of the CPU, hot ones and sent ones."""
    with tolpack.open(samples[name].path) as pack:
        ids = torch.arange(pack.vocab_size).repeat(2)
        for hot in (0, pack.vocab_size // 2):
            memory = ToLMemory(pack, device="cuda", hot_rows=hot)
            for layer, own in enumerate(np.moveaxis(pack.rows(ids.numpy()), 1, 0)):
                found = memory(layer, ids.cuda())
                assert found.device.type == "cuda"
                expected = torch.from_numpy(np.ascontiguousarray(own))
                torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-4)


# ---- what surrounds it ---------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["auto", "direct"])
def test_rows_come_from_cache_and_file_together(io, samples):
    """Records of both, expanded on the device: those of the file may have their padding behind."""
    with tolpack.open(samples["f16"].path, io=io, cache=60) as pack:
        ids = torch.arange(pack.vocab_size)
        memory = ToLMemory(pack, expand="device")
        memory(0, ids[:2])
        for layer in range(pack.num_layers):
            expected = np.ascontiguousarray(pack.rows(ids.numpy())[:, layer])
            assert memory(layer, ids).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(default, samples):
    """As loaders of models set it."""
    with tolpack.open(samples["steps"].path) as pack:
        ids = torch.arange(pack.vocab_size)
        expected = torch.from_numpy(pack.rows(ids.numpy()))
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(default)
            memory = ToLMemory(pack, expand="device", hot_rows=2)
            found = torch.stack([memory(layer, ids) for layer in range(pack.num_layers)], dim=1)
        finally:
            torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_threads_may_share_a_module(samples):
    """Each gets the rows of its own ids."""
    with tolpack.open(samples["f16"].path) as pack:
        memory, expected = ToLMemory(pack), pack.rows(range(pack.vocab_size))
        wrong = []

        def work(number):
            ids = torch.tensor([number, (number + 1) % pack.vocab_size])
            for _ in range(300):
                if not np.array_equal(memory(1, ids).numpy(), expected[ids.numpy(), 1]):
                    wrong.append(number)

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        sys.setswitchinterval(before)
    assert wrong == []


def test_hot_rows_loaded_in_inference_mode_may_be_used_outside(pack):
    """Where gradients are recorded."""
    with torch.inference_mode():
        memory = ToLMemory(pack, hot_rows=3)
    scale = torch.ones(24, requires_grad=True)
    hot = torch.from_numpy(pack.most_frequent(1))
    (scale * memory(0, hot)).sum().backward()
    np.testing.assert_allclose(scale.grad, pack.rows(hot.numpy())[0, 0], rtol=1e-5)


def test_ids_of_another_dtype_than_before(pack):
    """Unsigned ones after int64; complex ones are none."""
    memory = ToLMemory(pack)
    expected = memory(0, torch.tensor([1, 2]))
    assert torch.equal(memory(0, torch.tensor([1, 2]).to(torch.uint32)), expected)
    with pytest.raises(TokenIdError):
        memory(0, torch.tensor([1, 2]).to(torch.complex64))


@pytest.mark.parametrize("layer", [1.0, "0", True, None])
def test_layers_of_another_kind_are_refused(pack, layer):
    """As those out of range."""
    with pytest.raises(ConfigError, match="out of range"):
        ToLMemory(pack)(layer, torch.tensor([0]))


def test_copied_modules_read_the_same_pack(pack):
    """A deep copy of a model, as some libraries make one, has rows too."""
    model = torch.nn.ModuleDict({"memory": ToLMemory(pack, torch.bfloat16, hot_rows=2)})
    ids = torch.tensor([0, 3])
    copied = copy.deepcopy(model)["memory"]
    assert copied is not model["memory"]
    assert torch.equal(copied(1, ids), model["memory"](1, ids))


def test_rows_that_are_held_are_not_overwritten(samples, monkeypatch):
    """The memory of a result serves again only when nobody holds a tensor of it."""
    monkeypatch.setattr(buffers, "_LEAST_BYTES", 1)
    pack = tolpack.open(samples["int4"].path)
    memory = ToLMemory(pack, torch.bfloat16)
    ids = torch.stack([torch.arange(n, n + 4) for n in range(5)])
    expected = torch.from_numpy(pack.rows(np.arange(pack.vocab_size))).to(torch.bfloat16)
    held = [memory(1, own) for own in ids]
    for own, rows in zip(ids, held):
        assert torch.equal(rows, expected[own, 1])
    places = {rows.untyped_storage().data_ptr() for rows in held}
    assert len(places) == len(held)
    del held, rows
    assert memory(1, ids[0]).untyped_storage().data_ptr() in places
