"""`ToLMemory` in compiled code: one operator, which breaks no graph."""

import copy
import gc
import shutil

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import tolpack
from tolpack.errors import ConfigError, FileAccessError, TokenIdError
from tolpack.torch import ToLMemory

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Batches of other sizes than before, with ids that occur twice, and none.
BATCHES = ([[1, 2, 3]], [[5, 5, 2], [9, 96, 0]], [[7]], [[], []], [[1, 2, 3]])
# Such as one graph serves: sizes of 0 and 1 always get one of their own, and compiling takes long.
LARGE_BATCHES = ([[5, 5, 2], [9, 96, 0]], [[1, 2], [3, 4], [9, 9]])


@pytest.fixture(scope="module")
def path(memoryllm, tmp_path_factory):
    """A pack of the tiny MemoryLLM with a dropped layer."""
    out = tmp_path_factory.mktemp("pack") / "p.tolpack"
    return tolpack.build(memoryllm, out, drop="1", bits=8).path


@pytest.fixture
def pack(path):
    """The open pack."""
    with tolpack.open(path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _fresh():
    """Forget what earlier tests compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def inductor(tmp_path_factory):
    """What inductor writes goes where it is taken away, and it starts no processes."""
    from torch._inductor import config

    with pytest.MonkeyPatch.context() as patch, config.patch(compile_threads=1):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def machine_code(test):
    """Mark a test that compiles with inductor, which gives warnings of torch itself."""
    test = pytest.mark.usefixtures("inductor")(test)
    test = pytest.mark.filterwarnings("ignore::DeprecationWarning")(test)
    there = any(map(shutil.which, ("g++", "clang++")))
    return pytest.mark.skipif(not there, reason="no C++ compiler for inductor")(test)


class Model(torch.nn.Module):
    """Three layers with weights, each with memory, that give the next ids as well."""

    def __init__(self, pack, **settings):
        super().__init__()
        self.memory = ToLMemory(pack, **settings)
        source = torch.Generator().manual_seed(0)
        self.weights = torch.nn.Parameter(torch.randn(3, 24, 24, generator=source) / 5)
        self.embedding = torch.nn.Parameter(torch.randn(97, 24, generator=source))

    def forward(self, ids):
        """Return the stream, and the ids that follow."""
        x = self.embedding[ids].to(self.memory.dtype)
        for layer, weight in enumerate(self.weights):
            x = x + torch.relu(x @ weight.to(x.dtype)) + self.memory(layer, ids)
        return x, (x.float() @ self.embedding.T).argmax(-1)


def layers_of(memory):
    """Return a function that stacks all layers' rows."""
    return lambda ids: torch.stack([memory(layer, ids) for layer in range(memory.pack.num_layers)])


def compiled(function, backend="aot_eager", **settings):
    return torch.compile(function, backend=backend, fullgraph=True, **settings)


def assert_as_uncompiled(model, batches=BATCHES, **settings):
    """Compare a compiled decode, whose ids are made within the graph, with the model's own."""

    def decode(ids):
        first, following = model(ids)
        return first, *model(following)

    fast = torch.compile(decode, **settings)
    for batch in batches:
        ids = torch.tensor(batch, dtype=torch.int64)
        with torch.no_grad():
            for found, expected in zip(fast(ids), decode(ids)):
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("dynamic", "fullgraph"), [(None, False), (None, True), (True, True), (False, True)]
)
def test_a_model_compiles(pack, backend, dynamic, fullgraph):
    """Memory in several layers gives the results of uncompiled code, whatever the batch's size."""
    assert_as_uncompiled(Model(pack), backend=backend, dynamic=dynamic, fullgraph=fullgraph)


@machine_code
@pytest.mark.parametrize("mode", MODES)
def test_a_model_compiles_to_machine_code(pack, mode):
    """In every mode, as one graph for batches of any size."""
    assert_as_uncompiled(Model(pack), LARGE_BATCHES, mode=mode, fullgraph=True, dynamic=True)


@machine_code
def test_rows_in_machine_code_are_the_same_bits(pack):
    """Also where the compiler writes into the memory of a result that it has done with."""
    memory, ids = ToLMemory(pack, torch.bfloat16), torch.tensor([[3, 4, 3]])
    expected = layers_of(memory)(ids)

    def used(ids):
        doubled, moved = memory(0, ids).mul_(2), torch.relu(memory(2, ids)) + 1
        return doubled, moved, layers_of(memory)(ids)

    fast = compiled(used, "inductor")
    for _ in range(2):
        doubled, moved, rows = fast(ids)
        assert torch.equal(rows, expected)
        assert torch.equal(doubled, expected[0] * 2)
        assert torch.equal(moved, torch.relu(expected[2]) + 1)


@pytest.mark.parametrize("name", ["f16", "everything", "coded-basis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_the_same_bits(name, dtype, samples):
    """Of every kind of pack and dtype, those of dropped layers and hot rows included."""
    with tolpack.open(samples[name].path) as pack:
        memory = ToLMemory(pack, dtype, hot_rows=2, expand="host" if name == "f16" else "device")
        fast = compiled(layers_of(memory))
        for ids in ([0], [[2, 1], [2, 4]], list(range(pack.vocab_size))):
            ids = torch.tensor(ids)
            assert torch.equal(fast(ids), layers_of(memory)(ids))
            assert fast(ids).dtype == dtype


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_results_are_the_callers_alone(pack, backend):
    """Compiled code may write to a result: later ones for the same ids do not change."""
    memory, ids = ToLMemory(pack), torch.tensor([4])
    expected = memory(0, ids).clone()
    fast = compiled(lambda ids: (memory(0, ids).add_(1), memory(0, ids)), backend)
    for _ in range(2):
        changed, kept = fast(ids)
        assert torch.equal(changed, expected + 1)
        assert torch.equal(kept, expected)
    assert torch.equal(memory(0, ids), expected)


def test_the_operator_keeps_its_promises(pack):
    """The checks that torch has of a schema, a shape without content, and dynamic shapes."""
    memory = ToLMemory(pack, torch.bfloat16)
    args = (torch.tensor([[1, 2, 1]]), memory._name, 2, 24, torch.bfloat16, memory.device)
    torch.library.opcheck(torch.ops.tolpack.memory_rows.default, args)


def test_shapes_follow_from_the_arguments(pack):
    """Caches of compiled graphs, which outlive the process, know no module."""
    with FakeTensorMode():
        ids = torch.empty(2, 3, dtype=torch.int32)
        rows = torch.ops.tolpack.memory_rows(ids, "none", 0, 5, torch.float16, torch.device("cpu"))
    assert (rows.shape, rows.dtype, rows.stride()) == ((2, 3, 5), torch.float16, (15, 5, 1))


def test_all_layers_cost_one_fetch(pack):
    """As uncompiled: a step reads the pack once."""
    fast = compiled(layers_of(ToLMemory(pack)))
    before = pack.stats()["rows"]
    fast(torch.tensor([1, 2, 3, 2]))
    assert pack.stats()["rows"] - before == 3


def test_one_graph_serves_all_layers(pack):
    """A function of the layer is compiled for the first, and once more for any other."""
    memory, graphs, ids = ToLMemory(pack), [], torch.tensor([3, 1])

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    fast = compiled(lambda layer, ids: memory(layer, ids), counting)
    for layer in (0, 1, 2, 0):
        assert torch.equal(fast(layer, ids), memory(layer, ids))
    assert len(graphs) <= 2


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[97], [-1], [0.0], [True]])
def test_wrong_ids_are_refused(pack, ids):
    """With tolpack's error, after which compiled code goes on to work."""
    memory, good = ToLMemory(pack), torch.tensor([7])
    fast = compiled(layers_of(memory))
    with pytest.raises(TokenIdError):
        fast(torch.tensor(ids))
    assert torch.equal(fast(good), layers_of(memory)(good))


@pytest.mark.parametrize("layer", [-1, 3])
def test_wrong_layer_is_refused(pack, layer):
    """With the range, when the code runs."""
    memory = ToLMemory(pack)
    with pytest.raises(ConfigError, match=rf"layer {layer} is out of range 0 … 2"):
        compiled(lambda ids: memory(layer, ids))(torch.tensor([0]))


def test_closed_pack_gives_our_error(path):
    """Also where the code was compiled before."""
    pack = tolpack.open(path)
    fast = compiled(layers_of(ToLMemory(pack)))
    fast(torch.tensor([1]))
    pack.close()
    with pytest.raises(FileAccessError):
        fast(torch.tensor([2]))


def test_a_graph_without_its_module_is_refused(pack):
    """A graph that was exported keeps no module; no other one's rows are taken for it."""
    model, ids = Model(pack), torch.tensor([1])
    exported = torch.export.export(model, (ids,), strict=False).module()
    torch.testing.assert_close(exported(ids), model(ids))
    del model
    gc.collect()
    with pytest.raises(ConfigError, match="is not in this process: compile again"):
        exported(ids)


def test_names_tell_packs_apart(pack, samples):
    """A graph that another process saved finds no rows of another pack."""
    with tolpack.open(samples["f16"].path) as other:
        names = [ToLMemory(one)._name.split("-")[0] for one in (pack, pack, other)]
    assert names[0] == names[1] != names[2]


# ---- what surrounds it ---------------------------------------------------------------------------


def test_gradients_flow_around_it(pack):
    """To the weights, as uncompiled, and not to the rows; also after inference."""
    model, ids = Model(pack), torch.tensor([[1, 2, 1]])
    fast, found = compiled(model), []
    with torch.inference_mode():
        assert fast(ids)[0].is_inference()
    for run in (fast, model):
        model.zero_grad()
        run(ids)[0].square().sum().backward()
        found.append([weight.grad for weight in model.parameters()])
    for pair in zip(*found):
        torch.testing.assert_close(*pair)


def test_copies_of_compiled_models_have_rows(pack):
    """A deep copy, and a model that another memory was put into, never give the first one's."""
    model, ids = Model(pack), torch.tensor([[1, 96]])
    fast = compiled(model)
    copied = copy.deepcopy(fast)
    torch.testing.assert_close(fast(ids)[0], copied(ids)[0])
    before = model.memory.pack.stats()["rows"]
    copied(torch.tensor([[3, 5]]))
    assert pack.stats()["rows"] == before + 2
    model.memory = ToLMemory(pack, torch.bfloat16)
    assert fast(ids)[0].dtype == torch.bfloat16
    torch.testing.assert_close(fast(ids), model(ids))


def test_prefetches_are_for_uncompiled_code(pack):
    """One that was begun outside is taken by compiled code; inside it is left out."""
    memory, ids = ToLMemory(pack), torch.tensor([8, 9])

    def step(ids):
        memory.prefetch(ids + 1)
        return memory(0, ids)

    memory.prefetch(ids)
    memory._coming[1].result(30)
    before = pack.stats()["rows"]
    found = compiled(step)(ids)
    assert pack.stats()["rows"] == before
    assert memory._coming is None
    np.testing.assert_array_equal(found.numpy(), pack.rows([8, 9])[:, 0])
