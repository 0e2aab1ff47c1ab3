"""What new rows of edited tokens are, held against loops in float64 over the stored weights."""

import models
import numpy as np
import pytest
import torch
from models import make_config, make_state

import tolpack
from tolpack.demo import MODEL
from tolpack.edits.edit_pack import edit_pack
from tolpack.edits.open_changes import open_keys, open_rows, read_rows, suppress_like
from tolpack.edits.row_changes import (
    contributions,
    rows_of_table,
    scale_rows,
    strongest_keys,
    suppress_keys,
    zero_rows,
)
from tolpack.errors import CheckpointError, ConfigError, TokenIdError
from tolpack.keys.layer_keys import load_layer_keys
from tolpack.keys.named_tokens import find_tokens, parse_keys, parse_layers, read_tokens
from tolpack.model.text import TextTokenizer
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch.row_comparison import compared_ids

CONFIG = make_config()
TOKENS = [3, 17, 40, 96]
DEMO = "tolpack/demo/model/tokenizer.json"


@pytest.fixture(scope="module")
def pack(memoryllm, tmp_path_factory):
    """An exact pack of the tiny MemoryLLM."""
    out = tmp_path_factory.mktemp("pack") / "p.tolpack"
    return tolpack.build(memoryllm, out, bits="lossless").path


@pytest.fixture(scope="module")
def auto_pack(memoryllm, token_ids, tmp_path_factory):
    """A pack of the tiny MemoryLLM by ``--bits auto``."""
    out = tmp_path_factory.mktemp("pack") / "auto.tolpack"
    return tolpack.build(memoryllm, out, bits="auto", calibrate=token_ids).path


def slow_coefficients(layer, token):
    """Key coefficients of a token, float64 (keys,): the paper's formula, one key at a time."""
    weights = {name: value.double().numpy() for name, value in make_state(CONFIG).items()}
    base = f"layers.{layer}.memory"
    x = weights["embed_tokens.weight"][token]
    x = x / np.sqrt(np.mean(x * x) + 1e-5) * weights[f"{base}_layernorm.weight"]
    up, gate = (weights[f"{base}_mlp.{part}_proj.weight"] for part in ("up", "gate"))
    return np.array([(u @ x) * (g @ x) / (1 + np.exp(-(g @ x))) for u, g in zip(up, gate)])


def slow_value(layer, key):
    """Value of a key, float64 (hidden,)."""
    down = make_state(CONFIG)[f"layers.{layer}.memory_mlp.down_proj.weight"]
    return down[:, key].double().numpy()


def edited_rows(pack, tmp_path, change, token_ids=TOKENS, **settings):
    """Write an edit, and return its result and the edited rows of the whole vocabulary."""
    with tolpack.open(pack) as opened:
        result = edit_pack(opened, tmp_path / "e.edits", token_ids, change, **settings)
    with tolpack.open(pack, edits=[result.path]) as opened:
        return result, opened.rows(np.arange(97))


def plain_rows(pack):
    """All rows of a pack."""
    with tolpack.open(pack) as opened:
        return opened.rows(np.arange(97))


def test_contributions_are_coefficients_times_values(memoryllm):
    """What keys contribute is c_k times W_down[:, k], summed over the keys."""
    keys = load_layer_keys(open_checkpoint(memoryllm), 1)
    found = contributions(keys, np.array([2, 5, 19]), np.array(TOKENS))
    for token, row in zip(TOKENS, found):
        c = slow_coefficients(1, token)
        assert np.allclose(row, sum(c[k] * slow_value(1, k) for k in (2, 5, 19)), atol=1e-5)


def test_without_any_key_nothing_is_left(memoryllm, pack, tmp_path):
    """A layer's row less all of its keys is zero, up to rounding; other layers keep their bits."""
    load = lambda layer: load_layer_keys(open_checkpoint(memoryllm), layer)  # noqa: E731
    _, rows = edited_rows(pack, tmp_path, suppress_keys({1: range(20)}, load))
    old = plain_rows(pack)
    assert np.abs(rows[TOKENS, 1]).max() < 1e-5 * np.abs(old).max()
    assert np.array_equal(rows[:, [0, 2]], old[:, [0, 2]])


def test_strongest_keys_against_loops(memoryllm):
    """The keys found have the largest mean |c|·‖W_down[:, k]‖ over the tokens less the sample's."""
    keys, sample = load_layer_keys(open_checkpoint(memoryllm), 2), np.arange(0, 97, 7)

    def mean(tokens):
        strengths = [np.abs(slow_coefficients(2, token)) for token in tokens]
        return np.mean(strengths, axis=0) * [np.linalg.norm(slow_value(2, k)) for k in range(20)]

    expected = np.argsort(-(mean(TOKENS) - mean(sample)))[:6]
    assert strongest_keys(keys, np.array(TOKENS), sample, 6).tolist() == expected.tolist()
    assert len(strongest_keys(keys, np.array(TOKENS), sample, 99)) == 20


@pytest.mark.parametrize("which", ["pack", "auto_pack"])
@pytest.mark.parametrize("layers", [None, [2], [0, 1]])
def test_others_keep_their_bits_and_edited_rows_are_exact(which, layers, tmp_path, request):
    """Only the chosen layers of edited tokens change, and those are stored bit for bit: also in
    a pack of --bits auto, where the layers of a row make up for one another.
    """
    path = request.getfixturevalue(which)
    values = np.random.default_rng(0).standard_normal((4, 3, 24)).astype(np.float32)
    _, rows = edited_rows(path, tmp_path, rows_of_table(values, np.array(TOKENS)), layers=layers)
    expected, chosen = plain_rows(path), [0, 1, 2] if layers is None else layers
    expected[np.ix_(TOKENS, chosen)] = values[:, chosen]
    assert rows.tobytes() == expected.tobytes()


def test_suppressed_keys_are_taken_from_the_rows_of_the_pack(memoryllm, auto_pack, tmp_path):
    """The pack's own row is the one that loses the keys' contributions, not the checkpoint's."""
    load = lambda layer: load_layer_keys(open_checkpoint(memoryllm), layer)  # noqa: E731
    _, rows = edited_rows(auto_pack, tmp_path, suppress_keys({0: [4, 7]}, load))
    old = plain_rows(auto_pack)
    for token in TOKENS:
        c = slow_coefficients(0, token)
        taken = c[4] * slow_value(0, 4) + c[7] * slow_value(0, 7)
        assert np.allclose(old[token, 0] - rows[token, 0], taken, atol=1e-5)


def test_zeros_and_factors(pack, tmp_path):
    """Zeros have no sign, and a factor multiplies in float32."""
    _, rows = edited_rows(pack, tmp_path, zero_rows(), bits=32)
    assert not rows[TOKENS].view(np.uint32).any()
    _, rows = edited_rows(pack, tmp_path, scale_rows(-0.3), force=True)
    assert np.array_equal(rows[TOKENS], plain_rows(pack)[TOKENS] * np.float32(-0.3))


def test_rows_of_a_table_follow_the_order_of_the_tokens(pack, tmp_path):
    """Row i of a table is for the i-th token as named, in whatever order tokens are named."""
    values = np.arange(4 * 3 * 24, dtype=np.float32).reshape(4, 3, 24)
    order = np.array([40, 3, 96, 17])
    result, rows = edited_rows(pack, tmp_path, rows_of_table(values, order), order)
    assert np.array_equal(rows[order], values)
    assert result.token_ids == (3, 17, 40, 96)
    assert result.nbytes == result.path.stat().st_size


@pytest.mark.parametrize("shape", [(4, 3, 24), (4, 72)])
def test_tables_are_read_from_npy(shape, pack, tmp_path):
    """A table has shape [tokens, layers, hidden] or [tokens, layers·hidden]."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).standard_normal(shape))
    with tolpack.open(pack) as opened:
        change = read_rows(tmp_path / "rows.npy", opened, np.array(TOKENS))
    _, rows = edited_rows(pack, tmp_path, change)
    expected = np.load(tmp_path / "rows.npy").astype(np.float32).reshape(4, 3, 24)
    assert np.array_equal(rows[TOKENS], expected)


def test_rows_of_a_checkpoint_and_of_a_pack(memoryllm, pack, auto_pack, tmp_path):
    """Rows taken from a checkpoint or from another pack are those that it gives."""
    exact = plain_rows(pack)
    for source in (memoryllm, pack):
        with tolpack.open(auto_pack) as opened, open_rows(source, opened) as change:
            edit_pack(opened, tmp_path / "e.edits", TOKENS, change, force=True)
        with tolpack.open(auto_pack, edits=[tmp_path / "e.edits"]) as opened:
            assert np.allclose(opened.rows(TOKENS), exact[TOKENS], rtol=1e-5, atol=1e-6)


def test_result_says_how_far_rows_moved(pack, tmp_path):
    """Changes are lengths relative to the old row; the largest names its token."""
    values = plain_rows(pack)[TOKENS]
    values[2] *= np.float32(1.5)
    result, _ = edited_rows(pack, tmp_path, rows_of_table(values, np.array(TOKENS)), layers=[1])
    (layer,) = result.layers
    assert (layer.layer, layer.moved, layer.token_id) == (1, 1, 40)
    assert layer.largest == pytest.approx(0.5, rel=1e-6)
    assert layer.mean == pytest.approx(0.125, rel=1e-6)


def test_like_uses_every_kept_layer(memoryllm, tmp_path):
    """Keys like those of a token are chosen in the layers that the pack stores."""
    path = tolpack.build(memoryllm, tmp_path / "p.tolpack", drop="1", bits=8).path
    with tolpack.open(path) as opened:
        checkpoint = open_keys(memoryllm, opened)
        found = suppress_like(checkpoint, opened, np.array([5]), 4)
        assert {layer: len(keys) for layer, keys in found.keys.items()} == {0: 4, 2: 4}
        with pytest.raises(ConfigError, match="layer 1 was dropped"):
            suppress_like(checkpoint, opened, np.array([5]), 4, layers=[1])


# -- what is refused -----------------------------------------------------------------------------


def test_tables_that_do_not_fit_are_refused(pack, tmp_path):
    """A table must have a finite row for each token, and each token once."""
    values = np.zeros((4, 3, 24), np.float32)
    with pytest.raises(ConfigError, match="4 rows, and there are 2 tokens"):
        rows_of_table(values, np.array([1, 2]))
    with pytest.raises(ConfigError, match="token 7 is named twice"):
        rows_of_table(values, np.array([7, 2, 7, 9]))
    np.save(tmp_path / "rows.npy", values[:, :2])
    with tolpack.open(pack) as opened, pytest.raises(ConfigError, match=r"\[4, 2, 24\], expected"):
        read_rows(tmp_path / "rows.npy", opened, np.array(TOKENS))
    values[1, 2, 3] = np.nan
    with pytest.raises(CheckpointError, match="token 17, layer 2, holds NaN"):
        edited_rows(pack, tmp_path, rows_of_table(values, np.array(TOKENS)))
    with pytest.raises(ConfigError, match="scale is nan"):
        scale_rows(float("nan"))


def test_other_models_are_refused(pack, tmp_path):
    """Rows and keys come from a model of the pack's shape, and keys from memory FFNs."""
    other = models.save_model(tmp_path, hidden_size=32)
    table = tmp_path / "table.npy"
    np.save(table, np.zeros((97, 3, 24), np.float32))
    with tolpack.open(pack) as opened:
        with (
            pytest.raises(ConfigError, match="do not belong together"),
            open_rows(other, opened),
        ):
            pass
        with pytest.raises(ConfigError, match="do not belong together"):
            open_keys(other, opened)
        with pytest.raises(CheckpointError, match="no memory FFNs"):
            open_keys(table, opened)


@pytest.fixture(scope="module")
def demo_pack(tmp_path_factory):
    """A pack of the bundled model with 4 bits and a layer dropped."""
    out = tmp_path_factory.mktemp("demo") / "p.tolpack"
    return tolpack.build(MODEL, out, bits=4, drop="1").path


@pytest.mark.parametrize("which", ["demo_pack", "auto_pack"])
def test_keys_are_those_of_the_packs_model(which, memoryllm, tmp_path, request):
    """A model of the same shape is refused by its rows; however few bits a pack has, and whatever
    its edits are, its own is not.
    """
    path, own = request.getfixturevalue(which), MODEL if which == "demo_pack" else memoryllm
    with tolpack.open(path) as opened:
        assert open_keys(own, opened).has("embed_tokens.weight")
        if own != MODEL:
            other = models.save_model(tmp_path, seed=1)
            with pytest.raises(ConfigError, match="p?.tolpack and of .*model.pt have a corr"):
                open_keys(other, opened)
        flip = lambda field, ids, rows: -9 * rows  # noqa: E731
        for tokens in (compared_ids(opened), range(opened.vocab_size)):
            edit_pack(opened, tmp_path / "e", tokens, flip, force=True)
            with tolpack.open(path, edits=[tmp_path / "e"]) as edited:
                assert not np.isin(compared_ids(edited), edited.edited_tokens).any()
                open_keys(own, edited)


def test_tokens_and_layers_that_there_are_not(pack, tmp_path):
    """Token ids and layers must be those of the pack."""
    for tokens, error in (([97], "out of range"), ([], "no token is named"), ([0.5], "float64")):
        with pytest.raises(TokenIdError, match=error):
            edited_rows(pack, tmp_path, zero_rows(), tokens)
    with pytest.raises(ConfigError, match="layer 3 does not exist"):
        edited_rows(pack, tmp_path, zero_rows(), layers=[0, 3])
    assert not (tmp_path / "e.edits").exists()


def test_names_of_tokens():
    """Digits are an id; a text must be one token, and the message lists what it is instead."""
    tokenizer = TextTokenizer(DEMO)
    one = tokenizer.encode(" the").tolist()
    assert find_tokens(["17", " the"], tokenizer, 4096).tolist() == [17, *one]
    with pytest.raises(ConfigError, match="is 2 tokens: give one of them \\(.*' the'"):
        find_tokens([" the the"], tokenizer, 4096)
    with pytest.raises(ConfigError, match="is 0 tokens: give a text"):
        find_tokens([""], tokenizer, 4096)
    with pytest.raises(ConfigError, match="there is no tokenizer.json"):
        find_tokens([" the"], None, 4096)


def test_token_files(tmp_path):
    """A file of tokens is a one-dimensional array of integers."""
    for values in (np.zeros(3), np.zeros((2, 2), np.int64), np.array([2**63], np.uint64)):
        np.save(tmp_path / "ids.npy", values)
        with pytest.raises(ConfigError, match="tokens .*ids.npy"):
            read_tokens(tmp_path / "ids.npy")


def test_keys_and_layers_are_parsed():
    """Keys are grouped by layer, each once; layers may be ranges; other text is refused."""
    assert parse_keys("3:7, 0:12,3:1,3:7") == {0: (12,), 3: (1, 7)}
    assert parse_layers("3,0-1, 3") == (0, 1, 3)
    for wrong in ("", "3", "a:1", "1:-2", "1:2,,"):
        with pytest.raises(ConfigError, match="LAYER:KEY"):
            parse_keys(wrong)
    for wrong in ("", "none", "3-1", "1;2"):
        with pytest.raises(ConfigError, match="--layers"):
            parse_layers(wrong)


def test_keys_in_bfloat16_give_float32_rows(memoryllm):
    """Contributions are float32 whatever the keys are loaded in."""
    keys = load_layer_keys(open_checkpoint(memoryllm), 0, torch.bfloat16)
    assert contributions(keys, np.array([1]), np.array([5])).dtype == np.float32
