"""`PackEmbedding` against the modules that it replaces."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextScaledWordEmbedding

import tolpack
from tolpack.errors import ConfigError, TokenIdError
from tolpack.torch.embedding import PackEmbedding

ROWS, WIDTH = 97, 24
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IDS = torch.tensor([[5, 17, 5, 0], [96, 5, 3, 17]])


@pytest.fixture(scope="module")
def values():
    """A table of bfloat16."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=source).to(torch.bfloat16)


@pytest.fixture(scope="module")
def path(values, tmp_path_factory):
    """A lossless pack of it."""
    folder = tmp_path_factory.mktemp("pack")
    save_file({"table": values, "other": torch.zeros(2)}, folder / "t.safetensors")
    return tolpack.build(
        folder / "t.safetensors", folder / "p.tolpack", tensor="table", bits="lossless"
    ).path


@pytest.fixture
def pack(path):
    """The open pack."""
    with tolpack.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """A plain table of three fields, and its file."""
    file = tmp_path_factory.mktemp("fields") / "t.npy"
    np.save(file, np.random.default_rng(0).standard_normal((ROWS, 3, 8), np.float32))
    return file


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_an_embedding(pack, values, dtype):
    """A lossless pack gives the bits of ``nn.Embedding`` in every dtype, for ids of any shape."""
    stock = torch.nn.Embedding.from_pretrained(values).to(dtype)
    mounted = PackEmbedding(pack, dtype)
    for ids in (IDS, IDS.int(), IDS[0], IDS[0, 0], IDS[:, :0], IDS[:0], IDS.repeat(20, 3)):
        found = mounted(ids)
        assert found.dtype == dtype
        assert torch.equal(found, stock(ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [256**0.5, WIDTH**0.5, 0.1])
def test_scale_is_multiplied_as_gemma_does(pack, values, dtype, scale):
    """A scale that no dtype holds gives the bits of Gemma's own module."""
    stock = Gemma3nTextScaledWordEmbedding(ROWS, WIDTH, 0, embed_scale=scale)
    stock.weight.data = values.clone()
    stock = stock.to(dtype)
    # As from_pretrained leaves it: the scale is not cast with the weights.
    stock.embed_scale = torch.tensor(scale)
    expected = stock(IDS).detach()
    assert torch.equal(PackEmbedding(pack, dtype, scale=scale)(IDS), expected)


@pytest.mark.parametrize("settings", [{"rank": "4"}, {"bits": 4}, {"bits": 8, "drop": "1"}])
def test_other_packs_give_their_rows(fields, tmp_path, settings):
    """Bases, codes and dropped fields: all fields of `Pack.rows`, one after the other."""
    tolpack.build(fields, tmp_path / "p.tolpack", **settings)
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        expected = pack.rows(IDS.reshape(-1).numpy()).reshape(2, 4, WIDTH)
        found = PackEmbedding(pack)(IDS).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        half = PackEmbedding(pack, torch.bfloat16)(IDS)
        assert torch.equal(half, torch.from_numpy(found).to(torch.bfloat16))


def test_each_distinct_id_is_read_once(pack):
    """Ids that occur several times cost one read."""
    PackEmbedding(pack)(torch.zeros(50, 50, dtype=torch.int64))
    assert pack.stats()["block_reads"] == 1


def test_it_looks_like_an_embedding(pack, values):
    """Shape, dtype and device of the weight are there, and nothing is in the state dict."""
    mounted = PackEmbedding(pack, torch.float16)
    assert (mounted.num_embeddings, mounted.embedding_dim) == values.shape
    assert mounted.weight.shape == values.shape
    assert mounted.weight.dtype == torch.float16
    assert mounted.weight.device == torch.device("cpu")
    assert mounted.state_dict() == {}
    assert list(mounted.parameters()) == []
    assert "97" in repr(mounted)


def test_casting_the_model_casts_the_rows(pack, values):
    """``to`` and ``half`` of a model change the dtype of the rows, as they change a weight's."""
    model = torch.nn.Sequential(PackEmbedding(pack), torch.nn.Linear(WIDTH, 2))
    assert model[0](IDS).dtype == torch.float32
    assert model.half()[0](IDS).dtype == torch.float16
    assert torch.equal(model.to(torch.bfloat16)[0](IDS), values[IDS])


def test_rows_take_gradients_made_in_inference_mode(pack):
    """Rows that were looked up in inference mode may be used where gradients are recorded."""
    with torch.inference_mode():
        rows = PackEmbedding(pack)(IDS)
    weight = torch.ones(WIDTH, requires_grad=True)
    (rows * weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum((0, 1)))


@pytest.mark.parametrize("wrong", [-1, ROWS])
def test_ids_out_of_range_are_refused(pack, wrong):
    """The id and the limit are named."""
    with pytest.raises(TokenIdError, match=rf"token id {wrong} is out of range 0 … 96"):
        PackEmbedding(pack)(torch.tensor([[3, wrong]]))


def test_ids_must_be_integers(pack):
    """Floating-point ids are refused."""
    with pytest.raises(TokenIdError, match="token ids are torch.float32, expected integers"):
        PackEmbedding(pack)(torch.ones(3))


def test_other_dtypes_are_refused(pack):
    """No dtype but those three."""
    with pytest.raises(ConfigError, match="dtype is torch.float64, expected"):
        PackEmbedding(pack, torch.float64)


def test_a_deep_copy_reads_the_same_pack(pack):
    """Copies share the open pack; the copied module is independent."""
    mounted = PackEmbedding(pack, scale=3.0)
    copied = copy.deepcopy(torch.nn.Sequential(mounted))[0]
    assert copied.pack is pack
    assert torch.equal(copied(IDS), mounted(IDS))
    assert copied.half()(IDS).dtype == torch.float16
    assert mounted(IDS).dtype == torch.float32


def test_unpickled_it_opens_the_pack_again(pack):
    """Pickle and ``torch.save`` carry the path and the settings."""
    mounted = PackEmbedding(pack, torch.bfloat16, scale=3.0)
    loaded = pickle.loads(pickle.dumps(mounted))
    assert loaded.pack is not pack
    assert torch.equal(loaded(IDS), mounted(IDS))
    loaded.pack.close()
    file = io.BytesIO()
    torch.save(torch.nn.Sequential(mounted), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(IDS), mounted(IDS))
    again[0].pack.close()


class Model(torch.nn.Module):
    """An embedding from a pack within other layers."""

    def __init__(self, pack, dtype):
        super().__init__()
        self.embedding = PackEmbedding(pack, dtype, scale=3.0)
        self.linear = torch.nn.Linear(WIDTH, 4, dtype=dtype)

    def forward(self, ids):
        """Return what the layers make of the rows."""
        ids = ids.to(self.embedding.weight.device)
        return self.linear(self.embedding(ids) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles_without_a_graph_break(pack, dtype):
    """Within `torch.compile` a lookup is an operator of one graph, for batches of all sizes."""
    torch._dynamo.reset()
    model = Model(pack, dtype)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for ids in (IDS, IDS[:, :2], IDS.repeat(3, 1)):
            torch.testing.assert_close(compiled(ids), model(ids))
        with pytest.raises(TokenIdError):
            compiled(torch.full((2, 4), ROWS))
    torch._dynamo.reset()


def test_compiled_code_without_its_module_is_refused(pack):
    """The operator says so if the module is gone."""
    name = PackEmbedding(pack)._name
    gc.collect()
    with pytest.raises(ConfigError, match="is not in this process: compile again"):
        torch.ops.tolpack.embedding_rows(IDS, name, WIDTH, torch.float32)


def test_the_operator_describes_itself(pack):
    """Shapes, dtypes and aliases are as the operator says."""
    mounted = PackEmbedding(pack, torch.bfloat16)
    arguments = IDS, mounted._name, WIDTH, torch.bfloat16
    torch.library.opcheck(torch.ops.tolpack.embedding_rows.default, arguments)
