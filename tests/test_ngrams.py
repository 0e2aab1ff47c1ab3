"""Rows of hashed n-grams are those that the models compute, however a text is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_ngrams import slow_engram, slow_longcat, slow_rows

from tolpack.errors import ConfigError, TokenIdError
from tolpack.ngrams import NGramHash, engram_hashes, longcat_hash, qwen4_exp_hash
from tolpack.ngrams.primes import is_prime, next_prime

VOCAB = 40
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=12)


@st.composite
def hashes(draw):
    """Any hash of ids below `VOCAB`."""
    mixing = draw(st.sampled_from(["xor", "sum"]))
    orders = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    heads = len(orders)
    sizes = draw(st.lists(st.integers(1, 2**29), min_size=heads, max_size=heads))
    offsets = draw(st.lists(st.integers(0, 2**40), min_size=heads, max_size=heads))
    number = st.integers(-(2**63) + 1, 2**63 - 1)
    multipliers = draw(st.lists(number, min_size=max(orders), max_size=max(orders)))
    boundary = draw(st.none() | st.integers(0, 3))
    compressed = None
    if draw(st.booleans()):
        ids = draw(st.lists(st.integers(0, 9), min_size=VOCAB, max_size=VOCAB))
        compressed = np.array(ids, np.uint32)
    heads = tuple(orders), tuple(sizes), tuple(offsets)
    return NGramHash(
        mixing, *heads, tuple(multipliers), draw(st.integers(0, 9)), boundary, compressed
    )


@given(hashes(), IDS)
def test_rows_are_those_of_unbounded_integers(ngrams, ids):
    """Vectorized rows, with wrap-around or exact sums, equal those computed one by one."""
    rows = ngrams.rows(ids)
    assert rows.dtype == np.int64
    assert rows.shape == (len(ids), ngrams.heads)
    assert rows.tolist() == slow_rows(ngrams, ids)
    assert not rows.size or rows.max() < ngrams.table_rows


@given(hashes(), st.lists(IDS, max_size=4))
def test_pieces_give_the_rows_of_the_whole_text(ngrams, pieces):
    """A stream, and `history` of any length, give what the text gives at once."""
    text = [token for piece in pieces for token in piece]
    whole = ngrams.rows(text)
    stream, past = ngrams.stream(), 0
    for piece in pieces:
        stop = past + len(piece)
        np.testing.assert_array_equal(stream.rows(piece), whole[past:stop])
        np.testing.assert_array_equal(ngrams.rows(piece, text[:past]), whole[past:stop])
        past = stop
    stream.reset()
    np.testing.assert_array_equal(stream.rows(text), whole)


def test_appended_tokens_count_as_history():
    """A stream goes past appended tokens, and stays where it is when ids are wrong."""
    ngrams = longcat_hash(vocab_size=VOCAB, eos_token_id=2)
    stream = ngrams.stream()
    stream.append([5, 6])
    with pytest.raises(TokenIdError):
        stream.rows([7, -1])
    np.testing.assert_array_equal(stream.rows([7]), ngrams.rows([5, 6, 7])[2:])


def test_batches_are_texts_side_by_side():
    """A batch of any shape gives each text's own rows, with and without history."""
    ngrams = qwen4_exp_hash(vocab_size=VOCAB, eos_token_id=3, ngram_vocab_size_base=1000)
    texts = np.random.default_rng(0).integers(0, 6, (2, 3, 9))
    rows = ngrams.rows(texts)
    assert rows.shape == (2, 3, 9, 16)
    np.testing.assert_array_equal(rows[1, 2], ngrams.rows(texts[1, 2]))
    np.testing.assert_array_equal(ngrams.rows(texts[..., 4:], texts[..., :4]), rows[..., 4:, :])


def test_long_texts_are_hashed_in_blocks():
    """Tokens beside the edge of a block have the rows that they have in a short text."""
    ngrams = longcat_hash(vocab_size=VOCAB, eos_token_id=2)
    text = np.random.default_rng(0).integers(0, VOCAB, 10_000)
    rows = ngrams.rows(text)
    for start in (4090, 8185):
        part = ngrams.rows(text[start : start + 20], text[:start])
        np.testing.assert_array_equal(rows[start : start + 20], part)


@pytest.mark.parametrize("ids", [[-1], [VOCAB], [1.5], ["a"], [[1], [2, 3]], 3, [2**63]])
def test_wrong_ids_are_named(ids):
    """Ids that are negative, beyond the vocabulary or no integers give a `TokenIdError`."""
    compressed = np.zeros(VOCAB, np.uint32)
    (ngrams,) = engram_hashes(layer_ids=[1], compressed_ids=compressed, pad_id=2)
    with pytest.raises(TokenIdError):
        ngrams.rows(ids)
    with pytest.raises(TokenIdError):
        ngrams.rows([1], ids)


def test_without_a_vocabulary_ids_have_31_bits():
    """The highest id is 2^31 - 1, and its sums are exact."""
    ngrams = NGramHash("sum", (4,), (2**30,), (0,), (2**63 - 1, 7**20, -(2**63) + 1, 11), 0)
    ids = [2**31 - 1] * 4
    assert ngrams.rows(ids).tolist() == slow_rows(ngrams, ids)
    with pytest.raises(TokenIdError, match="2147483648 is out of range 0 … 2147483647"):
        ngrams.rows([2**31])


def test_batches_of_ids_and_history_agree():
    """Ids of one batch after those of another are refused."""
    ngrams = longcat_hash(vocab_size=VOCAB, eos_token_id=2)
    with pytest.raises(TokenIdError, match=r"batch of shape \(2,\).*\(\)"):
        ngrams.rows([[1], [2]], [1, 2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mixing", "add"), ("orders", ()), ("orders", (0, 2)), ("orders", (2, 65)),
        ("orders", (2.0, 2)), ("sizes", (5,)), ("sizes", (0, 5)), ("sizes", (2**63, 5)),
        ("offsets", (0, -1)), ("offsets", (0, 2**62)), ("multipliers", (1,)),
        ("multipliers", (1, 2**63)), ("multipliers", (1, -(2**63))), ("pad", -1),
        ("pad", 2**31), ("boundary", 2**31),
        ("compressed_ids", np.zeros(3)), ("compressed_ids", np.zeros(0, np.uint32)),
        ("compressed_ids", np.full(3, 2**31, np.uint32)),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(field, value):
    """A hash that cannot be computed is refused when it is made, by the field's name."""
    fields = {
        "mixing": "xor", "orders": (2, 2), "sizes": (5, 7), "offsets": (0, 5),
        "multipliers": (3, 5), "pad": 0, "boundary": None, "compressed_ids": None,
    }  # fmt: skip
    NGramHash(**fields)
    with pytest.raises(ConfigError, match=field):
        NGramHash(**fields | {field: value})


def test_hashes_compare_by_their_values():
    """Equal numbers and id maps make equal hashes; another id makes another hash."""
    ids = np.arange(5, dtype=np.uint32)
    one, same = (
        NGramHash("xor", (2,), (5,), (0,), (3, 5), 0, None, each) for each in (ids, ids.copy())
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != NGramHash("xor", (2,), (5,), (0,), (3, 5), 0, None, ids[::-1].copy())
    assert one != NGramHash("xor", (2,), (5,), (0,), (3, 5), 0)
    assert one != "xor"


# The published constants.


def test_constants_of_deepseek_v41():
    """DeepSeek-V4.1-Flash: multipliers, rows of both tables, and no prime twice."""
    compressed = np.arange(129_280, dtype=np.uint32) % 99_092
    first, second = engram_hashes(layer_ids=[1, 14], compressed_ids=compressed, pad_id=2)
    assert first.multipliers == (76632096046245, 4839876093313, 35959672319349, 73987337458391)
    assert second.multipliers == (67716810739261, 51510806800915, 30921347202721, 82619226485591)
    assert (first.table_rows, second.table_rows) == (384_006_168, 384_016_682)
    assert first.orders == (2,) * 8 + (3,) * 8 + (4,) * 8
    assert len({*first.sizes, *second.sizes}) == 48


def test_constants_of_qwen4_exp():
    """Qwen3.8-Flash-Next: the sum of 16 primes, which is padded to a multiple of 128."""
    ngrams = qwen4_exp_hash(vocab_size=248_320, eos_token_id=248_044)
    assert ngrams.table_rows == 320_001_446
    assert -(-ngrams.table_rows // 128) * 128 == 320_001_536
    assert ngrams.multipliers == (23_703_573_157_769, 20_109_073_645_365, 8_052_911_324_071)


def test_constants_of_longcat_flash_lite():
    """LongCat-Flash-Lite: 12 tables of 10223616 + 2i + 1 rows."""
    ngrams = longcat_hash(vocab_size=131_072, eos_token_id=2)
    assert ngrams.sizes == tuple(10_223_616 + 2 * i + 1 for i in range(12))
    assert ngrams.orders == (2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)
    assert ngrams.multipliers == (1, 2**17, 2**34, 2**51)


# Against the models' own arithmetic.


def qwen_module(**changed):
    """The n-gram embedding of transformers' Qwen4Exp, its config, and the rows of each call."""
    from transformers.models.qwen4_exp import modeling_qwen4_exp as qwen

    config = qwen.Qwen4ExpTextConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, eos_token_id=3,
        ple_layer_ids=[1, 3], ngram_vocab_size_base=1000, **changed,
    )  # fmt: skip
    module = qwen.Qwen4ExpTextNGramEmbedding(config, 32, 2, 1)
    seen = []
    module.ngram_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    return module, config, seen


@pytest.mark.parametrize("changed", [{}, {"ngram_size": 4, "heads_per_ngram": 4, "seed": 7}])
def test_qwen4_exp_gives_the_rows_of_transformers(changed):
    """Texts with ends in them, at once and in decode steps with a cache, give the module's rows."""
    from transformers import DynamicCache

    module, config, seen = qwen_module(ple_embed_dim=48, **changed)
    ngrams = qwen4_exp_hash(
        vocab_size=VOCAB, eos_token_id=3, ngram_vocab_size_base=1000, ple_layer_index=1, **changed
    )
    assert ngrams.sizes == tuple(module.ngram_heads_vocab_sizes.tolist())
    texts = np.random.default_rng(0).integers(0, 8, (5, 30))
    module(torch.from_numpy(texts), None)
    np.testing.assert_array_equal(ngrams.rows(texts), seen[0])
    for first in (1, 2, 7):
        cache, stream = DynamicCache(config=config), ngrams.stream()
        for start, stop in [(0, first), *((t, t + 1) for t in range(first, 30))]:
            module(torch.from_numpy(texts[:, start:stop]), cache)
            np.testing.assert_array_equal(stream.rows(texts[:, start:stop]), seen[-1])


def test_engram_gives_the_rows_of_the_demo():
    """Both layers hash compressed ids with their own primes and multipliers."""
    compressed = [token // 3 for token in range(VOCAB)]
    text = np.random.default_rng(0).integers(0, VOCAB, 50).tolist()
    for layers, bases, heads, seed in (([1, 15], [101, 103], 2, 0), ([4, 2], [60, 60, 50], 3, 5)):
        hashes = engram_hashes(
            layer_ids=layers, compressed_ids=np.array(compressed, np.uint32), pad_id=7,
            engram_vocab_size=bases, max_ngram_size=len(bases) + 1, n_heads=heads, seed=seed,
        )  # fmt: skip
        for layer, ngrams in zip(layers, hashes):
            expected = slow_engram(layers, layer, bases, heads, compressed, 7, seed, text)
            assert ngrams.rows(text).tolist() == expected


def test_engram_stops_at_images():
    """Text after an image is hashed as a text of its own, and no other token ends one."""
    numbers = {"layer_ids": [1], "compressed_ids": np.arange(VOCAB, dtype=np.uint32) // 2}
    (plain,) = engram_hashes(**numbers, pad_id=4)
    (ngrams,) = engram_hashes(**numbers, pad_id=4, boundary=8)
    text = [5, 9, 1, 30]
    np.testing.assert_array_equal(ngrams.rows(text), plain.rows(text))
    np.testing.assert_array_equal(ngrams.rows(text, [1, 2, 8]), plain.rows(text))


def test_longcat_spells_numbers():
    """Texts with ends in them give the remainders of exact numbers, table after table."""
    text = np.random.default_rng(0).choice([0, 1, 2, 77_777, 131_071], 60).tolist()
    ngrams = longcat_hash(vocab_size=131_072, eos_token_id=2)
    expected = slow_longcat(131_072, 78, 4, 4, 2, text)
    assert (ngrams.rows(text) - ngrams.offsets).tolist() == expected
    assert ngrams.offsets[1] == ngrams.sizes[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pad_id": VOCAB}, {"pad_id": -1}, {"boundary": VOCAB}, {"engram_vocab_size": 0},
        {"engram_vocab_size": [5]}, {"max_ngram_size": 1}, {"n_heads": 0}, {"n_heads": 65},
        {"seed": -1}, {"layer_ids": [-1]}, {"engram_vocab_size": 2**41},
    ],
)  # fmt: skip
def test_wrong_configs_are_refused(wrong):
    """A number of a config that makes no hash gives a `ConfigError`."""
    numbers = {"layer_ids": [1], "compressed_ids": np.zeros(VOCAB, np.uint32), "pad_id": 2}
    with pytest.raises(ConfigError):
        engram_hashes(**numbers | wrong)


def test_numbers_beyond_64_bits_are_refused():
    """Five digits to the base of LongCat-2.0's vocabulary do not fit, and the error says so."""
    with pytest.raises(ConfigError, match="multipliers hold 720"):
        longcat_hash(vocab_size=163_840, eos_token_id=2, emb_neighbor_num=5)


def test_primes():
    """Primes are found as by trial division, and pseudoprimes are not taken for primes."""
    slow = [n for n in range(3000) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(3000) if is_prime(n)] == slow
    # Carmichael numbers, and the least number that is a strong pseudoprime to bases 2 … 31.
    for composite in (561, 1_729, 3_215_031_751, 3_825_123_056_546_413_051):
        assert not is_prime(composite)
    assert is_prime(2**61 - 1)
    assert next_prime(8, {11}) == 13
