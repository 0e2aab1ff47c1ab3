"""``tolpack card``: a page about a pack for a model hub."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.report.card_text import code, fenced, front_matter, plain
from tolpack.report.model_card import CardSubject, model_card

HOSTILE = "a|b`<script>alert(1)</script>[x](http://evil)\n---\n# x ```"


def run(*arguments):
    """Run the command line."""
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack of a small model, beside a text of ids and what eval said of it."""
    folder = tmp_path_factory.mktemp("card")
    model = models.save_model(folder, vocab_size=300, hidden_size=16, num_hidden_layers=2)
    for seed, name in enumerate(("ids.npy", "other.npy")):
        np.save(folder / name, models.zipf_ids(1200, 300, seed))
    path = folder / "small.tolpack"
    tolpack.build(model, path, bits="auto", max_kld=0.01, calibrate=folder / "ids.npy")
    texts = [word for n in ("ids.npy", "other.npy") for word in ("--text", folder / n)]
    for name, words in (("one.json", texts[:2]), ("two.json", texts)):
        found = run("eval", model, path, *words, "--json")
        assert found.exit_code == 0, found.output
        (folder / name).write_text(found.stdout, encoding="utf-8")
    return path


def test_the_card_says_what_where_from_and_how(pack):
    """Front matter, shape, sizes, options, digests, measured cost, use and check."""
    result = run("card", pack, "--base-model", "org/model", "--license", "apache-2.0")
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(pack.read_bytes()).hexdigest()
    made = json.loads(run("inspect", pack, "--json").stdout)["provenance"]
    assert result.stdout.startswith(
        '---\nlibrary_name: "tolpack"\ntags:\n- "tolpack"\n- "memoryllm"\n'
        'base_model: "org/model"\nlicense: "apache-2.0"\n---\n\n# small.tolpack\n'
    )
    for text in (
        "* table `tol`: 300 tokens × 2 layers × 16\n",
        f"({pack.stat().st_size:,} bytes), × ",
        "the memory FFNs that it replaces take ",
        "tolpack build CHECKPOINT --bits auto --max-kld 0.01 --calibrate TEXT\n",
        f"* checkpoint of table `tol`: SHA-256 `{made['checkpoint']['tol']}`\n",
        f"* calibration text: 1,200 tokens, SHA-256 `{made['calibration']['sha256']}`\n",
        "nats of mean KL divergence from the model on ",
        "with tolpack.open('small.tolpack') as pack:\n",
        f"echo '{digest}  small.tolpack' | sha256sum --check\ntolpack verify small.tolpack\n",
    ):
        assert text in result.stdout, text
    assert str(pack.parent) not in result.stdout


def test_without_options_there_is_neither_model_nor_license(pack):
    """Nothing is guessed."""
    assert not re.search("^(base_model|license)", run("card", pack).stdout, flags=re.M)


@pytest.mark.parametrize("name, texts", [("one.json", 1), ("two.json", 2)])
def test_figures_of_eval_stand_in_a_table(pack, name, texts):
    """A line for each text, with the name of its file and no path."""
    result = run("card", pack, "--eval", pack.with_name(name))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + texts and all(line.count("|") == 8 for line in lines)
    if texts == 2:
        assert [line.split(" | ")[0] for line in lines[2:]] == ["| `ids.npy`", "| `other.npy`"]
    value = json.loads(pack.with_name(name).read_text())
    first = (value.get("texts") or [value])[0]["packs"][0]
    assert f"{first['ppl_increase_pct']:+.3f} ± {first['ppl_increase_se_pct']:.3f} %" in lines[2]
    assert str(pack.parent) not in result.stdout


def test_figures_of_another_pack_are_refused(pack, tmp_path):
    """By name and by bytes; and so is what eval did not print."""
    shutil.copy(pack, tmp_path / "other.tolpack")
    wrong = run("card", tmp_path / "other.tolpack", "--eval", pack.with_name("one.json"))
    assert wrong.exit_code == 1
    assert "has no figures of other.tolpack" in wrong.stderr and "small.tolpack" in wrong.stderr
    value = json.loads(pack.with_name("one.json").read_text())
    cases = ["[]", "{}", "\x00", "[" * 100_000]
    for key, changed in (("kl_mean_nats", "x"), ("ppl", 1e999), ("top1_agreement_pct", None)):
        broken = {**value["packs"][0], key: changed}
        cases.append(json.dumps({**value, "packs": [broken]}))
    for number, text in enumerate(cases):
        (tmp_path / f"{number}.json").write_text(text)
        result = run("card", pack, "--eval", tmp_path / f"{number}.json")
        assert result.exit_code == 1 and result.stderr.startswith("Error: "), text


def test_warnings_of_eval_stand_in_the_card_without_paths(pack, tmp_path):
    """They are printed too."""
    value = json.loads(pack.with_name("one.json").read_text())
    value["warnings"] = ["small.tolpack was made from another checkpoint than /home/me/model/"]
    (tmp_path / "w.json").write_text(json.dumps(value))
    result = run("card", pack, "--eval", tmp_path / "w.json")
    assert "Warning: small.tolpack was made" in result.stderr
    assert "> Warning: small.tolpack was made" in result.stdout
    assert "home" not in result.stdout


def test_a_page_is_replaced_only_by_force(pack, tmp_path):
    """And never the pack itself."""
    page = tmp_path / "README.md"
    assert run("card", pack, "-o", page).exit_code == 0
    assert page.read_text(encoding="utf-8") == run("card", pack).stdout
    again = run("card", pack, "-o", page)
    assert again.exit_code == 1 and "exists: use --force to replace it" in again.stderr
    assert run("card", pack, "-o", page, "--force").exit_code == 0
    assert run("card", pack, "-o", pack, "--force").exit_code == 1
    assert run("card", pack, "--license", " ").exit_code == 2


def test_parts_are_checked_by_their_manifest(pack, tmp_path):
    """The digest is that of the manifest, as stored."""
    assert run("split", pack, tmp_path / "parts", "--part-size", "4KB").exit_code == 0
    digest = hashlib.sha256((tmp_path / "parts" / "manifest.json").read_bytes()).hexdigest()
    for path in (tmp_path / "parts", tmp_path / "parts" / "manifest.json"):
        assert f"echo '{digest}  parts/manifest.json'" in run("card", path).stdout


def test_nothing_in_a_pack_becomes_markup(pack):
    """Names, settings, and a base model of others are shown as they are."""
    info = json.loads(run("inspect", pack, "--json").stdout)
    info["name"] = info["producer"] = HOSTILE
    info["provenance"] = {
        "checkpoint": {HOSTILE: "ab" * 32}, "options": {"bits": HOSTILE}, "measured": {HOSTILE: 1},
    }  # fmt: skip
    subject = CardSubject(info, HOSTILE, "cd" * 32, base_model=HOSTILE, license=HOSTILE)
    text = model_card(subject)
    front, body = text.split("\n---\n", 1)
    assert "<script>" not in re.sub(r"(`+)[^`].*?[^`]\1(?!`)", "", without_blocks(body))
    assert body.count("\n---\n") == 0 and "\n# x" not in body
    assert front.count("\n") == 5 and json.loads(front.splitlines()[5].split(": ", 1)[1])
    assert model_card(replace(subject, info={**info, "provenance": None}))


def without_blocks(text):
    """Return Markdown without its blocks of code."""
    return re.sub(r"^(```+)\w*\n.*?\n\1$", "", text, flags=re.M | re.S)


def test_texts_are_escaped_for_what_they_stand_in():
    """Markdown, a code span, a block and YAML."""
    assert plain("a_b *c* <i> & [x](y) www.z") == (r"a\_b \*c\* &lt;i&gt; &amp; \[x\]\(y\) www\.z")
    assert code("a`b|c") == "`` a`b\\|c ``" and code("x") == "`x`"
    assert fenced("sh", ["a ``` b"]) == "````sh\na ``` b\n````"
    assert front_matter({"k": 'x": [\n- y'}) == '---\nk: "x\\": [\\\\n- y"\n---'
