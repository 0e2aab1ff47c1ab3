"""`tolpack diff`: its numbers are those of slow loops over all rows, whatever is compared."""

import json
import math
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from packs import RECIPES, forge, memory_limit, reference_rows, split, write

import tolpack
from tolpack.cli import main
from tolpack.demo import MODEL
from tolpack.evaluation import diff as diff_module
from tolpack.evaluation.diff import diff_tables
from tolpack.runtime.progress import Reporter

VOCAB, LAYERS, HIDDEN = 400, 3, 8


def run(*args):
    """Run ``tolpack diff`` in this process."""
    return CliRunner().invoke(main, ["diff", *map(str, args)])


def printed(*args):
    """Run it with --json; returns the object, in which NaN and Infinity are not allowed."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table, counts, and packs of it: 4 bits by frequency, 8 bits by id, and without layer 1."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(3)
    table = rng.standard_normal((VOCAB, LAYERS, HIDDEN)) * rng.lognormal(size=(VOCAB, 1, 1))
    np.save(folder / "t.npy", table.astype(np.float16))
    np.save(folder / "counts.npy", rng.permutation(10_000 // np.arange(1, VOCAB + 1)))
    counts = {"frequencies": folder / "counts.npy"}
    for name, settings in {
        "b4": {"bits": 4, **counts},
        "b8": {"bits": 8},
        "b16": {"bits": 16, **counts},
        "dropped": {"bits": 8, "drop": "1", **counts},
    }.items():
        tolpack.build(folder / "t.npy", folder / f"{name}.tolpack", **settings)
    return folder


def all_rows(path):
    """Return all rows of a pack or table, float64 (vocab, layers, hidden)."""
    if path.suffix == ".npy":
        return np.load(path).astype(np.float64)
    with tolpack.open(path) as pack:
        return pack.rows(np.arange(pack.vocab_size)).astype(np.float64)


def relative(a, b, weights=None):
    """Return √(Σw‖a − b‖² / Σw‖b‖²), value by value; ``None`` if only b is zeros."""
    error = reference = 0.0
    for n in range(len(a)):
        weight = 1.0 if weights is None else float(weights[n])
        for x, y in zip(a[n].ravel().tolist(), b[n].ravel().tolist()):
            error += weight * (x - y) ** 2
            reference += weight * y**2
    if error == 0:
        return 0.0
    return math.sqrt(error / reference) if reference else None


def near(value):
    """Sums in another order; and bases multiplied in another one."""
    return None if value is None else pytest.approx(value, rel=1e-4, abs=1e-12)


def check_layers(found, a, b):
    """Hold errors by layer, and their worst rows, against loops over `a` and `b`."""
    for layer, one in enumerate(found.layers):
        ours, theirs = a[:, layer], b[:, layer]
        assert one.relative_error == near(relative(ours, theirs))
        errors = [relative(ours[n : n + 1], theirs[n : n + 1]) or 0.0 for n in range(len(a))]
        assert (one.worst_row_error or 0.0) == near(max(errors))
        if max(errors):
            assert errors[one.worst_token] == near(max(errors))


def check_tokens(found, a, b, shared):
    """Hold the worst tokens against loops, their layers being of `shared`."""
    errors = [relative(a[n : n + 1], b[n : n + 1]) or 0.0 for n in range(len(a))]
    expected = sorted((error for error in errors if error), reverse=True)[: len(found.worst)]
    assert [one.relative_error for one in found.worst] == [near(error) for error in expected]
    for one in found.worst:
        assert errors[one.token_id] == near(one.relative_error)
        n = slice(one.token_id, one.token_id + 1)
        by_layer = {layer: relative(a[n, layer], b[n, layer]) or 0.0 for layer in shared}
        assert one.layer_error == near(max(by_layer.values()))
        assert by_layer[one.layer] == near(one.layer_error)


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_packs_of_every_encoding_compare_as_their_decoded_rows(name, samples, tmp_path):
    """Two packs of other values, in another order, differ as rows decoded value by value do."""
    first, second = samples[name], write(tmp_path / "b.tolpack", RECIPES[name], seed=1)
    found = diff_tables(first.path, second.path, worst=4)
    a, b = reference_rows(first.data), reference_rows(second.data)
    assert found.relative_error == near(relative(a, b))
    check_layers(found, a, b)
    kept = [n for n, layer in enumerate(RECIPES[name].layers) if not layer.dropped]
    check_tokens(found, a, b, kept)
    at = 0
    for one, chunk in zip(found.chunks, first.recipe.runs, strict=True):
        ids = np.flatnonzero((first.slots >= at) & (first.slots < at + chunk.rows))
        assert (one.tokens, one.encoding) == (chunk.rows, chunk.frame)
        assert one.relative_error == near(relative(a[ids], b[ids]))
        at += chunk.rows


@pytest.mark.parametrize("reference", ["b8.tolpack", "t.npy"])
def test_counts_weigh_tokens(made, reference):
    """With counts: the weighted error, the share of each chunk, and counts of the worst tokens."""
    found = diff_tables(made / "b4.tolpack", made / reference, frequencies=made / "counts.npy")
    a, b, counts = (all_rows(made / name) for name in ("b4.tolpack", reference, "counts.npy"))
    assert found.weighted_error == near(relative(a, b, counts))
    assert found.weighted_error != near(found.relative_error)
    assert found.differing_tokens == VOCAB
    check_layers(found, a, b)
    check_tokens(found, a, b, range(LAYERS))
    assert [one.count for one in found.worst] == [counts[one.token_id] for one in found.worst]
    ordered, at = np.sort(counts)[::-1], 0
    for chunk in found.chunks:
        assert chunk.share == near(ordered[at : at + chunk.tokens].sum() / counts.sum())
        at += chunk.tokens


def test_a_checkpoint_is_compared_by_its_own_rows(memoryllm, tmp_path):
    """Of a checkpoint the errors are those against the rows that its FFNs compute."""
    from tolpack.sources.open_source import open_source

    path = tolpack.build(memoryllm, tmp_path / "p.tolpack", bits=4).path
    source = open_source(memoryllm)
    ids = np.arange(source.vocab_size)
    exact = np.stack([source.field_rows(n)(ids) for n in range(source.num_layers)], axis=1)
    found = diff_tables(path, memoryllm)
    assert found.relative_error == near(relative(all_rows(path), exact.astype(np.float64)))
    assert 0.05 < found.relative_error < 0.2


def test_equal_tables_are_said_to_be_equal(made):
    """Values that are all the same, stored in another order and form, are equal; one is not."""
    found = diff_tables(made / "b16.tolpack", made / "t.npy")
    assert found.equal
    assert (found.relative_error, found.differing_tokens, found.worst) == (0.0, 0, ())
    assert "equal: every value" in run(made / "b16.tolpack", made / "t.npy").stdout
    table = np.load(made / "t.npy")
    table[7, 2, 3] += 1
    np.save(made / "one.npy", table)
    found = diff_tables(made / "b16.tolpack", made / "one.npy")
    assert (found.equal, found.differing_tokens) == (False, 1)
    assert [(one.token_id, one.layer) for one in found.worst] == [(7, 2)]
    assert [one.worst_token for one in found.layers] == [None, None, 7]
    assert f"tokens that differ: 1 of {VOCAB}" in run(made / "b16.tolpack", made / "one.npy").stdout


def test_zeros_are_no_division(made):
    """Zero rows of both have no error; of the reference alone they are counted, without a ratio."""
    table = np.load(made / "t.npy")
    table[5], table[9, 1] = 0, 0
    np.save(made / "zeros.npy", table)
    path = tolpack.build(made / "zeros.npy", made / "z.tolpack", bits=16).path
    assert diff_tables(path, made / "zeros.npy").equal
    found = diff_tables(made / "b16.tolpack", made / "zeros.npy")
    assert (found.differing_tokens, found.zero_tokens) == (2, 1)
    assert [one.token_id for one in found.worst] == [9]
    assert (found.worst[0].layer, found.worst[0].layer_error) == (0, 0.0)
    assert (
        "zeros in B alone, and have no relative error: 1"
        in run(made / "b16.tolpack", made / "zeros.npy").stdout
    )
    np.save(made / "nothing.npy", np.zeros_like(table))
    found = printed(made / "b16.tolpack", made / "nothing.npy")
    assert (found["relative_error"], found["zero_tokens"]) == (None, VOCAB)


def test_dropped_layers_count_as_zeros(made):
    """A dropped layer has the error of zeros, is named, and is not a token's worst layer."""
    found = diff_tables(made / "dropped.tolpack", made / "b8.tolpack")
    assert [one.dropped for one in found.layers] == [None, "A", None]
    assert found.layers[1].relative_error == 1.0
    assert {one.layer for one in found.worst} <= {0, 2}
    found = diff_tables(made / "b8.tolpack", made / "dropped.tolpack")
    assert [one.dropped for one in found.layers] == [None, "B", None]
    assert found.layers[1].relative_error is None
    found = diff_tables(made / "dropped.tolpack", made / "dropped.tolpack")
    assert (found.equal, found.layers[1].dropped) == (True, "both")
    text = run(made / "dropped.tolpack", made / "b8.tolpack").stdout
    assert "dropped in A" in text
    assert "count as the zeros" in text


# -- streaming -----------------------------------------------------------------------------------


def test_block_sizes_do_not_change_the_result(samples, monkeypatch, tmp_path):
    """Small blocks give what one block for all gives, up to the order of sums."""
    other = write(tmp_path / "b.tolpack", RECIPES["steps"], seed=1).path
    whole = diff_tables(samples["steps"].path, other).to_json()
    monkeypatch.setattr(diff_module, "_BLOCK_BYTES", 5 * 3 * 9 * 4)
    parts = diff_tables(samples["steps"].path, other).to_json()
    for key in ("layers", "chunks", "worst"):
        for one, two in zip(whole[key], parts[key], strict=True):
            assert one == pytest.approx(two)
    assert whole["relative_error"] == pytest.approx(parts["relative_error"])


def test_each_block_of_the_pack_is_read_once(samples, monkeypatch):
    """The walk follows the frames: none is read twice, even if a step of its own would cut them."""
    monkeypatch.setattr(diff_module, "_BLOCK_BYTES", 7 * 3 * 9 * 4)  # frames have 3 and 4 rows
    path, seen = samples["steps"].path, []
    with tolpack.open(path) as pack, diff_module._open_reference(path, None, None) as reference:
        for _, ids, ours, theirs in diff_module._paired_rows(path, pack, reference):
            assert np.array_equal(ours, theirs)
            assert len(ids) <= 7
            seen += ids.tolist()
        assert pack.stats()["block_reads"] == sum(view.blocks for view in pack.container.chunks)
    assert sorted(seen) == list(range(len(seen)))


def test_memory_does_not_grow_with_the_table(tmp_path, monkeypatch):
    """A table of 20 MB is compared in a few, and progress counts its tokens."""
    np.save(tmp_path / "t.npy", np.random.default_rng(0).standard_normal((20_000, 4, 64)) / 8)
    np.save(tmp_path / "t.npy", np.load(tmp_path / "t.npy").astype(np.float32))
    path = tolpack.build(tmp_path / "t.npy", bits=4).path
    monkeypatch.setattr(diff_module, "_BLOCK_BYTES", 1 << 20)

    class Counting(Reporter):
        """Counts tokens."""

        def __init__(self):
            self.done = 0

        def phase(self, name, total, unit):
            """See `Reporter`."""
            from contextlib import nullcontext

            assert (total, unit) == (20_000, "tok")
            return nullcontext(lambda count: setattr(self, "done", self.done + count))

    reporter = Counting()
    with memory_limit(12):
        diff_tables(path, path, reporter=reporter)
    assert reporter.done == 20_000


# -- text ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Two packs of the demo model's vocabulary, with its tokenizer beside them."""
    folder = tmp_path_factory.mktemp("named")
    rng = np.random.default_rng(0)
    np.save(folder / "t.npy", rng.standard_normal((4096, 2, 4)).astype(np.float16))
    for bits in (4, 8):
        tolpack.build(folder / "t.npy", folder / f"{bits}.tolpack", bits=bits)
    shutil.copy(MODEL / "tokenizer.json", folder)
    return folder


def test_tokens_are_named_by_the_tokenizer_beside(named, tmp_path):
    """Worst tokens have their texts from the file beside the packs, or from a given one."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found = diff_tables(named / "4.tolpack", named / "8.tolpack")
    whole = [one for one in found.worst if one.text.isascii()]
    assert len(whole) > 3
    assert [one.text for one in whole] == [library.decode([one.token_id]) for one in whole]
    shown = run(named / "4.tolpack", named / "8.tolpack").stdout
    assert all(f"{one.text!r}  " in shown for one in whole)
    assert all(one.worst_text in shown for one in found.layers)
    alone = shutil.copy(named / "4.tolpack", tmp_path)
    assert diff_tables(alone, alone, worst=0).worst == ()
    assert diff_tables(alone, named / "8.tolpack").worst == found.worst
    other = shutil.copy(named / "8.tolpack", tmp_path / "other.tolpack")
    assert [one.text for one in diff_tables(alone, other).worst] == [None] * 10
    given = diff_tables(alone, other, tokenizer=MODEL / "tokenizer.json")
    assert given.worst == found.worst


def test_a_tokenizer_that_nobody_asked_for_may_be_useless(named, tmp_path):
    """An unreadable file beside a pack costs the names, with a line; a given one is an error."""
    path = shutil.copy(named / "4.tolpack", tmp_path)
    (tmp_path / "tokenizer.json").write_text("no", encoding="utf-8")
    result = run(path, named / "8.tolpack", "--tokenizer", tmp_path / "tokenizer.json")
    assert result.exit_code == 1
    assert "tokenizer.json is a text file, expected the tokenizer.json of a model" in result.stderr
    result = run(path, shutil.copy(named / "8.tolpack", tmp_path))
    assert result.exit_code == 0
    assert "shown without their texts" in result.stderr


def test_a_tokenizer_of_a_larger_vocabulary_is_noticed(made):
    """A tokenizer that knows more tokens than the pack is said to be perhaps the wrong one."""
    result = run(made / "b4.tolpack", made / "b8.tolpack", "--tokenizer", MODEL / "tokenizer.json")
    assert result.exit_code == 0
    assert "more tokens (4,096)" in result.stderr


# -- errors --------------------------------------------------------------------------------------


def test_json_has_the_keys_of_the_contract(made):
    """`diff --json` prints everything that the library returns."""
    found = printed(made / "b4.tolpack", made / "t.npy", "--frequencies", made / "counts.npy",
                    "--worst", 3)  # fmt: skip
    assert found == json.loads(json.dumps(diff_tables(
        made / "b4.tolpack", made / "t.npy", frequencies=made / "counts.npy", worst=3
    ).to_json()))  # fmt: skip
    assert set(found) == {
        "a", "b", "vocab_size", "num_layers", "hidden_size", "equal", "differing_tokens",
        "zero_tokens", "relative_error", "weighted_error", "layers", "chunks", "worst",
        "warnings",
    }  # fmt: skip
    assert len(found["worst"]) == 3


def test_what_cannot_be_compared_says_why(made):
    """Each mistake gives one line that names what to change, and exit code 1, or 2 for usage."""
    a, b, table = (made / name for name in ("b4.tolpack", "b8.tolpack", "t.npy"))
    np.save(made / "small.npy", np.zeros((VOCAB, 2, HIDDEN), np.float32))
    np.save(made / "none.npy", np.zeros(VOCAB, np.int64))
    nan = np.load(table)
    nan[3, 1, 0] = np.nan
    np.save(made / "nan.npy", nan)
    for args, code, words in [
        ((a, made / "small.npy"), 1, f"{VOCAB} tokens × 2 layers × {HIDDEN}: only tables of one"),
        ((table, a), 1, "name the pack first"),
        ((a, made / "absent.pt"), 1, "does not exist"),
        ((made / "absent.tolpack", b), 1, "cannot open"),
        ((a, b, "--layers", 3), 1, "is a pack"),
        ((a, b, "--map", "meta"), 2, "--map is for checkpoints"),
        ((a, b, "--key-map", "m.toml"), 2, "--key-map is for checkpoints"),
        ((a, table, "--map", "meta", "--key-map", "m.toml"), 2, "give one of them"),
        ((a, b, "--worst", -1), 2, "not in the range"),
        ((a, b, "--frequencies", made / "none.npy"), 1, "zeros only"),
        ((a, b, "--frequencies", table), 1, "must hold integer counts"),
        ((a, made / "nan.npy"), 1, "NaN or Inf at token 3, layer 1"),
        ((a,), 2, "Missing argument"),
    ]:
        result = run(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert words in result.stderr
    with pytest.raises(tolpack.ConfigError, match="worst is -1"):
        diff_tables(a, b, worst=-1)


def test_values_out_of_range_have_no_error(samples, tmp_path):
    """A pack whose multiplier makes values infinite is refused by name, on either side."""
    sound = samples["multiplier"].path
    path = tmp_path / "inf.tolpack"
    path.write_bytes(forge(sound.read_bytes(), lambda h: h["tables"][0].update(multiplier=3e38)))
    for pair in ((path, sound), (sound, path)):
        with pytest.raises(tolpack.ConfigError, match=r"inf\.tolpack holds NaN or Inf at token"):
            diff_tables(*pair)


def test_damage_is_blamed_on_the_right_file(made, tmp_path):
    """A damaged record, and a damaged header, name the pack that they are in."""
    data = bytearray((made / "b8.tolpack").read_bytes())
    blocks = [one for one in split(bytes(data))[1]["sections"] if one["kind"] == "blocks"]
    for offset, code in ((blocks[-1]["offset_bytes"] + 3, "block-checksum"), (20, "preamble")):
        changed = bytearray(data)
        changed[offset] ^= 1
        damaged = tmp_path / "damaged.tolpack"
        damaged.write_bytes(changed)
        for pair in ((damaged, made / "b4.tolpack"), (made / "b4.tolpack", damaged)):
            result = run(*pair)
            assert (result.exit_code, result.stdout) == (1, "")
            assert code in result.stderr
            assert str(damaged) in result.stderr
            assert "b4.tolpack" not in result.stderr
