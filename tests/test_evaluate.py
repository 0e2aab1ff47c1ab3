"""Evaluation of packs against their checkpoint: scores, costs, and what does not fit."""

import math

import models
import numpy as np
import pytest

import tolpack
from tolpack.errors import CheckpointError, ConfigError, FileAccessError
from tolpack.evaluation.evaluator import evaluate
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import increase_pct, score
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.torch import ToLMemory

BASELINE_KEYS = {"ppl", "ppl_se", "nll_nats", "tokens", "ffn_bytes", "ffn_bytes_16"}
PACK_KEYS = {
    "path", "ppl", "ppl_se", "nll_nats", "tokens", "bytes", "ratio_fp16", "bits_per_weight",
    "ppl_increase_pct", "ppl_increase_se_pct", "read_bytes_per_token", "resident_bytes",
    "macs_per_token", "ffn_bytes", "ffn_bytes_16", "kl_mean_nats", "kl_mean_se_nats",
    "kl_median_nats", "kl_p99_nats", "kl_max_nats", "top1_agreement_pct", "top1_agreement_se_pct",
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm"])
def test_pack_at_16_bits_scores_like_its_checkpoint(tmp_path, token_ids, model_type):
    """A 16-bit pack in place of the FFNs changes the perplexity by next to nothing."""
    path = models.save_model(tmp_path, model_type)
    pack = tolpack.build(path, bits=16).path
    found = evaluate(path, [pack], token_ids)
    assert found.context == 16
    assert found.baseline.tokens == found.packs[0].tokens == 400
    assert abs(found.packs[0].ppl_increase_pct) < 0.05
    assert found.packs[0].ppl == pytest.approx(found.baseline.ppl, rel=5e-4)


def test_numbers_are_those_of_their_definitions(memoryllm, tmp_path, token_ids):
    """Every number of the result is what its definition gives, computed here from its parts."""
    packs = [
        tolpack.build(memoryllm, tmp_path / "a.tolpack", bits=4).path,
        tolpack.build(memoryllm, tmp_path / "b.tolpack", rank=9, drop="1", bits=8).path,
    ]
    ids = np.load(token_ids)
    found = evaluate(memoryllm, packs, token_ids, context=7)
    decoder = Decoder(open_checkpoint(memoryllm))
    base = score(decoder, ids, 7)
    assert found.context == 7
    assert found.baseline.ppl == base.ppl
    assert found.baseline.ppl_se == base.ppl_se > 0
    assert found.baseline.nll_nats == pytest.approx(math.log(base.ppl))
    assert found.baseline.ffn_bytes == 4 * 3 * (3 * 20 * 24 + 24)
    for path, result in zip(packs, found.packs):
        with tolpack.open(path) as pack:
            packed = score(decoder.with_memory(ToLMemory(pack)), ids, 7)
            reads = [pack.extents([token])[0, 1] for token in ids[:-1]]
            assert result.read_bytes_per_token == pytest.approx(np.mean(reads))
            assert result.resident_bytes == pack.resident_bytes
        assert result.path == str(path)
        assert (result.ppl, result.ppl_se) == (packed.ppl, packed.ppl_se)
        increase = result.ppl_increase_pct, result.ppl_increase_se_pct
        assert increase == increase_pct(packed, base)
        assert increase[0] == pytest.approx(100 * (packed.ppl / base.ppl - 1))
        assert result.bytes == path.stat().st_size
        assert result.ratio_fp16 == pytest.approx(97 * 3 * 24 * 2 / result.bytes)
        assert result.bits_per_weight == pytest.approx(16 / result.ratio_fp16)
    assert [result.macs_per_token for result in found.packs] == [0, 2 * 9 * 24]


def test_json_has_the_keys_of_the_contract(memoryllm, tmp_path, token_ids):
    """The JSON object has exactly the keys that others rely on, with plain values."""
    pack = tolpack.build(memoryllm, tmp_path / "a.tolpack").path
    found = evaluate(memoryllm, [pack], token_ids).to_json()
    assert set(found) == {"context", "baseline", "packs", "warnings"}
    assert set(found["baseline"]) == BASELINE_KEYS
    assert set(found["packs"][0]) == PACK_KEYS
    values = [*found["baseline"].values(), *found["packs"][0].values()]
    assert {type(value) for value in values} == {str, int, float}


def test_dense_checkpoint_can_be_scored_alone(tmp_path, token_ids):
    """A dense model is a baseline without memory FFNs; a pack in it is refused."""
    dense = models.save_model(tmp_path, "llama", name="dense.pt")
    found = evaluate(dense, [], token_ids)
    assert found.packs == ()
    assert found.baseline.ffn_bytes is None
    pack = tolpack.build(models.save_model(tmp_path)).path
    with pytest.raises(CheckpointError, match="dense model has no memory"):
        evaluate(dense, [pack], token_ids)


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 98}, {"num_hidden_layers": 2}, {"hidden_size": 16}]
)
def test_pack_of_another_model_is_refused(memoryllm, tmp_path, token_ids, changes):
    """A pack of another shape is refused with both shapes."""
    pack = tolpack.build(models.save_model(tmp_path, **changes)).path
    with pytest.raises(ConfigError, match="checkpoint has 97 × 3 × 24: they do not belong"):
        evaluate(memoryllm, [pack], token_ids)


def test_context_is_not_guessed(tmp_path, token_ids):
    """Without max_position_embeddings the window length is asked for."""
    path = models.save_model(tmp_path, max_position_embeddings=None)
    with pytest.raises(ConfigError, match="max_position_embeddings: give --context N"):
        evaluate(path, [], token_ids)
    assert evaluate(path, [], token_ids, context=8).context == 8


def test_missing_inputs_give_our_errors(memoryllm, tmp_path, token_ids):
    """An absent pack, text or checkpoint gives tolpack's error with its path."""
    with pytest.raises(FileAccessError, match=r"absent\.tolpack"):
        evaluate(memoryllm, [tmp_path / "absent.tolpack"], token_ids)
    with pytest.raises(ConfigError, match=r"absent\.npy"):
        evaluate(memoryllm, [], tmp_path / "absent.npy")
    with pytest.raises(CheckpointError, match=r"absent\.pt"):
        evaluate(tmp_path / "absent.pt", [], token_ids)


def test_coarser_packs_are_worse(memoryllm, tmp_path, token_ids):
    """A rank-2 pack differs from the checkpoint more than an 8-bit one does."""
    fine = tolpack.build(memoryllm, tmp_path / "a.tolpack", bits=8).path
    coarse = tolpack.build(memoryllm, tmp_path / "b.tolpack", rank=2, bits=4).path
    found = evaluate(memoryllm, [fine, coarse], token_ids)
    increases = [abs(pack.ppl_increase_pct) for pack in found.packs]
    assert increases[0] < 1
    assert increases[1] > 10 * increases[0]
