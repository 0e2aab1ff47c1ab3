"""Plans: what is predicted before a build is what the build then makes."""

import models
import numpy as np
import pytest

import tolpack
from tolpack.compress.size_prediction import predict_checkpoint
from tolpack.errors import ConfigError

KEYS = {
    "rank", "bits", "bytes", "ratio_fp16", "bits_per_weight", "read_bytes_per_token",
    "resident_bytes", "macs_per_token", "paper_bytes", "ffn_bytes", "ffn_bytes_16",
    "table_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A MemoryLLM of two chunks of tokens."""
    folder = tmp_path_factory.mktemp("wide")
    return models.save_model(folder, vocab_size=1500, hidden_size=40, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("rank", "bits", "drop"),
    [("none", 16, "none"), ("none", 8, "none"), ("none", 4, "none"), ("75%", 4, "none"),
     ("50%", 4, "1"), ("full", 16, "none"), ("7", 8, "none"), ("3,40", 4, "none"),
     ("none", 4, "0")],
)  # fmt: skip
def test_plan_equals_the_build(wide, tmp_path, rank, bits, drop):
    """Bytes, reads, residents and MACs of a plan are exactly those of the pack then built."""
    (plan,) = predict_checkpoint(wide, rank=rank, bits=bits, drop=drop)
    result = tolpack.build(wide, tmp_path / "p.tolpack", rank=rank, bits=bits, drop=drop)
    assert plan.bytes == result.bytes
    assert plan.ratio_fp16 == pytest.approx(result.ratio_fp16)
    assert plan.bits_per_weight == pytest.approx(result.bits_per_weight)
    with tolpack.open(result.path) as pack:
        assert plan.read_bytes_per_token == pack.extents([0])[0, 1]
        pack.rows([0])
        assert plan.resident_bytes == pack.resident_bytes
        assert plan.macs_per_token == pack.macs_per_token


def test_default_plans_cover_usual_settings(wide):
    """Without a setting, usual ones are planned, from the largest to the smallest."""
    plans = predict_checkpoint(wide)
    settings = [(plan.rank, plan.bits) for plan in plans]
    assert settings[:3] == [("none", 16), ("none", 8), ("none", 4)]
    assert [plan.bytes for plan in plans] == sorted((p.bytes for p in plans), reverse=True)
    assert set(plans[0].to_json()) == KEYS


def test_one_option_alone_takes_the_builds_default_for_the_other(wide):
    """--rank alone plans 4 bits, --bits alone plans no basis."""
    assert [(p.rank, p.bits) for p in predict_checkpoint(wide, rank="50%")] == [("50%", 4)]
    assert [(p.rank, p.bits) for p in predict_checkpoint(wide, bits="8")] == [("none", 8)]


def test_paper_formula_and_ffn_bytes(wide):
    """The paper's size is vocab × layers × hidden × bits / 8; FFNs are counted as stored."""
    (plan,) = predict_checkpoint(wide, bits=4)
    assert plan.paper_bytes == 1500 * 2 * 40 * 4 // 8
    assert plan.ffn_bytes == 2 * 4 * (3 * 20 * 40 + 40)
    (dropped,) = predict_checkpoint(wide, bits=4, drop="0")
    assert dropped.paper_bytes == plan.paper_bytes // 2


def test_plain_table_can_be_planned(tmp_path):
    """A plain table has plans without FFN bytes, in two dimensions with layers."""
    np.save(tmp_path / "t.npy", np.zeros((50, 24), np.float16))
    plans = predict_checkpoint(tmp_path / "t.npy", layers=3)
    assert {plan.ffn_bytes for plan in plans} == {None}
    assert plans[0].paper_bytes == 50 * 24 * 2


def test_planning_needs_no_decoder_fields(tmp_path):
    """A config with only what tables need is enough for a plan."""
    config = models.make_config(num_attention_heads=None, rope_theta=None)
    state = models.make_state(models.make_config())
    assert predict_checkpoint(models.save_pt(tmp_path / "m.pt", state, config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": "auto"}, "--rank auto follows from the table"),
        ({"rank": "bogus"}, "--rank 'bogus' is not understood"),
        ({"rank": "41"}, "outside 1 … 40"),
        ({"drop": "2"}, "--drop 2 is out of range"),
        ({"bits": 3}, "--bits is 3"),
        ({"bits": "four"}, "--bits"),
    ],
)
def test_wrong_settings_are_refused(wide, settings, message):
    """A setting that cannot be planned gives ConfigError with the option's name."""
    with pytest.raises(ConfigError, match=message):
        predict_checkpoint(wide, **settings)
