"""`tolpack generate`: the text of a checkpoint and of packs, streamed, and where it ends."""

import json
import shutil

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.demo import MODEL
from tolpack.evaluation.text_generation import end_tokens
from tolpack.model.decoder import Decoder
from tolpack.model.text import TextTokenizer
from tolpack.model.text_stream import TextStream
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

PROMPT = "The with statement"
GREEDY = ("--temperature", "0")


def run(*args, stdin=None):
    """Run ``tolpack generate`` in this process."""
    return CliRunner().invoke(main, ["generate", *map(str, args)], input=stdin)


def generated(*args):
    """Return the JSON of a run that must succeed."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def word_tokenizer(folder, words, special=(), decoder=None):
    """Write a ``tokenizer.json`` whose tokens are `words`, of which `special` are special."""
    path = folder / "tokenizer.json"
    added = [
        {"id": words.index(one), "content": one, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for one in special
    ]  # fmt: skip
    value = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": decoder, "model": {"type": "WordLevel", "unk_token": words[0],
                                      "vocab": {word: n for n, word in enumerate(words)}},
    }  # fmt: skip
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack of the demo model at 16 bits."""
    return tolpack.build(MODEL, tmp_path_factory.mktemp("pack") / "p.tolpack", bits=16).path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny model of 16 positions and a tokenizer of its 97 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    models.save_model(folder)
    word_tokenizer(folder, [f"w{n}" for n in range(97)])
    return next(folder.glob("*.pt"))


@pytest.fixture(scope="module")
def tokenizer():
    """The demo model's tokenizer."""
    return TextTokenizer(MODEL / "tokenizer.json")


# -- which text ----------------------------------------------------------------------------------


def test_greedy_text_of_a_pack_is_the_checkpoints(pack, tokenizer):
    """The same tokens with a pack of 16 bits, without it, and by full forward passes."""
    alone, packed = (
        generated(MODEL, *one, PROMPT, "--tokens", 12, *GREEDY) for one in ([], [pack])
    )
    assert packed["token_ids"] == alone["token_ids"]
    assert packed["text"] == alone["text"]
    ids = tokenizer.encode(PROMPT).tolist()
    decoder = Decoder(open_checkpoint(MODEL))
    for token in alone["token_ids"]:
        assert int(decoder(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_models_that_transformers_runs_generate(tmp_path, family):
    """With a lossless pack, without one, and by transformers' own loop: the same tokens."""
    from mounted_models import ALL_IDS, ATTENTION, stock
    from saved_tables import save_models

    model, folder = save_models(tmp_path, ALL_IDS, ATTENTION)[family]
    source = torch.Generator().manual_seed(1)
    for weight in model.parameters():  # some are zero at first, and would hide the table's rows
        weight.data = torch.randn(weight.shape, generator=source).to(weight.dtype) / 3
    model.save_pretrained(folder, max_shard_size="6KB")
    word_tokenizer(folder, [f"w{n}" for n in range(48)])
    for name in ("config.json", "generation_config.json"):  # random models end texts at once
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": 1000}))
    built = tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless").path
    alone, packed = (
        generated(folder, *one, "w3 w7 w39", "--tokens", 8, *GREEDY) for one in ([], [built])
    )
    ids = torch.tensor([[3, 7, 39]])
    expected = stock(folder).float().generate(
        ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    )  # fmt: skip
    assert packed["token_ids"] == alone["token_ids"] == expected[0, 3:].tolist()


def test_sampled_text_depends_on_the_seed_and_the_temperature(tiny):
    """The same seed gives the same text; another seed, or temperature, another one."""
    first, again, other, cold = (
        generated(tiny, "w1 w2", "--tokens", 14, *more)["token_ids"]
        for more in ([], ["--seed", 0], ["--seed", 1], GREEDY)
    )
    assert first == again
    assert first != other
    assert first != cold


def test_edits_of_the_pack_count(pack, tmp_path, tokenizer):
    """The text is the one that the pack gives with its edits, and edits of no pack are refused."""
    ids = np.arange(4096)
    np.save(tmp_path / "all.npy", ids)
    edits = tmp_path / "zero.edits"
    CliRunner().invoke(
        main, ["edit", str(pack), "-o", str(edits), "--tokens", str(tmp_path / "all.npy"), "--zero"]
    )
    found = generated(MODEL, pack, PROMPT, "--edits", edits, "--tokens", 8, *GREEDY)
    decoder = Decoder(open_checkpoint(MODEL)).with_memory(
        lambda layer, ids: torch.zeros(*ids.shape, 192)
    )
    assert found["token_ids"] == list(decoder.generate(tokenizer.encode(PROMPT).tolist(), 8))
    refused = run(MODEL, PROMPT, "--edits", edits)
    assert (refused.exit_code, "none is named" in refused.stderr) == (1, True)


# -- what is printed -----------------------------------------------------------------------------


def test_the_prompt_and_the_text_are_all_of_standard_output(pack):
    """Progress, tokens a second and what lookups read are on standard error."""
    result = run(MODEL, pack, PROMPT, "--tokens", 12, *GREEDY)
    text = generated(MODEL, pack, PROMPT, "--tokens", 12, *GREEDY)["text"]
    assert "\n" in text
    assert result.stdout == f"{PROMPT}{text}\n"
    tokenizer, first, second = result.stderr.splitlines()
    assert tokenizer == f"tokenizer: {MODEL / 'tokenizer.json'} (4,096 tokens)"
    assert first.startswith("12 tokens in ")
    assert "for the prompt's 3 tokens: " in first
    assert first.endswith(" tokens a second")
    assert second == f"{pack}: lookups read 4.67 KB a token"


def test_json_has_the_text_and_its_costs(pack, tokenizer):
    """One object; speeds and bytes follow from the tokens that were fed."""
    found = generated(MODEL, pack, PROMPT, "--tokens", 12, *GREEDY)
    assert set(found) == {
        "prompt", "text", "token_ids", "tokens", "seconds", "tokens_per_second", "pack",
        "prompt_tokens", "prompt_seconds", "stopped", "temperature", "seed", "positions",
        "read_bytes_per_token", "warnings",
    }  # fmt: skip
    assert (found["prompt"], found["pack"], found["stopped"]) == (PROMPT, str(pack), "tokens")
    assert (found["tokens"], found["prompt_tokens"], found["warnings"]) == (12, 3, [])
    rate = 11 / (found["seconds"] - found["prompt_seconds"])
    assert found["tokens_per_second"] == pytest.approx(rate)
    fed = [*tokenizer.encode(PROMPT).tolist(), *found["token_ids"][:-1]]
    with tolpack.open(pack) as opened:
        assert found["read_bytes_per_token"] == pytest.approx(opened.extents(fed)[:, 1].mean())


def test_one_token_has_no_speed():
    """There is no second token to time."""
    found = generated(MODEL, PROMPT, "--tokens", 1)
    assert (found["tokens"], found["tokens_per_second"], found["pack"]) == (1, None, None)
    assert run(MODEL, PROMPT, "--tokens", 1).stderr.splitlines()[1].startswith("1 token in ")


def test_a_terminal_gets_no_escape_sequences():
    """Control characters are spelled; line ends, tabs, spaces and joiners stand as they are."""
    prompt = "a\x1b[31m\r\n\tb\u00a0\u200dc\u202ed é日"
    result = run(MODEL, prompt, "--tokens", 1)
    assert result.stdout.startswith("a\\x1b[31m\\r\n\tb\u00a0\u200dc\\u202ed é日")
    assert generated(MODEL, prompt, "--tokens", 1)["prompt"] == prompt


@pytest.mark.parametrize("text", ["日本 — é 🎉\n\ttab", " leading space", "plain words here"])
def test_pieces_are_whole_characters(tokenizer, text):
    """However many tokens a character takes; together the pieces are the text."""
    ids = tokenizer.encode(text).tolist()
    stream = TextStream(tokenizer)
    pieces = [*map(stream.add, ids), stream.end()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert ("" in pieces[:-1]) == (not text.isascii())


def test_spaces_before_words_are_kept(tmp_path):
    """Also where the tokenizer strips the first space of a text, as SentencePiece does."""
    path = word_tokenizer(
        tmp_path, ["<unk>", "▁The", "▁with", "s"],
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    )  # fmt: skip
    stream = TextStream(TextTokenizer(path), [1])
    assert [stream.add(token) for token in (2, 3, 1)] == [" with", "s", " The"]


def test_bytes_that_are_no_characters_are_not_held_back(tokenizer):
    """A model may generate them for ever: after eight tokens, and at the end, they are shown."""
    spelled = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    broken = spelled["ð"]  # the byte 0xF0, which begins a character of four
    stream = TextStream(tokenizer)
    pieces = [stream.add(broken) for _ in range(8)]
    assert [bool(one) for one in pieces] == [False] * 7 + [True]
    assert stream.add(broken) == ""
    assert "\ufffd" in stream.end()
    assert stream.end() == ""


# -- where it ends -------------------------------------------------------------------------------


def test_the_text_ends_at_the_end_of_text_token(tmp_path):
    """Which is not part of the text; standard error says that the model ended it."""
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        shutil.copy(MODEL / name, tmp_path)
    whole = generated(MODEL, PROMPT, "--tokens", 12, *GREEDY)["token_ids"]
    place = next(n for n in range(2, 12) if whole[n] not in whole[:n])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": whole[place]}))
    found = generated(tmp_path, PROMPT, "--tokens", 12, *GREEDY)
    assert (found["token_ids"], found["stopped"]) == (whole[:place], "end_of_text")
    result = run(tmp_path, PROMPT, "--tokens", 12, *GREEDY)
    assert result.stderr.splitlines()[-1] == "The model ended the text."


def test_where_the_end_of_text_token_is_found(tmp_path):
    """In --config, else generation_config.json, else config.json, else by a special token's name;
    what is damaged counts for nothing.
    """
    encoder = TextTokenizer(word_tokenizer(tmp_path, ["a", "</s>", "<eos>"], ["</s>"]))
    assert end_tokens(tmp_path, encoder) == {1}
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": [5, 6]}}')
    assert end_tokens(tmp_path, encoder) == {5, 6}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert end_tokens(tmp_path / "model.pt", encoder) == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert end_tokens(tmp_path, encoder) == {5, 6}
    (tmp_path / "other.json").write_text('{"eos_token_id": 8}')
    assert end_tokens(tmp_path, encoder, tmp_path / "other.json") == {8}
    (tmp_path / "generation_config.json").write_text("{")
    (tmp_path / "config.json").write_text('["eos_token_id"]')
    assert end_tokens(tmp_path, encoder) == {1}


def test_the_text_stops_at_the_models_positions(tiny):
    """The last token needs no position; a prompt that fills them has one token after it."""
    found = generated(tiny, "w1 w2 w3", "--tokens", 100)
    assert (found["tokens"], found["stopped"], found["positions"]) == (14, "positions", 16)
    assert generated(tiny, "w1 " * 16)["tokens"] == 1
    assert generated(tiny, "w1 w2 w3", "--tokens", 14)["stopped"] == "tokens"
    assert run(tiny, "w1").stderr.splitlines()[-1] == (
        "The text stops at the model's 16 positions (max_position_embeddings): give a shorter "
        "prompt, or fewer --tokens."
    )


# -- wrong input ---------------------------------------------------------------------------------


def test_prompts_that_cannot_be_continued(tiny):
    """Too long, empty, not UTF-8."""
    result = run(tiny, "w1 " * 17)
    assert (result.exit_code, result.stderr.splitlines()[1:]) == (1, [
        "Error: the prompt has 17 tokens, but the model has 16 positions "
        "(max_position_embeddings): give a shorter prompt",
    ])  # fmt: skip
    result = run(tiny, "")
    assert (result.exit_code, result.stderr.splitlines()[1:]) == (
        1, ["Error: the prompt has no tokens: give some text"],
    )  # fmt: skip
    result = run(tiny, "ab\udcff")
    assert result.exit_code == 1
    assert "Error: the text is not valid UTF-8" in result.stderr
    result = run(tiny, "-", stdin=b"\xff")
    assert result.exit_code == 2
    assert "the prompt on standard input is not UTF-8" in result.stderr


def test_a_prompt_from_standard_input(tiny):
    """Without the end of its last line."""
    result = run(tiny, "-", "--json", stdin="w1\nw2\n")
    assert json.loads(result.stdout)["prompt"] == "w1\nw2"


def test_a_checkpoint_without_a_tokenizer(memoryllm):
    """The message says how to give one."""
    result = run(memoryllm, "w1")
    assert result.exit_code == 1
    assert "has no tokenizer.json inside or beside it" in result.stderr
    assert "--tokenizer tokenizer.json" in result.stderr


def test_tokenizers_of_other_models(tiny):
    """One of a larger vocabulary is refused, whatever the prompt."""
    other = MODEL / "tokenizer.json"
    for prompt in ("statement", "a"):
        result = run(tiny, prompt, "--tokenizer", other)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.splitlines()[1] == (
            f"Error: tokenizer {other} has 4,096 tokens, but the model has 97: use the tokenizer "
            "that the model was trained with"
        )


def test_a_pack_of_an_altered_checkpoint(tiny, tmp_path):
    """Of the same shape, but from other weights: it is warned of."""
    models.save_model(tmp_path, seed=1)
    other = tolpack.build(next(tmp_path.glob("*.pt")), tmp_path / "other.tolpack").path
    own = tolpack.build(tiny, tmp_path / "own.tolpack").path
    (warning,) = generated(tiny, other, "w1", "--tokens", 2)["warnings"]
    assert "other.tolpack" in warning
    assert generated(tiny, own, "w1", "--tokens", 2)["warnings"] == []
    assert f"Warning: {warning}" in run(tiny, other, "w1", "--tokens", 2).stderr


def test_a_pack_of_another_model(tiny, pack):
    """The shapes of both are named."""
    result = run(tiny, pack, "w1")
    assert result.exit_code == 1
    assert "they do not belong together" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the prompt is missing: give it last, in quotes"),
        (["p.tolpack"], "the prompt is missing: give it last, in quotes"),
        (["The", "with", "statement"], "4 arguments are given, and CHECKPOINT [PACK] PROMPT are"),
        (["x", "--temperature", "nan"], "expected 0 (the most likely token each time)"),
        (["x", "--temperature", "1e-9"], "a number from 0.01 to 100"),
        (["x", "--seed", "-1"], "--seed"),
        (["x", "--tokens", "0"], "--tokens"),
    ],
)
def test_wrong_usage(words, message):
    """Is seen before anything is opened."""
    result = run("nowhere", *words)
    assert result.exit_code == 2
    assert message in result.stderr
