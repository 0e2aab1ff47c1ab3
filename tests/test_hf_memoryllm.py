"""MemoryLLM and Flex-MemoryLLM of `tolpack.hf`, against the reference decoder."""

import json
import subprocess
import sys

import models
import numpy as np
import pytest
import torch

import tolpack
from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

transformers = pytest.importorskip("transformers")
import tolpack.hf  # noqa: E402
from tolpack.hf.memoryllm import FlexMemoryLLMConfig, MemoryLLMConfig  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IDS = torch.tensor([[3, 14, 15, 92, 6, 5, 35, 89, 79], [9, 3, 3, 0, 96, 14, 15, 92, 6]])
KINDS = ("memoryllm", "flex_memoryllm")


def save(folder, model_type, bias=False, **changes):
    """Save a tiny random model as a folder of transformers; returns it."""
    config = models.make_config(model_type, **changes)
    state = models.prefixed(models.make_state(config, bias=bias))
    return models.save_folder(folder / model_type, state, config)


def load(folder, **options):
    """Load a folder through transformers; every tensor must have found its place."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(info.values())
    return model


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """A tiny model of each kind, for reading only."""
    return save(tmp_path_factory.mktemp("model"), request.param, num_key_value_heads=1)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """A pack of it at 8 bits with a dropped layer."""
    out = tmp_path_factory.mktemp("pack") / "p.tolpack"
    return tolpack.build(folder, out, drop="1", bits=8).path


@pytest.fixture
def memory(packed):
    """The pack's rows."""
    with tolpack.open(packed) as pack:
        yield ToLMemory(pack)


@pytest.fixture
def model(folder):
    """The model in transformers."""
    return load(folder)


@pytest.fixture(scope="module")
def decoder(folder):
    """The reference decoder of the same weights."""
    return Decoder(open_checkpoint(folder))


def assert_close(got, expected):
    """Compare logits as far as float32 sums in another order agree."""
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "hidden_act": "gelu"},
        {"norm": "layernorm"},
        {"norm": "layernorm", "bias": True},
        {"rope_interleaved": True, "num_key_value_heads": 1},
        {"flex_input": "residual", "num_key_value_heads": None},
    ],
    ids=str,
)
def test_logits_are_those_of_the_reference_decoder(model_type, changes, tmp_path):
    """Every setting that the reference decoder knows gives its logits, to float32's rounding."""
    path = save(tmp_path, model_type, **changes)
    with torch.no_grad():
        assert_close(load(path)(IDS).logits, Decoder(open_checkpoint(path))(IDS))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(folder, decoder, attention):
    """Each way of transformers to compute attention gives the same logits."""
    model = load(folder, attn_implementation=attention)
    with torch.no_grad():
        assert_close(model(IDS).logits, decoder(IDS))


def test_generates_what_the_reference_decoder_does(model, decoder):
    """Greedy text is the same, with and without the key–value cache."""
    prompt = IDS[:1, :4]
    expected = list(decoder.generate(prompt[0].tolist(), 10))
    for use_cache in (True, False):
        got = model.generate(prompt, max_new_tokens=10, do_sample=False, use_cache=use_cache)
        assert got[0, 4:].tolist() == expected


def test_a_cache_changes_nothing(model):
    """Logits token by token with a cache are those of all tokens at once."""
    with torch.no_grad():
        whole, cache, steps = model(IDS).logits, None, []
        for t in range(IDS.shape[1]):
            out = model(IDS[:, t : t + 1], cache=cache, use_cache=True)
            steps.append(out.logits)
            cache = out.cache
    assert_close(torch.cat(steps, dim=1), whole)


@pytest.mark.parametrize("mounted", [False, True])
def test_left_padding_changes_nothing(model, memory, mounted):
    """A prompt in a batch, padded on the left, continues as it does alone."""
    if mounted:
        model.set_memory(memory)
    short = IDS[:1, :4]
    batch = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], 1), IDS[1:]])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    together = model.generate(batch, attention_mask=mask, **settings)
    for n, prompt in enumerate((short, IDS[1:])):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert together[n, 9:].tolist() == alone[0, prompt.shape[1] :].tolist()


def test_mounted_pack_gives_the_reference_decoders_logits(model, decoder, memory):
    """A pack takes the place of the FFNs, which are freed; rows are fetched once for all layers."""
    weights = {name for name in model.state_dict() if ".memory_" in name}
    model.set_memory(memory)
    assert weights
    assert not any(".memory_" in name for name in model.state_dict())
    assert model.memory is memory
    with torch.no_grad():
        assert_close(model(IDS).logits, decoder.with_memory(memory)(IDS))
    fresh = torch.tensor([[1, 2, 4]])
    before = memory.pack.stats()["block_reads"]
    model(fresh)
    assert memory.pack.stats()["block_reads"] - before <= 3


def test_mounted_loaded_and_stripped_are_the_same(folder, packed, tmp_path):
    """A pack gives the same logits however it came in, without one of the FFNs' tensors left."""
    mounted = tolpack.hf.mount(load(folder), packed)
    removed = tolpack.hf.strip(folder, tmp_path / "stripped", packed).removed_tensors
    assert len(removed) == 3 * 4
    tolpack.hf.load(folder, packed)[0].save_pretrained(tmp_path / "saved")
    others = [
        tolpack.hf.load(folder, packed)[0],
        load(tmp_path / "stripped"),
        tolpack.hf.load(tmp_path / "saved")[0],
    ]
    with torch.no_grad():
        expected = mounted(IDS).logits
        for one in others:
            assert torch.equal(one(IDS).logits, expected)
            assert not any(".memory_" in name for name in one.state_dict())


@pytest.mark.parametrize("changes", [{"vocab_size": 96}, {"num_hidden_layers": 2}], ids=str)
def test_packs_of_other_models_are_refused(packed, tmp_path, changes):
    """A pack with other rows or layers is not mounted; the error has both shapes."""
    model = load(save(tmp_path, "memoryllm", **changes))
    with pytest.raises(ConfigError, match="97 rows of 3 × 24 values.*the pack is of another"):
        tolpack.hf.mount(model, packed)
    assert model.memory is None


def test_strip_takes_packs_whose_layers_make_up_for_one_another(folder, decoder, tmp_path):
    """Rows at auto bits may be far from the checkpoint's, but not those of another model."""
    rows = [decoder.memory(layer, torch.arange(97)) for layer in range(3)]
    own, noise = torch.stack(rows, 1), torch.randn(97, 3, 24, generator=torch.manual_seed(0))
    for name, table in (("own", own + 2 * own.std() * noise), ("other", noise)):
        np.save(tmp_path / f"{name}.npy", table.numpy())
        tolpack.build(tmp_path / f"{name}.npy", tmp_path / f"{name}.tolpack", bits=16)
    tolpack.hf.strip(folder, tmp_path / "out", tmp_path / "own.tolpack")
    with pytest.raises(ConfigError, match="correlation of .*of another model of the same shape"):
        tolpack.hf.strip(folder, tmp_path / "out2", tmp_path / "other.tolpack")


def test_memory_of_one_call(model, decoder, memory):
    """A memory given to a call serves that call alone, and `memory_rows` is the model's own."""
    own = model(IDS).logits
    with torch.no_grad():
        assert_close(model(IDS, memory=memory).logits, decoder.with_memory(memory)(IDS))
        assert_close(model(IDS, memory=model.model.memory_rows).logits, own)
        assert_close(model(IDS).logits, own)
        for layer in range(3):
            assert_close(model.model.memory_rows(layer, IDS), decoder.memory(layer, IDS))
    model.set_memory(memory)
    assert torch.equal(model.model.memory_rows(2, IDS), memory(2, IDS))


def test_embeddings_in_place_of_ids(model, memory):
    """FFNs read embeddings of whatever is given; rows of a pack need the token ids beside them."""
    embeds = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, model(IDS).logits)
        model.set_memory(memory)
        both = model(input_ids=IDS, inputs_embeds=embeds).logits
        assert torch.equal(both, model(IDS).logits)
    with pytest.raises(ConfigError, match="looked up by token id: give input_ids too"):
        model(inputs_embeds=embeds)
    with pytest.raises(ConfigError, match="input_ids is missing"):
        model()


def test_generates_from_embeddings(model):
    """`generate` goes on from embeddings as from the ids that they stand for."""
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    embeds = model.get_input_embeddings()(IDS[:1])
    expected = model.generate(IDS[:1], **settings)[0, IDS.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=embeds, **settings)[0], expected)


def test_generates_from_embeddings_beside_ids_with_a_pack(model, memory):
    """A mounted memory looks up the ids of the prompt, and of what is decoded."""
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    model.set_memory(memory)
    embeds = model.get_input_embeddings()(IDS)
    expected = model.generate(IDS, **settings)
    assert torch.equal(model.generate(IDS, inputs_embeds=embeds, **settings), expected)
    with pytest.raises(ConfigError, match="looked up by token id: give input_ids too"):
        model.generate(inputs_embeds=embeds, **settings)


def test_the_vocabulary_of_a_mounted_model_stays(model, memory):
    """Rows of new tokens would be missing."""
    model.set_memory(memory)
    for resized in (model, model.model):
        assert resized.resize_token_embeddings() is model.get_input_embeddings()
        with pytest.raises(ConfigError, match="has rows of 97 tokens, not of 110: resize the"):
            resized.resize_token_embeddings(110)


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head"])
def test_missing_weights_outside_the_layers_are_refused(tmp_path, name):
    """The model is not loaded with random ones."""
    config = models.make_config("memoryllm", tie_word_embeddings=False)
    state = models.prefixed(models.make_state(config))
    del state[f"{name}.weight"]
    folder = models.save_folder(tmp_path / "m", state, config)
    with pytest.raises(CheckpointError, match=f"lacks {name}.weight: copy all files"):
        load(folder)


def test_a_pack_of_another_memory_is_refused(folder, packed, tmp_path):
    """`mount` compares rows that the FFNs compute."""
    model = load(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.memory_mlp.down_proj.weight.copy_(-layer.memory_mlp.down_proj.weight.flip(0))
    with pytest.raises(ConfigError, match="of the model have a correlation of"):
        tolpack.hf.mount(model, packed)


def test_loss_and_gradients(model, decoder):
    """Labels give the mean loss of the next tokens, and every weight gets a gradient."""
    out = model(IDS, labels=IDS)
    nll = torch.nn.functional.cross_entropy(
        decoder(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    )
    torch.testing.assert_close(out.loss, nll)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradients_flow_past_a_pack(model, memory):
    """With a pack, all that is left gets gradients, also when activations are computed again."""
    model.set_memory(memory)
    model(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.train()
    model.activation_checkpointing_enable()
    model(IDS, labels=IDS).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_last_logits_only(model):
    """`logits_to_keep` computes the last logits alone."""
    with torch.no_grad():
        assert_close(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])


def test_hidden_states_and_attentions(folder):
    """The stream before, between and after the layers, and each layer's attention, can be seen."""
    model = load(folder, attn_implementation="eager")
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 4
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(IDS))
    assert [tuple(one.shape) for one in out.attentions] == [(2, 2, 9, 9)] * 3


def test_saved_and_loaded(model, decoder, tmp_path):
    """What `save_pretrained` writes loads again in transformers, and in tolpack."""
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(IDS).logits, model(IDS).logits)
        assert_close(Decoder(open_checkpoint(tmp_path))(IDS), decoder(IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(folder, decoder, memory, dtype):
    """In 16 bits logits are near those in float32, with FFNs and with a float32 pack."""
    model = load(folder, dtype=dtype)
    expected = decoder(IDS)
    near = {"rtol": 0, "atol": 0.02 * expected.abs().max().item()}
    with torch.no_grad():
        got = model(IDS).logits
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, **near)
        model.set_memory(memory)
        expected = decoder.with_memory(memory)(IDS)
        torch.testing.assert_close(model(IDS).logits.float(), expected, **near)


def test_compiled_without_a_graph_break(tmp_path):
    """The whole forward pass with a pack is one graph, which gives the same logits."""
    path = save(tmp_path, "flex_memoryllm", num_hidden_layers=2)
    packed = tolpack.build(path, tmp_path / "p.tolpack", bits=8).path
    model = load(path)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with tolpack.open(packed) as pack, torch.no_grad():
        model.set_memory(ToLMemory(pack))
        for ids in (IDS, IDS.flip(1)):
            expected = model(ids, use_cache=False).logits
            assert_close(compiled(ids, use_cache=False).logits, expected)
    torch._dynamo.reset()


def test_base_models_load(folder):
    """`AutoModel` gives the model without its head."""
    base = transformers.AutoModel.from_pretrained(folder)
    assert type(base).__name__ in ("MemoryLLMModel", "FlexMemoryLLMModel")
    with torch.no_grad():
        hidden = base(IDS).last_hidden_state
    assert hidden.shape == (2, 9, 24)


def test_other_layers_are_refused(tmp_path):
    """Weights that would be random, or left out, are an error and not a warning."""
    config = models.make_config("flex_memoryllm")
    state = models.prefixed(models.make_state(config, linear_mlp=True))
    linear = models.save_folder(tmp_path / "linear", state, config)
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.* missing, .*mlp.weight and 2 more"):
        load(linear)
    config = models.make_config()
    state = models.prefixed(models.make_state(config))
    kept = {name: tensor for name, tensor in state.items() if ".memory_" not in name}
    without = models.save_folder(tmp_path / "without", kept, config)
    with pytest.raises(CheckpointError, match=r"memory_layernorm.*in a pack, load it by"):
        load(without)


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "memory_intermediate_size", "norm", "rms_norm_eps", "rope_theta", "hidden_act",
        "max_position_embeddings", "tie_word_embeddings", "intermediate_size", "flex_input",
    ],
)  # fmt: skip
def test_missing_fields_are_refused(field):
    """No field that logits depend on is guessed: the error names it."""
    config = models.make_config("flex_memoryllm", **{field: None})
    with pytest.raises(ConfigError, match=f"'{field}' is missing"):
        FlexMemoryLLMConfig(**config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("norm", "batchnorm", "expected one of rmsnorm, layernorm"),
        ("hidden_act", "relu", "expected one of silu, gelu"),
        ("num_attention_heads", 5, "do not fit"),
        ("attention_bias", True, "the layers have no biases"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}, "do not know"),
        ("partial_rotary_factor", 0.5, "do not know"),
        ("sliding_window", 4, "do not know"),
        ("head_dim", 6, "do not know"),
        ("rope_parameters", {"rope_theta": 7.0}, "remove one of them"),
    ],
)
def test_settings_that_would_be_computed_wrong_are_refused(field, value, message):
    """What the layers do not compute is refused by name."""
    with pytest.raises(ConfigError, match=message) as error:
        MemoryLLMConfig(**models.make_config(**{field: value}))
    assert field in str(error.value)


def test_config_survives_saving(tmp_path):
    """A configuration is the same after it was saved, and tolpack reads the file."""
    config = FlexMemoryLLMConfig(**models.make_config("flex_memoryllm", eos_token_id=3))
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["flex_input"] == "post_attention"


def test_tolpack_alone_loads_neither_torch_nor_transformers():
    """Readers of packs do not pay for the models."""
    code = "import sys, tolpack; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
