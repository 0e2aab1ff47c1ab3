"""Small ``tokenizer.json`` files with every kind of part that the library knows."""

from __future__ import annotations

import json
from typing import Any

_LETTERS = {letter: number for number, letter in enumerate("abcdenrsu12.Ġ ▁")}
_BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {**_LETTERS, "en": 20, "end": 21},
        "merges": ["e n", "en d"]}  # fmt: skip
_MODELS: tuple[dict[str, Any], ...] = (
    _BPE,
    {**_BPE, "byte_fallback": True, "unk_token": "a", "fuse_unk": True},
    {"type": "WordLevel", "vocab": {"[UNK]": 0, "end": 1, "aaa": 2}, "unk_token": "[UNK]"},
    {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
     "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "en": 1, "##d": 2, "a": 3, "##a": 4}},
    {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
     "vocab": [["<unk>", 0.0], ["en", -1.0], ["d", -2.0], ["a", -2.5], ["aa", -3.0]]},
)  # fmt: skip
_NORMALIZERS: tuple[dict[str, Any] | None, ...] = (
    None, {"type": "NFKC"}, {"type": "Lowercase"},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
     "strip_accents": None, "lowercase": True},
    {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "strip_left": True, "strip_right": True},
)  # fmt: skip
_SPLITS: tuple[dict[str, Any] | None, ...] = (
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "Whitespace"}, {"type": "Digits", "individual_digits": True}, None,
    {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s"}, "behavior": "Isolated", "invert": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"},
                                           {"type": "BertPreTokenizer"}]},
)  # fmt: skip
_DECODERS: tuple[dict[str, Any] | None, ...] = (
    None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "ByteFallback"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"type": "Fuse"},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "d"},
)  # fmt: skip
_PROCESSORS: tuple[dict[str, Any] | None, ...] = (
    None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}},
                                              {"Sequence": {"id": "A", "type_id": 0}}],
     "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
     "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}},
)  # fmt: skip
_ADDED = [{"id": 30, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}]  # fmt: skip
_TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
_PADDING = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}  # fmt: skip


def tokenizer_seeds() -> list[bytes]:
    """Return files that together have every part above."""
    found = []
    for number in range(18):
        value = {
            "version": "1.0",
            "truncation": _TRUNCATION if number % 5 == 4 else None,
            "padding": _PADDING if number % 7 == 6 else None,
            "added_tokens": _ADDED if number % 2 else [],
            "normalizer": _NORMALIZERS[number % len(_NORMALIZERS)],
            "pre_tokenizer": _SPLITS[number % len(_SPLITS)],
            "post_processor": _PROCESSORS[number % len(_PROCESSORS)],
            "decoder": _DECODERS[number % len(_DECODERS)],
            "model": _MODELS[number % len(_MODELS)],
        }
        found.append(json.dumps(value).encode())
    return found
