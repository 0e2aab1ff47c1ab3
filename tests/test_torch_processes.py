"""`ToLMemory` in other processes: forked ones, which lack its thread, and spawned ones."""

import copy
import io
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from packs import memory_limit
from torch.utils.data import DataLoader, Dataset

import tolpack
from tolpack.runtime import buffers
from tolpack.runtime.buffers import Buffers
from tolpack.torch import ToLMemory
from tolpack.torch.rows import HotRows

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


@pytest.fixture
def pack(samples):
    """An open pack of int4 records in frames, its tokens in an order of their own."""
    with tolpack.open(samples["int4"].path) as opened:
        yield opened


def begin_child(work):
    """Fork; the child ends with 0 if `work` returns true, and does not outlive 60 seconds."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # as workers of a `DataLoader` do: torch's threads are gone
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- forks ---------------------------------------------------------------------------------------


def test_a_child_waits_for_no_prefetch_of_its_parent(pack):
    """What its parent's thread was to bring, it fetches itself."""
    memory, ids, go = ToLMemory(pack), torch.tensor([2, 7]), threading.Event()
    expected = torch.from_numpy(pack.rows([2, 7])[:, 1])
    memory._ahead.submit(lambda _: go.wait(60), None)
    memory.prefetch(ids)
    child = begin_child(lambda: torch.equal(memory(1, ids), expected))
    go.set()
    assert exit_code(child) == 0
    assert torch.equal(memory(1, ids), expected)


def test_forks_while_rows_are_fetched(pack):
    """Fifty children look up what is on its way, and fetch ahead themselves."""
    memory, expected = ToLMemory(pack, hot_rows=3), torch.from_numpy(pack.rows(range(10)))
    source, children = np.random.default_rng(0), []

    def right(ids):
        found = torch.equal(memory(2, ids), expected[ids, 2])
        memory.prefetch(ids.flip(0))
        return found and torch.equal(memory(0, ids.flip(0)), expected[ids.flip(0), 0])

    for _ in range(50):
        ids = torch.from_numpy(source.integers(0, 10, 6))
        memory.prefetch(ids)
        children.append(begin_child(lambda own=ids: right(own)))
    assert [exit_code(child) for child in children] == [0] * 50


def test_memory_of_rows_after_a_fork(monkeypatch):
    """Arrays can be had even if another thread was taking one as the process forked."""
    monkeypatch.setattr(buffers, "_LEAST_BYTES", 1)
    held, begun, go = Buffers(1 << 20), threading.Event(), threading.Event()

    def hold():
        with held._lock:
            begun.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    child = begin_child(lambda: held.array((3, 4), np.float32).shape == (3, 4))
    go.set()
    thread.join()
    assert exit_code(child) == 0


# ---- pickles -------------------------------------------------------------------------------------


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def model_of(memory):
    """Return a model with weights that holds `memory`."""
    return torch.nn.ModuleDict({"memory": memory, "head": torch.nn.Linear(9, 2)}).eval()


@pytest.mark.parametrize("settings", [{}, {"hot_rows": 2}, {"expand": "device"}])
def test_pickled_modules_open_their_pack_again(pack, settings):
    """With their settings, on a file of their own: the first one may be closed."""
    memory, ids = ToLMemory(pack, torch.bfloat16, **settings), torch.tensor([[1, 2], [2, 9]])
    expected = memory(1, ids).clone()
    memory.prefetch(ids)
    model = pickled(model_of(memory))
    pack.close()
    found = model["memory"]
    assert not found.training
    assert found.pack is not pack
    assert torch.equal(found(1, ids), expected)
    assert list(model.state_dict()) == ["head.weight", "head.bias"]
    found.pack.close()


def test_saved_modules_are_loaded(pack):
    """By `torch.save` of a whole model, and by its weights, of which the memory has none."""
    model, ids, file = model_of(ToLMemory(pack, hot_rows=1)), torch.tensor([3, 0]), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded["memory"](2, ids), model["memory"](2, ids))
    loaded.load_state_dict(model.state_dict())
    loaded["memory"].pack.close()


@pytest.mark.parametrize("renewed", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_a_module_that_compiles_itself(renewed, pack):
    """Have what was compiled left behind, and a name of their own."""
    memory, ids = ToLMemory(pack), torch.tensor([3, 8])
    memory.compile(backend="eager")
    expected = memory(1, ids)
    copied = renewed(memory)
    assert torch.equal(copied(1, ids), expected)
    assert copied._name != memory._name
    assert (copied.pack is pack) == (renewed is not pickled)


class Rows(Dataset):
    """The rows of one layer, token by token, and who looked them up."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 10

    def __getitem__(self, token):
        rows = self.model["memory"](2, torch.tensor([token]))
        return rows[0].clone(), os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_look_rows_up(method, pack):
    """Two processes, while the parent has rows on their way and a pack open."""
    memory = ToLMemory(pack, hot_rows=2)
    memory(0, torch.tensor([4]))
    memory.prefetch(torch.tensor([0]))
    loader = DataLoader(
        Rows(model_of(memory)), batch_size=5, num_workers=2, multiprocessing_context=method,
        timeout=300,
    )  # fmt: skip
    batches = list(loader)
    found = torch.cat([rows for rows, _ in batches])
    assert torch.equal(found, torch.from_numpy(pack.rows(range(10))[:, 2]))
    processes = {int(one) for _, pids in batches for one in pids}
    assert len(processes) == 2
    assert os.getpid() not in processes


# ---- memory --------------------------------------------------------------------------------------


class Claim:
    """A pack of a few rows whose header claims a great vocabulary."""

    vocab_size, num_layers = 10**12, 2

    def most_frequent(self, count):
        """Return tokens of both ends."""
        return np.array([10**12 - 1, 5, 77])[:count]


def test_hot_rows_take_memory_by_their_number():
    """Not by the vocabulary that a header claims; ids are found wherever they stand."""

    def source(ids):
        return lambda layer: torch.from_numpy(np.stack([ids, ids * 0 + layer], axis=1))

    with memory_limit(1):
        hot = HotRows(Claim(), 3, source)
        for ids in ([5], [6], [10**12 - 1, 78], [0, 77, 4, 5, 10**12 - 2], [1, 2]):
            ids = np.array(ids)
            assert torch.equal(hot(ids)(1), source(ids)(1))
    with pytest.raises(tolpack.TokenIdError):
        hot(np.array([10**12]))
