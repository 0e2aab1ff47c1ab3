"""Packs in models of transformers, against the same models with their tables in memory."""

import copy
import gc
import pickle
import shutil
import weakref

import pytest
import torch
from mounted_models import (
    ALL_IDS,
    ATTENTION,
    FAMILIES,
    decoded,
    logits,
    save_with_packs,
    stock,
)
from saved_tables import save_models

import tolpack
import tolpack.hf
from tolpack.errors import ConfigError, FileAccessError, TokenIdError
from tolpack.hf import mounting
from tolpack.torch.embedding import PackEmbedding

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IDS = torch.tensor([[3, 7, 7, 39, 2, 30, 11], [5, 6, 7, 8, 9, 3, 7]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family → its folder and a lossless pack, for reading only."""
    return save_with_packs(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def gemma(saved):
    """A Gemma 3n with its table in memory, and one with a pack, for reading only."""
    folder, pack = saved["gemma3n"]
    return stock(folder), tolpack.hf.load(folder, pack)[0]


def embeddings(model):
    """Return the modules that read a pack."""
    return [module for module in model.modules() if isinstance(module, PackEmbedding)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_stock_model(saved, family, dtype):
    """Loaded without its table, or with the pack mounted later: the same bits in every dtype."""
    folder, pack = saved[family]
    reference = stock(folder, dtype=dtype)
    expected = logits(reference, IDS)
    loaded, tokenizer = tolpack.hf.load(folder, pack, dtype=dtype)
    assert tokenizer is None
    assert len(embeddings(loaded)) == (2 if family == "qwen4_exp_two" else 1)
    assert torch.equal(logits(loaded, IDS), expected)
    assert torch.equal(logits(tolpack.hf.mount(reference, pack), IDS), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_tokens_are_those_of_the_stock_model(saved, family):
    """64 tokens of a batch with left padding: the same ids, and the same logits bit for bit."""
    folder, pack = saved[family]
    options = {"attention_mask": MASK, "pad_token_id": 0}
    ids, scores = decoded(stock(folder), IDS, **options)
    found, found_scores = decoded(tolpack.hf.load(folder, pack)[0], IDS, **options)
    assert torch.equal(found, ids)
    assert len(scores) == 64
    assert torch.equal(found_scores, scores)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4", "qwen4_exp"])
def test_rows_of_the_pack_matter(saved, tmp_path, family):
    """A pack of 4 bits gives logits near those of the table, but not the same."""
    folder, _ = saved[family]
    tolpack.build(folder, tmp_path / "p.tolpack", bits=4)
    expected = logits(stock(folder), IDS).float()
    found = logits(tolpack.hf.load(folder, tmp_path / "p.tolpack")[0], IDS).float()
    difference = (found - expected).norm() / expected.norm()
    assert 0 < difference < 0.3


def test_the_tables_memory_is_freed(saved):
    """Nothing refers to the table once a pack is mounted."""
    folder, pack = saved["gemma3n"]
    model = stock(folder)
    table = weakref.ref(model.model.embed_tokens_per_layer.weight)
    assert tolpack.hf.mount(model, pack) is model
    gc.collect()
    assert table() is None
    assert not [name for name in model.state_dict() if "per_layer.weight" in name]


def test_the_table_of_the_folder_is_never_read(saved, monkeypatch):
    """The loaded folder has the table, but its tensor is not made."""
    from transformers import core_model_loading

    folder, pack = saved["qwen4_exp"]
    made, spawn = [], core_model_loading.spawn_materialize

    def spy(pool, tensor, *arguments, **named):
        made.append(tuple(tensor.get_shape()))
        return spawn(pool, tensor, *arguments, **named)

    monkeypatch.setattr(core_model_loading, "spawn_materialize", spy)
    stock(folder)
    assert made.count((140, 8)) == 4  # shards of 560 rows
    made.clear()
    tolpack.hf.load(folder, pack)
    assert made
    assert (140, 8) not in made


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_inputs_embeds_give_what_the_stock_model_gives(saved, family):
    """Gemma 4 finds the ids of embeddings again, and Gemma 3n leaves the table out."""
    folder, pack = saved[family]
    reference, model = stock(folder), tolpack.hf.load(folder, pack)[0]
    embeds = reference.get_input_embeddings()(IDS).detach()
    expected = logits(reference, None, inputs_embeds=embeds)
    assert torch.equal(logits(model, None, inputs_embeds=embeds), expected)
    if family == "gemma4":
        assert torch.equal(expected, logits(reference, IDS))
        with pytest.raises(RuntimeError, match="do not exactly match the embedding weights"):
            logits(model, None, inputs_embeds=embeds + 1)


def test_qwen_takes_ids_beside_inputs_embeds(saved):
    """With ``ple_input_ids`` and without, the logits are the stock model's."""
    folder, pack = saved["qwen4_exp"]
    reference, model = stock(folder), tolpack.hf.load(folder, pack)[0]
    embeds = reference.get_input_embeddings()(IDS).detach()
    for more in ({"ple_input_ids": IDS}, {}):
        expected = logits(reference, None, inputs_embeds=embeds, **more)
        assert torch.equal(logits(model, None, inputs_embeds=embeds, **more), expected)


def test_a_mounted_model_compiles(saved):
    """`torch.compile` of the whole model gives its own logits, in one graph."""
    folder, pack = saved["gemma4"]
    model = tolpack.hf.load(folder, pack, dtype=torch.float32)[0]
    torch._dynamo.reset()
    fast = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(fast, IDS), logits(model, IDS))
    torch._dynamo.reset()


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(saved, gemma, device_map):
    """Maps of accelerate place the rest of the model."""
    folder, pack = saved["gemma3n"]
    model, _ = tolpack.hf.load(folder, pack, device_map=device_map)
    assert torch.equal(logits(model, IDS), logits(gemma[0], IDS))


def test_disk_offload(saved, gemma, tmp_path):
    """Layers that accelerate keeps on the disk work beside the pack."""
    folder, pack = saved["gemma3n"]
    where = {f"model.{name}": "cpu" for name, _ in gemma[0].model.named_children()}
    where |= {"lm_head": "cpu"} | {f"model.layers.{n}": "cpu" for n in range(3)}
    where["model.layers.1"] = "disk"
    del where["model.layers"]
    model, _ = tolpack.hf.load(
        folder, pack, device_map=where, offload_folder=str(tmp_path), io="pread"
    )
    assert torch.equal(logits(model, IDS), logits(gemma[0], IDS))
    assert embeddings(model)[0].pack.stats()["io"] == "pread"


def test_dtypes_follow_the_model(saved):
    """A mounted model that is cast gives the logits of the stock model that is cast."""
    folder, pack = saved["gemma4"]
    reference = stock(folder, dtype=torch.float32).to(torch.bfloat16)
    model = tolpack.hf.load(folder, pack, dtype=torch.float32)[0].to(torch.bfloat16)
    assert torch.equal(logits(model, IDS), logits(reference, IDS))
    for dtype in (torch.bfloat16, torch.float16):  # in which the factor was rounded
        reference = stock(folder, dtype=dtype).to(torch.float32)
        model = tolpack.hf.load(folder, pack, dtype=dtype)[0].to(torch.float32)
        assert torch.equal(logits(model, IDS), logits(reference, IDS))


def test_copies_of_a_mounted_model(gemma):
    """A deep copy shares the pack, and an unpickled model opens it again."""
    reference, model = gemma
    copied = copy.deepcopy(model)
    assert embeddings(copied)[0].pack is embeddings(model)[0].pack
    assert torch.equal(logits(copied, IDS), logits(reference, IDS))
    again = pickle.loads(pickle.dumps(model))
    assert embeddings(again)[0].pack is not embeddings(model)[0].pack
    assert torch.equal(logits(again, IDS), logits(reference, IDS))


def test_an_open_pack_is_used_as_it_is(saved, gemma):
    """Its settings stay, and other tables are opened beside it with the same ones."""
    folder, path = saved["qwen4_exp_two"]
    with tolpack.open(path, io="pread", table="layer.2", cache="1MB") as pack:
        model = tolpack.hf.mount(stock(folder), pack)
        first, second = (module.pack for module in embeddings(model))
        assert second is pack
        assert (first.table, first.stats()["io"]) == ("layer.0", "pread")
        assert torch.equal(logits(model, IDS), logits(stock(folder), IDS))
        first.close()


@pytest.mark.parametrize(
    ("family", "other", "message"),
    [
        ("gemma3n", "qwen4_exp", "the pack has 560 rows of 1 × 8 values, but .*48 of 3 × 12"),
        ("qwen4_exp", "gemma4", "the pack is of another model"),
        ("qwen4_exp_two", "qwen4_exp", "has tables ngram_embedding, but the model reads layer.0"),
        ("gemma3n", "qwen4_exp_two", "has tables layer.0, layer.2, but"),
    ],
)
def test_packs_of_other_models_are_refused(saved, family, other, message):
    """At `mount` and `load`, and the model stays as it was."""
    folder, pack = saved[family][0], saved[other][1]
    model = stock(folder)
    expected = logits(model, IDS)
    with pytest.raises(ConfigError, match=message):
        tolpack.hf.mount(model, pack)
    assert torch.equal(logits(model, IDS), expected)
    with pytest.raises(ConfigError, match=message):
        tolpack.hf.load(folder, pack)


def test_a_pack_of_another_model_of_the_same_shape_is_refused(saved, tmp_path):
    """`mount` compares rows while the model has them, and leaves the model as it was."""
    model = stock(saved["gemma3n"][0])
    expected = logits(model, IDS)
    with pytest.raises(ConfigError, match="embed_tokens_per_layer of the model have a correlation"):
        tolpack.hf.mount(model, saved["gemma4"][1])
    assert torch.equal(logits(model, IDS), expected)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_resizing_the_vocabulary_is_refused(saved, family):
    """Rows of new tokens would be missing; the model stays as it was."""
    folder, pack = saved[family]
    model = tolpack.hf.load(folder, pack)[0]
    with pytest.raises(ConfigError, match="has rows of 48 tokens, not of 60: resize the model"):
        model.resize_token_embeddings(60)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert torch.equal(logits(model, IDS), logits(stock(folder), IDS))


def test_tables_of_two_files_are_refused(saved, tmp_path, monkeypatch):
    """A pack that is replaced while its tables are opened, or before the second one is."""
    folder, path = saved["qwen4_exp_two"]
    own, other = tmp_path / "p.tolpack", tmp_path / "other.tolpack"
    shutil.copyfile(path, own)
    tolpack.build(folder, other, bits=8)
    model = stock(folder)
    with tolpack.open(own, table="layer.0") as pack:
        other.replace(own)
        with pytest.raises(FileAccessError, match="is no longer the pack that was opened"):
            tolpack.hf.mount(model, pack)
    opened = mounting._open

    def replaced(*arguments):
        found = opened(*arguments)
        shutil.copyfile(path, tmp_path / "new")
        (tmp_path / "new").replace(own)
        return found

    monkeypatch.setattr(mounting, "_open", replaced)
    with pytest.raises(FileAccessError, match="has become another pack while"):
        tolpack.hf.mount(model, own)


def test_a_pack_of_other_layers_is_refused(saved, tmp_path):
    """Heads of another n-gram hash are noticed though the shape is the same."""
    folder, pack = saved["qwen4_exp_two"]
    model = stock(folder)
    model.model.layers[0].ple.ple_embedding.head_vocab_sizes[0] += 1
    with pytest.raises(ConfigError, match="heads of the pack have"):
        tolpack.hf.mount(model, pack)


def test_models_without_a_table_are_refused(saved):
    """Another architecture, and a Gemma 4 without the table."""
    from transformers import AutoModelForCausalLM, Gemma4TextConfig, LlamaConfig

    pack = saved["gemma4"][1]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "vocab_size": 48}  # fmt: skip
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**small))
    with pytest.raises(ConfigError, match="of model_type 'llama' no table is known"):
        tolpack.hf.mount(llama, pack)
    config = Gemma4TextConfig(
        **small, hidden_size_per_layer_input=0, head_dim=8, global_head_dim=8,
        num_key_value_heads=1, layer_types=["full_attention"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has no table"):
        tolpack.hf.mount(AutoModelForCausalLM.from_config(config), pack)


def test_ids_beyond_the_table(saved, tmp_path):
    """Gemma 3n reads row 0 for them, such as those of images, and so does a mounted one."""
    model, folder = save_models(tmp_path, ALL_IDS | {"vocab_size": 60}, ATTENTION)["gemma3n"]
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    model.save_pretrained(folder, max_shard_size="6KB")
    tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless")
    ids = torch.tensor([[3, 59, 47, 48]])
    found = logits(tolpack.hf.load(folder, tmp_path / "p.tolpack")[0], ids)
    assert torch.equal(found, logits(stock(folder), ids))


def test_quantization_config_of_transformers(saved, gemma):
    """The usual way of transformers to name a method works too."""
    folder, pack = saved["gemma3n"]
    model = stock(folder, quantization_config=tolpack.hf.TolpackConfig(pack))
    assert torch.equal(logits(model, IDS), logits(gemma[0], IDS))
    assert model.config.quantization_config.to_dict() == {
        "quant_method": "tolpack", "pack": "gemma3n.tolpack"
    }  # fmt: skip


def test_packs_of_repositories_are_downloaded(saved, tmp_path, monkeypatch):
    """In the revision of the weights, unless the pack is there already."""
    from tolpack.hf import quantizer

    asked = []

    def cached_file(repository, name, revision):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(quantizer, "cached_file", cached_file)
    weights = tmp_path / "snapshots" / "0123abc" / "model.safetensors"
    found = quantizer._beside("someone/model", [str(weights)], "p.tolpack")
    assert found == tmp_path / "p.tolpack"
    assert asked == [("someone/model", "p.tolpack", "0123abc")]
    weights.parent.mkdir(parents=True)
    (weights.parent / "p.tolpack").touch()
    assert quantizer._beside("someone/model", [str(weights)], "p.tolpack").parent == weights.parent


def test_loading_needs_a_pack(saved, tmp_path):
    """One that is named, and there."""
    folder = saved["gemma3n"][0]
    with pytest.raises(ConfigError, match="names no pack: give pack='model.tolpack'"):
        tolpack.hf.load(folder)
    with pytest.raises(FileAccessError, match="none.tolpack"):
        tolpack.hf.load(folder, tmp_path / "none.tolpack")


def test_folders_of_other_quantizers_are_refused(saved, tmp_path):
    """A configuration names one method only."""
    import json

    folder, pack = saved["gemma3n"]
    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="quantized by 'fp8': load it as it is, and mount"):
        tolpack.hf.load(tmp_path / "m", pack)


def test_ids_without_a_row_are_refused(saved):
    """Where the stock model fails in torch, the id and the limit are named."""
    folder, pack = saved["gemma4"]
    model = tolpack.hf.load(folder, pack)[0]
    with pytest.raises(TokenIdError, match="token id 48 is out of range 0 … 47"):
        embeddings(model)[0](torch.tensor([[48]]))
