"""The reference decoder against naive loops, its cache against full forwards, and its refusals."""

import models
import numpy as np
import pytest
import torch

from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.decoder import Decoder, FFNMemory
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions

IDS = [5, 90, 17, 17, 0, 96, 3, 44, 2]


def make(folder, model_type="memoryllm", bias=False, linear_mlp=False, **changes):
    """Return the package's decoder and the naive one of the same random weights."""
    config = models.make_config(model_type, **changes)
    state = models.make_state(config, bias=bias, linear_mlp=linear_mlp)
    path = models.save_pt(folder / "m.pt", state, config)
    return Decoder(open_checkpoint(path)), models.Naive(state, config)


@pytest.fixture
def decoder(memoryllm):
    """The decoder of the tiny MemoryLLM."""
    return Decoder(open_checkpoint(memoryllm))


ARCHITECTURES = [
    ("memoryllm", {}),
    ("llama", {}),
    ("flex_memoryllm", {"flex_input": "post_attention"}),
    ("flex_memoryllm", {"flex_input": "residual"}),
    ("flex_memoryllm", {"flex_input": "post_attention", "linear_mlp": True}),
    ("flex_memoryllm", {"flex_input": "residual", "linear_mlp": True}),
]
VARIANTS = [
    {},
    {"rope_interleaved": True},
    {"norm": "layernorm", "bias": True, "hidden_act": "gelu"},
    {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": False},
    {"num_attention_heads": 4, "num_key_value_heads": 1, "rope_interleaved": True},
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("model_type", "kind"), ARCHITECTURES)
def test_logits_equal_naive_loops(tmp_path, model_type, kind, variant):
    """Logits equal a float64 implementation in loops, for every architecture and variant."""
    decoder, naive = make(tmp_path, model_type, **kind, **variant)
    found = decoder(torch.tensor([IDS, IDS[::-1]]))
    assert found.dtype == torch.float32
    for row, ids in zip(found, (IDS, IDS[::-1])):
        np.testing.assert_allclose(row.numpy(), naive.logits(ids), atol=1e-4)


def test_flex_inputs_differ(tmp_path):
    """What FFN-C reads changes the logits, so that the two settings are really two."""
    logits = []
    for flex_input in ("post_attention", "residual"):
        decoder, _ = make(tmp_path, "flex_memoryllm", flex_input=flex_input)
        logits.append(decoder(torch.tensor([IDS])))
    assert not torch.allclose(*logits, atol=1e-2)


def test_absent_key_value_heads_mean_all(tmp_path):
    """A config without num_key_value_heads has as many as attention heads."""
    decoder, naive = make(tmp_path, num_key_value_heads=None)
    found = decoder(torch.tensor([IDS]))[0]
    np.testing.assert_allclose(found.numpy(), naive.logits(IDS), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(tmp_path, dtype):
    """Weights stored in 16 bits are widened exactly; nothing is computed in 16 bits."""
    config = models.make_config()
    state = models.make_state(config, dtype)
    decoder = Decoder(open_checkpoint(models.save_pt(tmp_path / "m.pt", state, config)))
    expected = models.Naive(state, config).logits(IDS)
    np.testing.assert_allclose(decoder(torch.tensor([IDS]))[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("model_type", "kind"), ARCHITECTURES[:4])
@pytest.mark.parametrize("steps", [[1] * 9, [4, 1, 1, 3], [9]])
def test_cache_gives_what_a_full_forward_gives(tmp_path, model_type, kind, steps):
    """Feeding a sequence piece by piece through the cache gives the logits of the whole."""
    decoder, _ = make(tmp_path, model_type, **kind, num_attention_heads=4, num_key_value_heads=2)
    ids = torch.tensor([IDS, IDS[::-1]])
    cache, pieces = decoder.new_cache(), []
    for piece in torch.split(ids, steps, dim=1):
        pieces.append(decoder(piece, cache))
    torch.testing.assert_close(torch.cat(pieces, 1), decoder(ids), atol=1e-5, rtol=1e-4)


def test_logits_do_not_see_the_future(decoder):
    """Changing a later token leaves the logits of earlier positions as they are."""
    other = [*IDS[:5], 60, 61, 62, 63]
    first, second = decoder(torch.tensor([IDS, other]))
    assert torch.equal(first[:5], second[:5])
    assert not torch.equal(first[5:], second[5:])


def test_memory_is_a_function_of_the_token_alone(decoder):
    """The memory gives one row per token, whatever the shape and the neighbours."""
    ids = torch.tensor([[3, 7, 3], [7, 7, 96]])
    found = decoder.memory(1, ids)
    assert found.shape == (2, 3, 24)
    assert torch.equal(found[0, 0], found[0, 2])
    torch.testing.assert_close(found[1, 2], decoder.memory(1, torch.tensor(96)))


def test_memory_can_be_replaced(tmp_path):
    """with_memory looks rows up elsewhere and leaves the first decoder as it was."""
    decoder, naive = make(tmp_path)
    table = np.random.default_rng(0).standard_normal((97, 3, 24))
    rows = torch.from_numpy(table).float()
    other = decoder.with_memory(lambda layer, ids: rows[ids, layer])
    found = other(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, naive.logits(IDS, table), atol=1e-4)
    assert isinstance(decoder.memory, FFNMemory)


def test_dense_model_has_no_memory_to_replace(tmp_path):
    """Replacing the memory of a dense model is refused."""
    decoder, _ = make(tmp_path, "llama")
    assert decoder.memory is None
    with pytest.raises(ConfigError, match="'llama' has no memory"):
        decoder.with_memory(lambda layer, ids: ids)


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm", "llama"])
def test_greedy_text_is_the_argmax_of_full_forwards(tmp_path, model_type):
    """Greedy text is the argmax of a full forward at every step."""
    decoder, _ = make(tmp_path, model_type)
    ids = [5, 90]
    for _ in range(12):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    assert list(decoder.generate([5, 90], 12)) == ids[2:]


def test_sampled_text_depends_on_the_seed_only(decoder):
    """Sampling gives the same text for the same seed and another for another seed."""
    first, again, other = (
        list(decoder.generate([5], 30, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert all(0 <= token < 97 for token in first)


def test_sampling_does_not_touch_the_global_seed(decoder):
    """Sampling uses a generator of its own, so that other random numbers stay as they were."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(decoder.generate([5], 3, temperature=1.0))
    assert torch.equal(torch.rand(4), expected)


def test_empty_prompt_is_refused(decoder):
    """Generating from nothing is refused with the remedy."""
    with pytest.raises(ConfigError, match="prompt is empty: give at least one token id"):
        list(decoder.generate([], 3))


@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("memoryllm", "num_attention_heads"),
        ("memoryllm", "tie_word_embeddings"),
        ("memoryllm", "rope_theta"),
        ("memoryllm", "norm"),
        ("llama", "intermediate_size"),
        ("flex_memoryllm", "intermediate_size"),
        ("flex_memoryllm", "flex_input"),
        ("flex_memoryllm", "hidden_act"),
    ],
)
def test_missing_field_is_never_guessed(tmp_path, model_type, field):
    """A config field that running the model needs is asked for by name, never guessed."""
    path = models.save_pt(
        tmp_path / "m.pt",
        models.make_state(models.make_config(model_type)),
        models.make_config(model_type, **{field: None}),
    )
    with pytest.raises(CheckpointError, match=f"'{field}' is missing and needed for"):
        Decoder(open_checkpoint(path))(torch.tensor([IDS]))


@pytest.mark.parametrize(
    "heads", [{"num_attention_heads": 5}, {"num_attention_heads": 8},
              {"num_attention_heads": 4, "num_key_value_heads": 3}],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused(memoryllm, tmp_path, heads):
    """Head counts that do not divide the width, or each other, are refused with the numbers."""
    config = models.save_config(tmp_path / "c.json", models.make_config(**heads))
    with pytest.raises(CheckpointError, match="num_attention_heads .*do not fit"):
        Decoder(open_checkpoint(memoryllm, CheckpointOptions(config)))


def test_missing_head_of_an_untied_model_is_named(memoryllm, tmp_path):
    """A model that says its head is not tied, but has none, gives an error with its name."""
    given = models.save_config(tmp_path / "c.json", models.make_config(tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match="'lm_head.weight' is missing"):
        Decoder(open_checkpoint(memoryllm, CheckpointOptions(given)))


def test_attention_bias_that_would_be_left_out_is_refused(tmp_path):
    """A bias of a projection that the decoder does not use is refused: logits would be wrong."""
    config = models.make_config()
    state = models.make_state(config) | {"layers.0.self_attn.q_proj.bias": torch.ones(24)}
    path = models.save_pt(tmp_path / "m.pt", state, config)
    with pytest.raises(CheckpointError, match="q_proj.bias"):
        Decoder(open_checkpoint(path))
