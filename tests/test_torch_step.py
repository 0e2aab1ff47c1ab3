"""Decode steps of `ToLMemory`: ids are recognised, layers kept, and all of them had at once."""

import sys
import threading

import numpy as np
import pytest
import torch
from packs import RECIPES

import tolpack
from tolpack.errors import TokenIdError
from tolpack.torch import ToLMemory, step

# Each of at least 5 rows.
NAMES = ("int4", "f16", "basis", "everything")


@pytest.fixture(params=NAMES)
def memory(request, samples):
    """The memory of a pack: with and without a basis, with dropped layers."""
    with tolpack.open(samples[request.param].path) as pack:
        yield ToLMemory(pack)


def assert_rows(found, memory, ids, layer=0):
    """`found` is what the pack has for a list of ids, in any shape."""
    expected = memory.pack.rows(np.ravel(ids))[:, layer]
    own = found.numpy().reshape(expected.shape)
    np.testing.assert_allclose(
        own, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(initial=0)
    )


@pytest.mark.parametrize("inference", [False, True])
def test_a_layer_is_made_once_in_a_step(memory, inference):
    """Later calls with the ids return the same tensor, which may be used where gradients are
    recorded, whatever mode it was made in.
    """
    ids = torch.tensor([[1], [2], [1]])
    with torch.inference_mode(inference):
        rows = [memory(layer, ids) for layer in range(memory.pack.num_layers)]
        assert all(memory(layer, ids) is one for layer, one in enumerate(rows))
        assert all(memory(layer, ids.clone()) is one for layer, one in enumerate(rows))
    scale = torch.ones(3, requires_grad=True)
    (scale[:, None, None] * rows[0]).sum().backward()
    expected = memory.pack.rows([1, 2, 1])[:, 0].sum(1)
    np.testing.assert_allclose(scale.grad, expected, rtol=1e-3, atol=1e-3)


def test_layers_of_large_steps_are_not_kept(memory, monkeypatch):
    """Products of a prompt may be larger than the model: each call makes its own."""
    monkeypatch.setattr(step, "_KEPT_BYTES", 0)
    ids = torch.tensor([3, 3, 1])
    assert memory(0, ids) is not memory(0, ids)
    assert_rows(memory(0, ids), memory, [3, 3, 1])


CHANGES = {
    "in place": lambda ids: ids.fill_(0),
    "an element": lambda ids: ids[0].fill_(0),
    "its data": lambda ids: ids.data.fill_(0),
    "an array of numpy": lambda ids: ids.numpy().fill(0),
    "a view": lambda ids: ids.view(-1)[1:].fill_(0),
    "other memory": lambda ids: setattr(ids, "data", torch.tensor([[4, 3], [2, 1]])),
    "a part of other memory": lambda ids: setattr(
        ids, "data", torch.tensor([[0, 4, 1, 4], [3, 4, 2, 4]])[:, ::2]
    ),
    "another shape": lambda ids: setattr(ids, "data", torch.tensor([[1, 2, 3, 4]])),
    "transposed": lambda ids: ids.t_(),
    "reshaped": lambda ids: ids.unsqueeze_(0),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_was_changed_is_noticed(memory, change, inference):
    """However that was done, and also where tensors have no version."""
    with torch.inference_mode(inference):
        ids = torch.tensor([[1, 2], [3, 4]])
        memory(0, ids)
        CHANGES[change](ids)
        assert memory(0, ids).shape[:-1] == ids.shape
        assert_rows(memory(0, ids), memory, ids.tolist())


@pytest.mark.parametrize(
    "ids",
    [torch.arange(5)[1::3], torch.arange(4).view(2, 2).t(), torch.tensor(4).expand(3),
     torch.tensor(4), torch.empty(0, 2, dtype=torch.int64)],
)  # fmt: skip
def test_ids_that_are_not_contiguous(memory, ids):
    """Views with strides, repeated elements, none at all: the same ids, the same rows."""
    for _ in range(2):
        found = memory(0, ids)
        assert found.shape[:-1] == ids.shape
        assert_rows(found, memory, ids.tolist())


def test_equal_bytes_of_another_dtype_are_other_ids(memory):
    """Two int32 have the bytes of an int64."""
    narrow = torch.tensor([3, 0], dtype=torch.int32)
    assert_rows(memory(0, narrow), memory, [3, 0])
    assert_rows(memory(0, narrow.view(torch.int64)), memory, [3])
    with pytest.raises(TokenIdError):
        memory(0, narrow.view(torch.float32))


# ---- all layers at once --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("hot_rows", [0, 2])
@pytest.mark.parametrize("ids", [[3], [[1, 2], [2, 4]], []])
def test_all_layers_are_those_of_single_calls(name, hot_rows, ids, samples):
    """For every kind of pack, hot rows and duplicates; the pack is read once."""
    with tolpack.open(samples[name].path) as pack:
        hot = min(hot_rows, pack.vocab_size)
        memory, single = (ToLMemory(pack, torch.bfloat16, hot_rows=hot) for _ in range(2))
        ids = torch.tensor(ids, dtype=torch.int64) % pack.vocab_size
        before = pack.stats()["rows"]
        found = memory.all_layers(ids)
        read = pack.stats()["rows"] - before
        assert type(found) is tuple
        assert len(found) == pack.num_layers
        for layer, rows in enumerate(found):
            assert torch.equal(rows, single(layer, ids))
            assert torch.equal(rows, memory(layer, ids))
        assert pack.stats()["rows"] - before == 2 * read


def test_all_layers_in_compiled_code(samples):
    """They break no graph, and are the rows of uncompiled code."""
    with tolpack.open(samples["int4"].path) as pack:
        memory, ids = ToLMemory(pack), torch.tensor([[1, 2]])
        torch._dynamo.reset()
        fast = torch.compile(memory.all_layers, backend="eager", fullgraph=True)
        for found, expected in zip(fast(ids), memory.all_layers(ids), strict=True):
            assert torch.equal(found, expected)
        torch._dynamo.reset()


def test_all_layers_take_a_prefetch(memory):
    """Of the same ids, in whatever shape."""
    memory.prefetch(torch.tensor([[1, 2]]))
    memory._coming[1].result(30)
    before = memory.pack.stats()["rows"]
    found = memory.all_layers(torch.tensor([1, 2]))
    assert memory.pack.stats()["rows"] == before
    assert_rows(found[0], memory, [1, 2])


def test_threads_that_share_a_module(memory):
    """Each gets all layers of its own ids, also when it changes them in place."""
    expected, wrong = memory.pack.rows(range(5)), []

    def work(number):
        ids = torch.tensor([number])
        for turn in range(150):
            ids[0] = own = (number + turn) % 5
            for layer, rows in enumerate(memory.all_layers(ids)):
                if not np.allclose(rows.numpy(), expected[own, layer], rtol=1e-3, atol=1e-3):
                    wrong.append((own, layer))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sys.setswitchinterval(before)
    assert wrong == []
