"""The examples of ``docs/checkpoints.md`` run as they stand, on small generated checkpoints; the
README's figures are those that were measured.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import families
import models
import pytest
import torch
from click.testing import CliRunner

from tolpack.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "checkpoints.md"
SECTIONS = {
    "Hugging Face Llama": families.hf_llama,
    "Meta": families.meta,
    "LitGPT": families.lit_gpt,
    "OLMo": families.olmo,
    "OpenLM": families.openlm,
}


def blocks(section, language):
    """Return the fenced blocks of one language in a section."""
    text = PAGE.read_text(encoding="utf-8")
    body = re.split(rf"^#+ {re.escape(section)}\n", text, flags=re.M)[1]
    body = re.split(r"^##+ ", body, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.M | re.S)


def run_commands(section):
    """Run a section's console lines; returns their outputs."""
    outputs = []
    for line in blocks(section, "console")[0].splitlines():
        program, *args = line.removeprefix("$ ").split()
        assert program == "tolpack"
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    return outputs


class Trained:
    """Stands for the trained module of an example; its weights have the sizes of ``config``."""

    def __init__(self, family, names):
        self.family, self.names = family, names

    def state_dict(self):
        """Return random weights under the family's names."""
        config = self.names["config"]
        return self.family(models.make_state(config), config)


@pytest.mark.parametrize("section", SECTIONS)
def test_export_example_builds(section, tmp_path, monkeypatch):
    """A family's export example writes a checkpoint that the commands below it read."""
    monkeypatch.chdir(tmp_path)
    names = {}
    names["model"] = Trained(SECTIONS[section], names)
    exec(blocks(section, "python")[0], names)
    inspected, built = run_commands(section)
    assert "left over: nothing" in inspected
    assert "build: ready\neval: ready" in inspected
    assert "320 tokens × 2 layers × 32" in inspected
    assert "smaller than FP16" in built


def test_own_map_example_builds(tmp_path, monkeypatch):
    """The example of a user's own map fits the checkpoint that it describes."""
    monkeypatch.chdir(tmp_path)
    config = models.make_config()
    state = models.make_state(config)
    named = {"wte": state["embed_tokens.weight"], "blocks.0.probe.w": torch.ones(2)}
    for n in range(3):
        base = f"layers.{n}.memory"
        gate, up, down = (state[f"{base}_mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        named[f"blocks.{n}.norm_mem.g"] = state[f"{base}_layernorm.weight"]
        named[f"blocks.{n}.mem.w_in"] = torch.cat([gate, up]).T.contiguous()
        named[f"blocks.{n}.mem.w_out"] = down.T.contiguous()
    models.save_pt(tmp_path / "own.pt", named, config)
    Path("map.toml").write_text(blocks("Your own key map", "toml")[0], encoding="utf-8")
    inspected, _ = run_commands("Your own key map")
    assert "build: ready\neval: no: tensor 'norm.weight' is missing" in inspected


def test_table_of_names_is_what_the_maps_say():
    """Every stored name of the built-in maps stands in the page's table of names."""
    from tolpack.sources.checkpoint.key_map import BUILT_IN, built_in

    text = PAGE.read_text(encoding="utf-8")
    for name in set(BUILT_IN) - {"hf-llama"}:  # its names are the schema's
        for rule in built_in(name).rules:
            if "memory_mlp" in rule.source or "memory_layernorm" in rule.source:
                continue
            module = rule.source.rpartition(".")[0].rpartition("{N}.")[2]
            last = module.rpartition(".")[2]
            assert re.search(rf"[`.{{,]{re.escape(last)}[`,}}]", text), (name, rule.source)


def test_the_readmes_table_is_that_of_the_benchmarks():
    """What `benchmarks/serving_table.py` prints from the results that are kept."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "serving_table.py")],
        capture_output=True, text=True, check=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- benchmarks/serving_table.py -->")[1].split("<!-- end -->")[0]
    assert table.strip() == done.stdout.strip()


def test_examples_of_the_insight_page_run(tmp_path, monkeypatch):
    """The quick commands of ``docs/insight.md`` run, and print tables with the headings shown."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tolpack").symlink_to(ROOT / "tolpack")
    page = (ROOT / "docs" / "insight.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```console\n\$ (.*)\n((?:[^$`].*\n|\n)*)```", page, flags=re.M)
    assert [shlex.split(line)[1] for line, _ in examples] == ["build", "rows", "diff"]
    for line, shown in examples:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
        printed = {" ".join(text.split()) for text in result.stdout.splitlines()}
        headings = re.findall(r"^(.*)\n---", shown, flags=re.M)
        assert {" ".join(text.split()) for text in headings} <= printed
