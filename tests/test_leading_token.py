"""The token that texts of a model begin with is what its tokenizer puts there."""

import json

import pytest

from tolpack.hf.leading_token import leading_token

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [5], "tokens": ["<bos>"]}},
}
PLAIN = {"type": "ByteLevel", "add_prefix_space": False}


def write(folder, processor, **settings):
    """Write the two files of a tokenizer."""
    tokenizer = json.dumps({"post_processor": processor})
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("processor", "settings", "found"),
    [
        (TEMPLATE, {}, 5),
        ({"type": "Sequence", "processors": [PLAIN, TEMPLATE]}, {}, 5),
        (PLAIN, {}, None),
        (None, {}, None),
        (PLAIN, {"add_bos_token": True}, 2),
        (TEMPLATE, {"add_bos_token": False}, None),
        ({"type": "TemplateProcessing", "single": []}, {}, None),
    ],
)
def test_the_tokenizer_decides(tmp_path, processor, settings, found):
    """Its setting first, then its template."""
    write(tmp_path, processor, **settings)
    assert leading_token(tmp_path, 2) == found


def test_without_a_tokenizer_there_is_none(tmp_path):
    """Nor with a file that is not JSON."""
    assert leading_token(tmp_path, 2) is None
    (tmp_path / "tokenizer.json").write_text("[", encoding="utf-8")
    assert leading_token(tmp_path, 2) is None
