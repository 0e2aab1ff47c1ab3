"""Builds along a trellis: the option, what it changes, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("scipy")

import models
from packs import split

import tolpack
from tolpack.cli import main
from tolpack.codecs.ans.trellis import NEXT, codes_of, levels_and_sets
from tolpack.codecs.code_entropy import code_bytes
from tolpack.compress.entropy import table_coding
from tolpack.errors import ConfigError
from tolpack.evaluation.sweep_grid import PackOptions, parse_grids

sys.path.insert(0, str(Path(__file__).parents[1] / "formats" / "v1"))
import decode

MODEL = {"vocab_size": 2500, "hidden_size": 16, "num_hidden_layers": 3,
         "memory_intermediate_size": 24, "max_position_embeddings": 32}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a function that builds a pack of one model, each once, with a trellis or without."""
    folder, found = tmp_path_factory.mktemp("model"), {}
    path = models.save_model(folder, **MODEL)
    np.save(folder / "ids.npy", models.zipf_ids(4000, 2500))

    def build(rank, trellis):
        if (rank, trellis) not in found:
            found[rank, trellis] = tolpack.build(
                path, folder / f"{rank}-{trellis}.tolpack", rank=rank, bits="auto", size="60%",
                calibrate=folder / "ids.npy", trellis=trellis,
            )  # fmt: skip
        return found[rank, trellis]

    return build


def header_of(result):
    return split(result.path.read_bytes())[1]


def test_long_rows_have_four_lanes(tmp_path, monkeypatch):
    """A lane is a trellis of its own: rows that are searched in four are read by every reader."""
    monkeypatch.setattr(table_coding, "_LONG_ROW", 1)
    path = models.save_model(tmp_path, **{**MODEL, "vocab_size": 500})
    result = tolpack.build(
        path, tmp_path / "p.tolpack", rank="none", bits="auto", size="60%", trellis=True
    )
    assert {one["lanes"] for one in header_of(result)["encodings"]} == {4}
    decoder = decode.Pack(result.path.read_bytes())
    with tolpack.open(result.path) as pack:
        assert pack.verify() == []
        rows, theirs = pack.rows([7, 499]), np.stack([decoder.row(7), decoder.row(499)])
        assert np.abs(rows - theirs).max() <= 1e-5 * np.abs(rows).max()


@pytest.mark.parametrize("rank", ["none", "auto"])
def test_rows_are_read_by_every_reader(built, rank):
    """A pack along a trellis is whole, and the format's own decoder reads the same rows."""
    result = built(rank, True)
    assert {one.get("trellis") for one in header_of(result)["encodings"]} == {8}
    decoder = decode.Pack(result.path.read_bytes())
    with tolpack.open(result.path) as pack:
        assert pack.verify() == []
        rows = pack.rows(range(2500))
    theirs = np.stack([decoder.row(token) for token in range(0, 2500, 137)])
    assert np.abs(rows[::137] - theirs).max() <= 1e-5 * np.abs(rows).max()


@pytest.mark.parametrize("rank", ["none", "auto"])
def test_a_trellis_is_only_there_if_asked_for(built, rank):
    """Packs without one say nothing of it, and the two have different identities."""
    plain, along = built(rank, False), built(rank, True)
    assert {one.get("trellis") for one in header_of(plain)["encodings"]} == {None}
    with tolpack.open(plain.path) as one, tolpack.open(along.path) as other:
        assert one.container.preamble.pack_id != other.container.preamble.pack_id


def test_errors_are_smaller_at_the_same_size(built):
    """Without a basis, rows of equally large packs are closer to the model's along a trellis."""
    plain, along = built("none", False), built("none", True)
    assert along.bytes <= 1.005 * plain.bytes
    errors = [sum(layer.relative_error**2 for layer in one.layers) for one in (plain, along)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("rank", ["none", "auto"])
def test_entropies_are_those_of_levels(built, rank):
    """Reported entropies of a layer are near what its codes take, and no R(D) is given."""
    plain, along = built(rank, False), built(rank, True)
    for one, other in zip(plain.layers, along.layers):
        assert one.gaussian_bits is not None
        assert other.gaussian_bits is None
        assert other.entropy_bits / other.bits == pytest.approx(
            one.entropy_bits / one.bits, rel=0.1
        )


def test_entropies_are_conditional_on_sets():
    """They are those of the codes of each set on their own, and of what it takes to learn them."""
    source = np.random.default_rng(0)
    sets = source.integers(0, 2, (500, 3)).astype(np.uint8)
    codes = np.rint(source.standard_normal((500, 3)) * (1 + 3 * sets)).astype(np.float32)
    expected = []
    for column in range(3):
        bits = 0.0
        for number in (0, 1):
            own = codes[sets[:, column] == number, column]
            counts = np.unique(own, return_counts=True)[1]
            bits += -(counts * np.log2(counts / len(own))).sum() * 4
            bits += 0.5 * len(counts) * np.log2(2000)
        expected.append(bits / 8)
    np.testing.assert_allclose(code_bytes(codes, np.full(500, 4.0), sets), expected)


@pytest.mark.parametrize("lanes", [1, 3])
def test_levels_can_be_followed_in_pieces(lanes):
    """Levels and sets are those that gave the codes, whatever pieces codes are given in."""
    source, count = np.random.default_rng(1), 20
    length = -(-count // lanes)
    levels = source.integers(-5, 6, (40, count))
    codes, sets = np.empty((40, count), np.int16), np.empty((40, count), np.uint8)
    for row in range(40):
        state = 0
        for i in range(count):
            state = 0 if i % length == 0 else state
            codes[row, i], sets[row, i] = codes_of(levels[row, i], np.int64(state)), state & 1
            state = NEXT[state, levels[row, i] & 1]
    states, found = np.zeros(40, np.uint8), []
    for first in (0, 3, 11):
        part = codes[:, first : {0: 3, 3: 11, 11: count}[first]]
        found.append(levels_and_sets(part, np.full(40, length), first, states))
    np.testing.assert_array_equal(np.concatenate([one for one, _ in found], axis=1), levels)
    np.testing.assert_array_equal(np.concatenate([one for _, one in found], axis=1), sets)
    for one, other in zip(levels_and_sets(codes, length), (levels, sets)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [4, 16, "lossless"])
def test_other_bits_have_no_trellis(bits):
    """The error names the option that is needed, and nothing is read."""
    with pytest.raises(ConfigError, match="--trellis chooses .* needs --bits auto"):
        tolpack.build("absent.pt", bits=bits, trellis=True)


@pytest.mark.parametrize(
    "command", [["build", "x.pt"], ["plan", "x.pt"], ["build", "x.pt", "--bits", "8"]]
)
def test_commands_refuse_it_without_auto(command):
    """It is a wrong use of the command."""
    refused = CliRunner().invoke(main, [*command, "--trellis"])
    assert refused.exit_code == 2
    assert "--trellis" in refused.stderr


def test_commands_take_it(tmp_path):
    """`build --trellis` gives the pack that `plan --trellis` predicts."""
    table = np.random.default_rng(0).standard_normal((4000, 2, 16), np.float32)
    np.save(tmp_path / "t.npy", table)
    given = [str(tmp_path / "t.npy"), "--bits", "auto", "--size", "40%", "--trellis", "--json"]
    plan = CliRunner().invoke(main, ["plan", *given])
    assert plan.exit_code == 0, plan.stderr
    coders = [one["coder"] for one in json.loads(plan.stdout)["plan"]["encodings"]]
    assert [one["trellis"] for one in coders] == [True] * len(coders)
    pack = tmp_path / "p.tolpack"
    made = CliRunner().invoke(main, ["build", *given, "-o", str(pack)])
    assert made.exit_code == 0, made.stderr
    assert {one["trellis"] for one in split(pack.read_bytes())[1]["encodings"]} == {8}


def test_grids_take_it():
    """``trellis`` is a key of sweeps; without ``bits=auto`` a setting is left out."""
    (found, skipped) = parse_grids(["bits=4,auto trellis=no,yes"])
    assert found == (
        PackOptions(),
        PackOptions(bits="auto"),
        PackOptions(bits="auto", trellis=True),
    )
    assert len(skipped) == 1
    assert "--trellis" in skipped[0]
    assert found[-1].arguments == "--bits auto --trellis"
    assert found[-1].label == "rank none, bits auto, trellis"
    assert found[-1].build_settings().trellis
    with pytest.raises(ConfigError, match="trellis=maybe is not understood: expected yes or no"):
        parse_grids(["bits=auto trellis=maybe"])
