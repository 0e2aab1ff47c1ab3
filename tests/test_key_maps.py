"""Checkpoints under other trainers' names give the same rows and perplexity, or a clear error."""

import families
import models
import numpy as np
import pytest
import torch

from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation.evaluator import evaluate
from tolpack.model.decoder import Decoder
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.description import summarize_checkpoint
from tolpack.sources.checkpoint.key_map import BUILT_IN, built_in, match, read_key_map
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.schema import PATTERNS, expected_shape
from tolpack.sources.open_source import open_source

PLAIN = models.make_config(num_attention_heads=4, num_key_value_heads=2, rope_interleaved=None)
FLEX = {**PLAIN, "model_type": "flex_memoryllm"}
CASES = [
    (family, config, in_place)
    for family in families.FAMILIES
    for config, in_place in ((PLAIN, False), (PLAIN, True), (FLEX, False))
]


def save(folder, family, config, in_place=False, **options):
    """Save a tiny model under the names of `family`; returns its path and the schema's state."""
    state = models.make_state(config, **options)
    folder.mkdir(exist_ok=True)
    path = folder / f"{family.replace(' ', '-')}.pt"
    return models.save_pt(path, families.FAMILIES[family](state, config, in_place), config), state


def table_of(path, options=None):
    """Return the whole table of a tiny model."""
    source = open_source(path, options)
    ids = np.arange(source.vocab_size)
    return np.stack([source.field_rows(layer)(ids) for layer in range(source.num_layers)], 1)


@pytest.mark.parametrize(("family", "config", "in_place"), CASES)
def test_other_names_give_the_same_rows_and_perplexity(tmp_path, family, config, in_place):
    """The same weights under a family's names give the rows and the perplexity of ours."""
    path, state = save(tmp_path, family, config, in_place)
    ours = models.save_pt(tmp_path / "ours.pt", state, {**config, "rope_interleaved": False})
    assert np.array_equal(table_of(path), table_of(ours))
    ids = tmp_path / "ids.npy"
    np.save(ids, models.zipf_ids(200, 97))
    theirs = evaluate(path, [], ids).baseline
    expected = evaluate(ours, [], ids).baseline
    assert theirs.ppl == pytest.approx(expected.ppl, rel=1e-5)
    assert open_checkpoint(path).key_map.name == family.split()[0]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_untied_layernorm_models_with_linear_maps_are_mapped_too(tmp_path, family):
    """Norm biases and the untied head come under a family's names as well."""
    config = {**FLEX, "norm": "layernorm", "tie_word_embeddings": False}
    path, state = save(tmp_path, family, config, bias=True)
    ours = models.save_pt(tmp_path / "ours.pt", state, {**config, "rope_interleaved": False})
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    theirs, expected = (Decoder(open_checkpoint(p))(ids) for p in (path, ours))
    assert torch.allclose(theirs, expected, atol=1e-4)


def test_wrong_rotary_convention_changes_the_logits(tmp_path):
    """The convention matters in these tests: overriding it changes what the decoder computes."""
    path, _ = save(tmp_path, "meta", PLAIN)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    given = models.save_config(tmp_path / "c.json", {**PLAIN, "rope_interleaved": False})
    right = Decoder(open_checkpoint(path))(ids)
    wrong = Decoder(open_checkpoint(path, CheckpointOptions(config=given)))(ids)
    assert not torch.allclose(right, wrong, atol=1e-2)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_dense_model_under_the_same_names_is_refused(tmp_path, family):
    """A dense model has the names of a plain MemoryLLM: it is refused unless --arch says so."""
    path, _ = save(tmp_path, family, {**PLAIN, "model_type": "llama"})
    with pytest.raises(CheckpointError, match="dense model.*--arch memoryllm"):
        open_source(path)
    config = {**PLAIN, "model_type": "llama", "memory_intermediate_size": 28}
    path, _ = save(tmp_path / "again", family, config)
    assert open_source(path, CheckpointOptions(arch="memoryllm")).num_layers == 3


def test_packs_do_not_depend_on_names(tmp_path):
    """The same weights under two families' names give byte-identical packs."""
    from tolpack.compress.build import build

    packs = [
        build(save(tmp_path, family, PLAIN)[0], tmp_path / f"{number}.tolpack").path.read_bytes()
        for number, family in enumerate(("hf-llama", "openlm", "meta"))
    ]
    assert packs[0] == packs[1] == packs[2]


def test_every_map_reaches_the_whole_schema():
    """Each built-in map has a rule for every tensor of the schema."""
    for name in BUILT_IN:
        reached = {target for rule in built_in(name).rules for target in rule.targets}
        assert reached == set(PATTERNS)


# -- wrappers and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_wrapper_prefixes_are_taken_off(tmp_path, family, prefix):
    """Prefixes that DDP, FSDP and torch.compile leave are not part of a name."""
    state = models.make_state(PLAIN)
    named = families.FAMILIES[family](state, PLAIN)
    path = models.save_pt(tmp_path / "m.pt", {prefix + n: t for n, t in named.items()}, PLAIN)
    plain = models.save_pt(tmp_path / "p.pt", state, PLAIN)
    assert np.array_equal(table_of(path), table_of(plain))


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module"])
def test_state_dict_is_found_where_trainers_put_it(tmp_path, key):
    """The state dict may stand under the keys that trainers use, beside other things."""
    path = tmp_path / "m.pt"
    state = models.make_state(PLAIN)
    torch.save({"step": 3, key: state, "config": PLAIN, "optimizer": {"lr": 0.1}}, path)
    assert open_source(path).num_layers == 3


# -- a user's own map ------------------------------------------------------------------------------

OWN = """
rope_interleaved = false
ignore = ["router.*"]

[tensors]
"wte" = "embed_tokens.weight"
"blocks.{N}.attn_g" = "layers.{N}.input_layernorm.weight"
"blocks.{N}.qkv" = [
  "layers.{N}.self_attn.q_proj.weight",
  "layers.{N}.self_attn.k_proj.weight",
  "layers.{N}.self_attn.v_proj.weight",
]
"blocks.{N}.o" = { to = "layers.{N}.self_attn.o_proj.weight", transpose = true }
"blocks.{N}.mem.g" = "layers.{N}.memory_layernorm.weight"
"blocks.{N}.mem.in" = { to = [
  "layers.{N}.memory_mlp.up_proj.weight",
  "layers.{N}.memory_mlp.gate_proj.weight",
], transpose = true }
"blocks.{N}.mem.out" = { to = "layers.{N}.memory_mlp.down_proj.weight", transpose = true }
"g" = "norm.weight"
"""


def own_state(state, config):
    """Spell a state as `OWN` expects it: one-letter names, some matrices transposed."""
    named = {
        "wte": state["embed_tokens.weight"],
        "g": state["norm.weight"],
        "router.w": torch.ones(3),
    }
    for n in range(config["num_hidden_layers"]):
        base = f"layers.{n}"
        q, k, v = (state[f"{base}.self_attn.{part}_proj.weight"] for part in "qkv")
        up, gate = (state[f"{base}.memory_mlp.{part}_proj.weight"] for part in ("up", "gate"))
        named |= {
            f"blocks.{n}.attn_g": state[f"{base}.input_layernorm.weight"],
            f"blocks.{n}.qkv": torch.cat([q, k, v]),
            f"blocks.{n}.o": state[f"{base}.self_attn.o_proj.weight"].T.contiguous(),
            f"blocks.{n}.mem.g": state[f"{base}.memory_layernorm.weight"],
            f"blocks.{n}.mem.in": torch.cat([up, gate]).T.contiguous(),
            f"blocks.{n}.mem.out": state[f"{base}.memory_mlp.down_proj.weight"].T.contiguous(),
        }
    return named


@pytest.fixture
def own(tmp_path):
    """A tiny model under names of its own, its map, and the same model under ours."""
    state = models.make_state(PLAIN)
    path = models.save_pt(tmp_path / "own.pt", own_state(state, PLAIN), PLAIN)
    key_map = tmp_path / "map.toml"
    key_map.write_text(OWN, encoding="utf-8")
    return path, key_map, models.save_pt(tmp_path / "ours.pt", state, PLAIN)


def test_own_map_gives_the_same_rows_and_logits(own):
    """A user's map with fused and transposed tensors gives the rows and logits of ours."""
    path, key_map, ours = own
    options = CheckpointOptions(key_map=key_map)
    assert np.array_equal(table_of(path, options), table_of(ours))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    theirs = Decoder(open_checkpoint(path, options))(ids)
    assert torch.allclose(theirs, Decoder(open_checkpoint(ours))(ids), atol=1e-5)


def test_summary_names_parts_and_what_is_left_over(own, tmp_path):
    """`inspect` tells which tensors were recognised, which rows they are, and what is left."""
    path, key_map, _ = own
    summary = summarize_checkpoint(open_checkpoint(path, CheckpointOptions(key_map=key_map)))
    found = {group.name: group for group in summary.tensors}
    gate = found["layers.{N}.memory_mlp.gate_proj.weight"]
    assert (gate.stored, gate.rows, gate.shape, gate.count) == (
        "blocks.{N}.mem.in", "2 of 2", (20, 24), 3,
    )  # fmt: skip
    assert (summary.left_over, summary.build, summary.eval) == ((), None, None)
    assert summary.files == (path.name,)
    key_map.write_text(OWN.replace('ignore = ["router.*"]', ""), encoding="utf-8")
    summary = summarize_checkpoint(open_checkpoint(path, CheckpointOptions(key_map=key_map)))
    assert summary.left_over == ("router.w",)
    assert summary.build is None
    assert "'router.w' would not be used by a memoryllm" in str(summary.eval)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"g" = "norm', '"h" = "norm', "pattern 'h' of key map map.toml matches no tensor"),
        ("blocks.{N}.mem.out", "blocks.{N}.mem.down", "matches no tensor; nearest names: blocks.0"),
        ('"layers.{N}.memory_layernorm.weight"', '"layers.{N}.memory_norm.weight"',
         "not a name of the schema; nearest names: layers.{N}.memory_layernorm.weight"),
        ('"g" = "norm.weight"', '"g" = "layers.{N}.memory_layernorm.weight"', "on both sides"),
        ('"g" = "norm.weight"', '"g" = 3', "'g' is 3, expected a schema name"),
        ('"g" = "norm.weight"', '"g" = []', "expected a schema name"),
        ('"g" = "norm.weight"', '"g" = { to = "norm.weight", turn = true }', "expected a schema"),
        ('"g" = "norm.weight"', '"g" = { to = "norm.weight", transpose = 1 }', "expected a schema"),
        ('"g" = "norm.weight"', '"g" = "norm.weight', "not valid TOML"),
        ("rope_interleaved = false", "rope_interleaved = 0", "expected true or false"),
        ("rope_interleaved", "rope", "unknown entry 'rope'"),
        ('ignore = ["router.*"]', 'ignore = "router.*"', "expected a list of patterns"),
        ("[tensors]", "[names]", "unknown entry 'names'"),
        ('["router.*"]', '["routers.*"]', "pattern 'routers.*' of key map map.toml matches no"),
        ('"blocks.{N}.attn_g" = "layers.{N}.input_layernorm.weight"',
         '"blocks.{N}.*_g" = "layers.{N}.input_layernorm.weight"\\n"blocks.{N}.mem.*" = '
         '"layers.{N}.input_layernorm.weight"', "both are 'layers.0.input_layernorm.weight'"),
    ],
)  # fmt: skip
def test_wrong_maps_are_refused_with_what_is_wrong(own, before, after, message):
    """A rule that matches nothing, twice or what is not there gives an error that names it."""
    path, key_map, _ = own
    assert before in OWN
    key_map.write_text(OWN.replace(before, after.replace("\\n", "\n")), encoding="utf-8")
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_source(path, CheckpointOptions(key_map=key_map))
    assert message in str(caught.value)


def test_absent_map_and_two_choices_are_refused(own, tmp_path):
    """A map that is not there, an unknown name, and both options at once are wrong settings."""
    path, key_map, _ = own
    for options, message in (
        (CheckpointOptions(key_map=tmp_path / "absent.toml"), "cannot read --key-map"),
        (CheckpointOptions(map_name="bogus"), "expected one of hf-llama, meta"),
        (CheckpointOptions(map_name="meta", key_map=key_map), "give one of them"),
        (CheckpointOptions(arch="bogus"), "one of memoryllm, flex_memoryllm, llama"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(path, options)


# -- ways to get it wrong --------------------------------------------------------------------------


def test_unknown_names_ask_for_a_map(tmp_path):
    """Names that no map knows give an error with examples and how to write a map."""
    state = {f"x.{n}": t for n, t in enumerate(models.make_state(PLAIN).values())}
    path = models.save_pt(tmp_path / "m.pt", state, PLAIN)
    with pytest.raises(CheckpointError, match=r"no built-in key map .*x\.0.*--key-map"):
        open_source(path)


def test_wrong_map_says_so(tmp_path):
    """A built-in map that fits nothing is refused."""
    path, _ = save(tmp_path, "meta", PLAIN)
    with pytest.raises(CheckpointError, match="key map lit-gpt matches none of the .* tensors"):
        open_source(path, CheckpointOptions(map_name="lit-gpt"))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_missing_tensor_is_sought_under_its_family_name(tmp_path, family):
    """A missing memory weight is named as the family calls it, with the nearest names."""
    named = families.FAMILIES[family](models.make_state(PLAIN), PLAIN)
    lost = next(n for n, t in named.items() if ".1." in n and t.shape == (24, 20))
    del named[lost]
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert "'layers.1.memory_mlp.down_proj.weight' is missing" in str(caught.value)
    assert lost.removeprefix("model.") in str(caught.value)
    assert "; nearest names: " in str(caught.value)


def test_fused_tensor_of_another_size_names_its_parts(tmp_path):
    """A fused tensor that does not hold what the config asks for says what it should hold."""
    named = families.openlm(models.make_state(PLAIN), PLAIN)
    name = "layers.2.memory_feed_forward.w12.weight"
    named[name] = named[name][:-2]
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    with pytest.raises(
        CheckpointError, match=r"w12.weight' has shape \[38, 24\], .*\[40, 24\] for "
    ):
        open_source(path)


@pytest.mark.parametrize(
    "extra", ["layers.0.memory_feed_forward.w12.lora_a", "layers.1.memory_scale"]
)
def test_unknown_tensor_of_the_memory_is_refused(tmp_path, extra):
    """What belongs to the memory but is in no map is never left out silently."""
    named = families.openlm(models.make_state(PLAIN), PLAIN) | {extra: torch.ones(2, 24)}
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    with pytest.raises(CheckpointError, match=f"'{extra}' seems to be part of the memory"):
        open_source(path)


def test_bias_of_a_fused_projection_is_refused(tmp_path):
    """A bias that no rule covers does not vanish."""
    named = families.openlm(models.make_state(PLAIN), PLAIN)
    named["layers.0.memory_feed_forward.w12.bias"] = torch.ones(40)
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    with pytest.raises(CheckpointError, match="w12.bias' seems to be part of the memory"):
        open_source(path)


@pytest.mark.parametrize("extra", ["layers.0.attention.q_norm.weight", "post_embed_norm.weight"])
def test_unknown_tensor_stops_eval_but_not_build(tmp_path, extra):
    """A tensor outside the memory that is not understood stops the decoder, not the tables."""
    named = families.openlm(models.make_state(PLAIN), PLAIN) | {extra: torch.ones(24)}
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    source = open_source(path)
    assert f"not used: {extra}" in source.describe()
    with pytest.raises(CheckpointError, match=f"'{extra}' would not be used by a memoryllm"):
        Decoder(source.checkpoint)


def test_buffers_are_left_out_silently(tmp_path):
    """Rotary tables that trainers save follow from the config and are not part of the weights."""
    named = families.hf_llama(models.make_state(PLAIN), PLAIN)
    named |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
        "rope.freqs": torch.ones(3),
    }
    path = models.save_pt(tmp_path / "m.pt", named, PLAIN)
    assert open_checkpoint(path).unknown == ()
    Decoder(open_checkpoint(path))


def test_flex_that_is_called_plain_is_refused_by_eval(tmp_path):
    """FFN-C in a model that is said to be plain would be left out: eval refuses it."""
    path, _ = save(tmp_path, "meta", FLEX)
    with pytest.raises(CheckpointError, match="feed_forward.* would not be used by a memoryllm"):
        Decoder(open_checkpoint(path, CheckpointOptions(arch="memoryllm")))


def test_head_that_differs_from_a_tied_embedding_is_refused(tmp_path):
    """tie_word_embeddings with a head of its own is a contradiction; an equal copy is not."""
    state = models.make_state(PLAIN)
    state["lm_head.weight"] = state["embed_tokens.weight"].clone()
    Decoder(open_checkpoint(models.save_pt(tmp_path / "m.pt", state, PLAIN)))
    state["lm_head.weight"][0, 0] += 1
    path = models.save_pt(tmp_path / "n.pt", state, PLAIN)
    with pytest.raises(CheckpointError, match=r"lm_head.weight' differs.*set it to false"):
        Decoder(open_checkpoint(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope_scaling", {"type": "linear"}), ("head_dim", 16), ("partial_rotary_factor", 0.5)],
)
def test_settings_that_the_decoder_does_not_know_stop_eval(tmp_path, field, value):
    """Config settings that change the decoder in unknown ways are refused, not ignored."""
    path = models.save_pt(tmp_path / "m.pt", models.make_state(PLAIN), {**PLAIN, field: value})
    assert open_source(path).num_layers == 3
    with pytest.raises(CheckpointError, match=f"config sets {field} .*would be wrong"):
        Decoder(open_checkpoint(path))


def test_rotary_convention_is_asked_for_where_names_imply_none(own, tmp_path):
    """A map of one's own that does not say how positions rotate leaves it to the config."""
    path, key_map, _ = own
    key_map.write_text(OWN.replace("rope_interleaved = false\n", ""), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'rope_interleaved' is missing"):
        Decoder(open_checkpoint(path, CheckpointOptions(key_map=key_map)))


def test_matching_alike_asks_which_map():
    """Names that two maps know alike are not decided by chance."""
    with pytest.raises(CheckpointError, match="fit the key maps .* alike: say which with --map"):
        match(["norm.weight"], None)


def test_key_map_of_a_built_in_is_a_valid_own_map(tmp_path):
    """The built-in maps are files that a user can copy and edit."""
    from importlib import resources

    for name in BUILT_IN:
        file = resources.files("tolpack.sources.checkpoint") / "maps" / f"{name}.toml"
        text = file.read_text("utf-8")
        copy = tmp_path / f"{name}.toml"
        copy.write_text(text, encoding="utf-8")
        assert read_key_map(copy).rules == built_in(name).rules


def test_schema_shapes_are_those_of_a_generated_model():
    """`expected_shape` agrees with a model that was generated without it."""
    from tolpack.sources.checkpoint.config import parse_config

    for config in (PLAIN, FLEX):
        parsed = parse_config(config)
        for name, tensor in models.make_state(config).items():
            assert expected_shape(parsed, name) == tuple(tensor.shape)


# -- what outsiders met ---------------------------------------------------------------------------


def test_parameters_that_require_gradients_build(tmp_path):
    """A dict of parameters, as ``dict(model.named_parameters())`` gives it, is read as values."""
    from tolpack.compress.build import build

    state = {n: torch.nn.Parameter(t) for n, t in models.make_state(PLAIN).items()}
    path = models.save_pt(tmp_path / "m.pt", state, PLAIN)
    plain = models.save_pt(tmp_path / "p.pt", models.make_state(PLAIN), PLAIN)
    first, second = (build(p, tmp_path / f"{p.stem}.tolpack", rank="auto") for p in (path, plain))
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize("kind", ["sparse_coo", "without values"])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.memory_mlp.up_proj.weight"])
def test_tensors_without_plain_values_are_named(tmp_path, kind, name):
    """A sparse or storage-less tensor is refused by name, by `inspect` already."""
    state = models.make_state(PLAIN)
    state[name] = state[name].to_sparse() if "sparse" in kind else state[name].to("meta")
    path = models.save_pt(tmp_path / "m.pt", state, PLAIN)
    reason = str(summarize_checkpoint(open_checkpoint(path)).build)
    assert f"'{name}' is " in reason
    assert kind in reason
    with pytest.raises(CheckpointError, match="expected dense float32"):
        open_source(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"layers.{N}.memory_layernorm.weight"', '"layers.{N}.memory_layernorm"', "nearest names"),
        ('"blocks.{N}.mem.in" = { to', '"blocks.{N}.mem.in" = { grouped = true, to', "head groups"),
        ('"blocks.{N}.o" = { to', '"blocks.{N}.o" = { grouped = true, to', "in this order"),
    ],
)
def test_half_names_and_groups_outside_attention_are_refused(own, before, after, message):
    """A target without ``.weight``, and groups where there are no heads, are wrong maps."""
    path, key_map, _ = own
    assert before in OWN
    key_map.write_text(OWN.replace(before, after), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        open_source(path, CheckpointOptions(key_map=key_map))


@pytest.mark.parametrize("field", ["norm", "rms_norm_eps", "hidden_act"])
def test_inspect_is_not_ready_without_what_build_asks_for(tmp_path, field):
    """`inspect` calls a checkpoint ready only if `build` will not ask for more."""
    path = models.save_pt(tmp_path / "m.pt", models.make_state(PLAIN), {**PLAIN, field: None})
    assert f"'{field}' is missing" in str(summarize_checkpoint(open_checkpoint(path)).build)


@pytest.mark.parametrize("bias", ["memory_mlp.up_proj.bias", "memory_layernorm.bias"])
def test_inspect_is_not_ready_with_a_bias_that_build_refuses(tmp_path, bias):
    """Nor with a bias that has no place in the memory."""
    state = models.make_state(PLAIN) | {f"layers.0.{bias}": torch.ones(24)}
    path = models.save_pt(tmp_path / "m.pt", state, PLAIN)
    assert f"{bias}' has no place" in str(summarize_checkpoint(open_checkpoint(path)).build)


def test_rope_theta_is_found_where_newer_files_keep_it(tmp_path):
    """``rope_parameters`` of newer configs gives the base; another type than default is refused."""
    config = {**PLAIN, "rope_theta": None}
    for kind, ready in (("default", True), ("yarn", False)):
        rotary = {"rope_type": kind, "rope_theta": 100.0}
        path = models.save_pt(
            tmp_path / "m.pt", models.make_state(PLAIN), {**config, "rope_parameters": rotary}
        )
        assert (summarize_checkpoint(open_checkpoint(path)).eval is None) == ready
    both = {**PLAIN, "rope_parameters": {"rope_theta": 5e5}}
    path = models.save_pt(tmp_path / "m.pt", models.make_state(PLAIN), both)
    with pytest.raises(CheckpointError, match="'rope_theta' is 100.0, but 'rope_parameters'"):
        open_checkpoint(path)
