"""The bundled model: it opens, its text fits it, and the demo judges packs of it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tolpack import cli, demo
from tolpack.model.text import read_token_ids
from tolpack.sources.open_source import open_source

FAST = (("8-bit", "none", 8), ("rank-50%-4-bit", "50%", 4))


@pytest.fixture
def short(tmp_path, monkeypatch):
    """The demo with the bundled model, a short text and two settings."""
    model = tmp_path / "model"
    model.mkdir()
    for path in demo.MODEL.iterdir():
        (model / path.name).symlink_to(path)
    (model / "heldout.txt").unlink()
    text = (demo.MODEL / "heldout.txt").read_text(encoding="utf-8")[:4000]
    (model / "heldout.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(demo, "MODEL", model)
    monkeypatch.setattr(demo, "SETTINGS", FAST)
    return tmp_path


def test_bundled_model_opens_and_its_text_fits():
    """The bundled model gives finite rows, and its tokenizer fits its vocabulary."""
    source = open_source(demo.MODEL)
    rows = source.field_rows(0)(np.arange(source.vocab_size))
    assert rows.shape == (source.vocab_size, source.hidden_size)
    text = demo.MODEL / "heldout.txt"
    ids = read_token_ids(text, source.vocab_size, demo.MODEL / "tokenizer.json")
    assert len(ids) > 10_000


def test_settings_cover_the_main_ways_to_pack():
    """The demo shows every number of bits, ranks chosen by loss, and a truncation."""
    assert {bits for _, _, bits in demo.SETTINGS} == {16, 8, 4, "auto"}
    assert {"none", "auto", "50%"} <= {rank for _, rank, _ in demo.SETTINGS}
    names = [name for name, _, _ in demo.SETTINGS]
    assert len(set(names)) == len(names)


def test_demo_judges_packs_of_the_bundled_model(short):
    """The trained model scores far below chance, 8 bits cost nothing, half the rank costs more."""
    found = demo.run_demo(short)
    vocab = open_source(demo.MODEL).vocab_size
    assert 1 < found.baseline.ppl < vocab / 10
    assert [pack.path for pack in found.packs] == [str(short / f"{n}.tolpack") for n, _, _ in FAST]
    assert abs(found.packs[0].ppl_increase_pct) < 1
    assert found.packs[1].bytes < found.packs[0].bytes
    assert found.packs[1].ppl_increase_pct > found.packs[0].ppl_increase_pct


def test_demo_command_prints_json_and_keeps_packs(short):
    """`tolpack demo -o FOLDER --json` makes the folder if need be, and keeps the packs there."""
    folder = short / "kept"
    result = CliRunner().invoke(cli.main, ["demo", "-o", str(folder), "--json"])
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["packs"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{n}.tolpack" for n, _, _ in FAST
    )
