"""`tolpack rows --text`: a text's tokens by name, where they are stored, and how large they are."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.demo import MODEL
from tolpack.model.text import TextTokenizer
from tolpack.report.row_tables import quote_token

TEXT = "The cat\n sat — 日 sat"


def run(*args):
    """Run ``tolpack rows`` in this process."""
    return CliRunner().invoke(main, ["rows", *map(str, args)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pack of the demo model's vocabulary with layer 1 dropped, and its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    np.save(folder / "t.npy", rng.standard_normal((4096, 3, 4)).astype(np.float16))
    np.save(folder / "counts.npy", rng.integers(0, 999, 4096))
    tolpack.build(
        folder / "t.npy", folder / "p.tolpack", frequencies=folder / "counts.npy", drop="1"
    )
    shutil.copy(MODEL / "tokenizer.json", folder)
    return folder


def test_a_line_for_each_token_in_order(folder):
    """Each line has the token, visibly, its id, place, bytes read, and the norms of its row."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = library.encode(TEXT, add_special_tokens=False).ids
    result = run(folder / "p.tolpack", "--text", TEXT)
    assert result.exit_code == 0, result.stderr
    header, _, *lines = result.stdout.split("\n\n")[0].splitlines()
    assert header.split()[:6] == ["token", "id", "slot", "chunk", "read", "norm"]
    assert len(lines) == len(ids)
    assert "".join(line.split("'")[1] for line in lines[:4]) == "The cat\\n"
    with tolpack.open(folder / "p.tolpack") as pack:
        rows = pack.rows(ids).astype(np.float64)
        order = pack.most_frequent(pack.vocab_size).tolist()
        read = pack.extents(ids)[:, 1]
        ends = np.cumsum([view.chunk.rows for view in pack.container.chunks])
    for line, token, row, length in zip(lines, ids, rows, read):
        cells = line.rpartition("'")[2].split()
        slot = order.index(token)
        assert cells[:5] == [str(token), str(slot), str(sum(ends <= slot)), str(length), "B"]
        assert float(cells[5]) == pytest.approx(np.sqrt((row**2).sum()), rel=1e-3)
        assert float(cells[6]) == pytest.approx(np.sqrt((row[0] ** 2).sum()), rel=1e-3)
        assert cells[7] == "-"  # dropped
        assert float(cells[8]) == pytest.approx(np.sqrt((row[2] ** 2).sum()), rel=1e-3)


def test_edited_tokens_are_in_no_chunk(folder, tmp_path):
    """Their rows come from edits, beside the pack or in its file, and are counted."""
    pack = folder / "p.tolpack"
    main(["edit", str(pack), "-o", str(tmp_path / "e"), "--token", " the", "--zero"],
         standalone_mode=False)  # fmt: skip
    tolpack.merge(pack, [tmp_path / "e"], tmp_path / "m")
    shutil.copy(MODEL / "tokenizer.json", tmp_path)
    for words in ([pack, "--edits", tmp_path / "e"], [tmp_path / "m"]):
        result = run(*words, "--text", " of the")
        assert result.exit_code == 0, result.stderr
        of, the = result.stdout.split("\n\n")[0].splitlines()[-2:]
        assert of.rpartition("'")[2].split()[2].isdecimal()
        assert the.rpartition("'")[2].split()[2] == "edits"
        assert "1 read of records" in result.stdout
        assert ", and 1 of 2 rows from edits; opening" in result.stdout


def test_json_adds_the_tokens(folder):
    """With a tokenizer the JSON has the texts of the tokens too, for a text and for ids."""
    plain = json.loads(run(folder / "p.tolpack", 5, "--json").stdout)
    assert set(plain) == {"token_ids", "rows", "stats"}
    found = json.loads(run(folder / "p.tolpack", "--text", " of the", "--json").stdout)
    assert set(found) == {"token_ids", "tokens", "rows", "stats"}
    assert found["tokens"] == [" of", " the"]
    again = json.loads(
        run(folder / "p.tolpack", *found["token_ids"], "--tokenizer", MODEL / "tokenizer.json",
            "--json").stdout
    )  # fmt: skip
    assert again["tokens"] == found["tokens"]
    assert again["rows"] == found["rows"]


def test_ids_are_named_by_a_given_tokenizer(folder):
    """Beside ids the table has their texts, in the form that it has without."""
    plain = run(folder / "p.tolpack", 5, 300).stdout
    named = run(folder / "p.tolpack", 5, 300, "--tokenizer", MODEL / "tokenizer.json").stdout
    assert (named.count("5 '%'"), named.count("300 'ent'")) == (3, 3)
    unnamed = named.replace("5 '%'", "5").replace("300 'ent'", "300")
    without_rule = [
        [word for word in text.split() if set(word) != {"-"}] for text in (plain, unnamed)
    ]
    assert without_rule[0] == without_rule[1]


def test_layers_without_room_are_left_to_the_ids(tmp_path):
    """A pack of many layers has a line per token still, and says where its layers' norms are."""
    np.save(tmp_path / "t.npy", np.ones((4096, 13, 1), np.float16))
    path = tolpack.build(tmp_path / "t.npy", bits=16).path
    text = run(path, "--text", "cat", "--tokenizer", MODEL / "tokenizer.json").stdout
    assert "layer 0" not in text
    assert "norms by layer: tolpack rows PACK" in text
    assert all(len(line) < 80 for line in text.splitlines())


def test_texts_are_shown_visibly():
    """Spaces stand in quotes, what cannot be printed is escaped, and long tokens are cut."""
    assert quote_token(" the") == "' the'"
    assert quote_token("\n\u202e\x1b[") == "'\\n\\u202e\\x1b['"
    assert len(quote_token("x" * 500)) == 26
    assert quote_token(None) == "?"


def test_texts_of_tokens_make_up_the_text():
    """Put together, the texts of a text's tokens are the text, a leading space and all."""
    tokenizer = TextTokenizer(MODEL / "tokenizer.json")
    text = "  Of the\tcats,\n\nit's"
    assert "".join(tokenizer.text(n) for n in tokenizer.encode(text).tolist()) == text
    assert "".join(map(str, tokenizer.encode("日").tolist()))
    assert all(tokenizer.text(n) for n in tokenizer.encode("日").tolist())  # parts of a character
    assert tokenizer.text(4096) is None
    assert tokenizer.text(1 << 40) is None


def test_wrong_calls_say_what_to_give(folder, tmp_path):
    """Each mistake gives one line with the remedy; wrong usage exits with 2, the rest with 1."""
    alone = shutil.copy(folder / "p.tolpack", tmp_path / "alone.tolpack")
    np.save(tmp_path / "t.npy", np.zeros((50, 1, 4), np.float16))
    small = tolpack.build(tmp_path / "t.npy", bits=16).path
    tokenizer = ("--tokenizer", MODEL / "tokenizer.json")
    for args, code, words in [
        ((alone,), 2, "give token ids, like 5 17, or a --text"),
        ((alone, 5, "--text", "cat"), 2, "give token ids, like 5 17, or a --text"),
        ((alone, "cat"), 2, "'cat' is not a token id; for words give --text 'cat'"),
        ((alone, "--text", "cat"), 1, "give --tokenizer tokenizer.json"),
        ((alone, "--text", "cat", "--tokenizer", tmp_path / "no.json"), 1, "cannot read tokenizer"),
        ((alone, "--text", "", *tokenizer), 1, "no tokens"),
        ((alone, "--text", "a\udcff", *tokenizer), 1, "the text is not valid UTF-8"),
        ((small, "--text", "!cat", *tokenizer), 1, "but the pack has 50 tokens: use the tokenizer"),
        ((tmp_path / "t.npy", "--text", "cat", *tokenizer), 1, "t.npy is a .npy array, not a p"),
    ]:
        result = run(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert words in result.stderr
        assert code == 2 or result.stderr.count("\n") == 1
