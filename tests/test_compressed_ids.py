"""Token ids are compressed for Engram as its demo does it."""

import json

import numpy as np
import pytest
from slow_ngrams import save_tokenizer, slow_compressed_ids

from tolpack.errors import CheckpointError
from tolpack.sources.families.compressed_ids import compressed_token_ids

TEXTS = [
    "<pad>", "The", " the", "THE ", "thé", " ", "  ", "\n", " \t x", "x", "\u00a0", "ﬁt", "fit",
    "Ａ", "a", "A\ufffd", "a\ufffd", "\ufffd", "ΣΑΣ", "σασ", "İ", "i", "½", "1⁄2", "e\u0301",
    "\u0301", "\u200b", "ß", "ss", "Ⅻ", "xii", "東", "東 ", "a b", "a\n\nB", "", "\ue000", "\u3000",
    "각", "가",
]  # fmt: skip


def test_ids_are_those_of_a_slow_implementation(tmp_path):
    """Case, accents, widths and spaces do not tell tokens apart; broken characters do."""
    found = compressed_token_ids(save_tokenizer(tmp_path, TEXTS))
    assert found.dtype == np.uint32
    assert found.tolist() == slow_compressed_ids(TEXTS)
    by_text = dict(zip(TEXTS, found.tolist()))
    assert by_text["The"] == by_text[" the"] == by_text["THE "] == by_text["thé"]
    assert by_text["A\ufffd"] != by_text["a\ufffd"]
    assert by_text[" "] == by_text["\n"] != by_text[""]


def test_bytes_of_characters_keep_ids_of_their_own(tmp_path):
    """Halves of characters are compared by their spelling in a byte-level vocabulary."""
    from tokenizers import decoders, pre_tokenizers

    tokens = ["ĠA", "a", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = list(dict.fromkeys(tokens))
    found = compressed_token_ids(save_tokenizer(tmp_path, tokens, decoders.ByteLevel())).tolist()
    by_token = dict(zip(tokens, found))
    assert by_token["ĠA"] == by_token["a"] == by_token["A"] == 0
    broken = [by_token[chr(code)] for code in range(0xC0, 0x100)]
    assert len(set(broken)) == len(broken)


def test_added_tokens_are_compressed_too(tmp_path):
    """Special tokens behind the vocabulary have ids, which are not left out of texts."""
    path = save_tokenizer(tmp_path, ["a", "b"])
    saved = json.loads(path.read_text("utf-8"))
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    saved["added_tokens"] = [{"id": 2, "content": "<|END|>", "special": True, **flags}]
    path.write_text(json.dumps(saved), "utf-8")
    assert compressed_token_ids(path).tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"model": {"type": "BPE"'])
def test_unreadable_tokenizers_are_named(tmp_path, content):
    """A tokenizer that is missing or no tokenizer gives a `CheckpointError` with its path."""
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        compressed_token_ids(path)


def test_a_tokenizer_without_tokens_is_named(tmp_path):
    """No token makes no hash."""
    path = save_tokenizer(tmp_path, ["a"])
    saved = json.loads(path.read_text("utf-8"))
    saved["model"]["vocab"] = {}
    path.write_text(json.dumps(saved), "utf-8")
    with pytest.raises(CheckpointError, match="has no tokens"):
        compressed_token_ids(path)
