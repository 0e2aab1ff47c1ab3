"""``docs/families.md`` runs as it stands, on a small folder of each family with the real names, and
its rows are those of the models' own modules, or of slow implementations of them.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import expert_tables
import gguf_files
import ngram_tables
import numpy as np
import pytest
import saved_tables
import torch
from click.testing import CliRunner
from ngram_tables import TEXT, TEXTS
from slow_ngrams import save_tokenizer, slow_compressed_ids, slow_engram, slow_longcat, slow_rows
from tokenizers import Tokenizer, pre_tokenizers

import tolpack
from tolpack.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
VOCAB = 1024
NEW_IDS = [5, 3]
ENGRAM_BASE, DEMO_BASES, RATIO = 150, [2003, 2011], 30
GGUF = "gemma-3n-E2B-it-Q8_0.gguf"
EXPERTS = "MeKi", "STEM", "MoLE"


class Models:
    """A folder with a small model of each family, and what their rows are compared with."""

    def __init__(self, root):
        self.root, self.tensors, self.modules = root, {}, {}
        self._save_transformers()
        self._save_expert_tables()
        self._save_ngram_tables()
        self._save_containers()
        for folder in (root / name for name in ALL if (root / name).is_dir()):
            save_words(folder, 30 if (folder / "tokenizer.json").exists() else VOCAB)
        save_words(root, VOCAB)

    def _save_transformers(self):
        gemma = saved_tables.GEMMA | {"vocab_size_per_layer_input": VOCAB, "vocab_size": VOCAB}
        qwen = saved_tables.QWEN | {"ngram_vocab_size_base": 600}
        saved = saved_tables.save_models(self.root, gemma, qwen)
        names = {"gemma3n": "gemma-3n-E2B-it", "gemma4": "gemma-4-E2B-it",
                 "qwen4_exp": "Qwen3.8-Flash-Next"}  # fmt: skip
        for old, new in names.items():
            self.modules[new], folder = saved[old]
            folder.rename(self.root / new)

    def _save_expert_tables(self):
        bf16, layers = torch.bfloat16, [1, 4, 11]
        stem = {f"stem_embeddings.{n}.weight": (VOCAB, 16) for n in range(3)}
        self.tensors |= {
            "MeKi": expert_tables.meki_tensors(vocab=2 * VOCAB, dtype=bf16),
            "STEM": expert_tables.random_tensors(stem, bf16),
            "MoLE": expert_tables.mole_tensors(vocab=VOCAB),
        }
        configs = {
            "MeKi": expert_tables.MEKI,
            "STEM": {"stem_layers": layers},
            "MoLE": expert_tables.MOLE | {"vocab_size": VOCAB},
        }
        for name in EXPERTS:
            (self.root / name).mkdir()
            expert_tables.write(self.root / name, self.tensors[name], configs[name])

    def _save_ngram_tables(self):
        longcat = ngram_tables.LONGCAT_CONFIG | {"ngram_vocab_size_ratio": RATIO}
        deepseek = ngram_tables.DEEPSEEK_CONFIG["text_config"] | {"engram_vocab_size": ENGRAM_BASE}
        demo = ngram_tables.DEMO_CONFIG["engram_config"] | {"engram_vocab_size": DEMO_BASES}
        made = {
            "LongCat-Flash-Lite": (ngram_tables.longcat(ratio=RATIO), longcat),
            "DeepSeek-V4.1-Flash": (
                ngram_tables.deepseek(ENGRAM_BASE),
                ngram_tables.DEEPSEEK_CONFIG | {"text_config": deepseek},
            ),
            "engram-demo": (ngram_tables.demo(DEMO_BASES), {"engram_config": demo}),
        }
        for name, (tensors, config) in made.items():
            self.tensors[name] = tensors
            ngram_tables.save(self.root / name, tensors, config)

    def _save_containers(self):
        def mtplx(folder):
            path = folder / "ngram-table.safetensors"
            self.affine = ngram_tables.save_mtplx(path, 4, 32, rows=400)

        def exl3(folder):
            path = folder / "ngram_embedding.safetensors"
            self.rings, self.bias = ngram_tables.save_exl3(path, 4, rows=400)

        for name, save in (("qwen-mtplx", mtplx), ("qwen-exl3", exl3)):
            (self.root / name).mkdir()
            ngram_tables.save_folder(self.root / name, save)
        values = np.random.default_rng(0).normal(size=(VOCAB, 768)).astype(np.float32)
        self.blocks = gguf_files.quantize(values, "Q8_0")
        numbers = {"gemma3n.embedding_length_per_layer_input": 256, "gemma3n.block_count": 3}
        tensors = {"per_layer_token_embd.weight": (self.blocks, "Q8_0")}
        gguf_files.write(self.root / GGUF, tensors, "gemma3n", numbers)


def save_words(folder, count):
    """Write a tokenizer that splits at spaces; one that is there keeps its tokens."""
    path = folder / "tokenizer.json"
    if not path.exists():
        save_tokenizer(folder, TEXTS[:8] + [f"w{n}" for n in range(count - 8)])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


# What a section's block gives, and what it must be. Each takes the models, and the block's names.


def gemma(models, names):
    check_gemma(models, "gemma-3n-E2B-it", names["per_layer_inputs"])


def check_gemma(models, name, found):
    """Rows with the multiplier are what the module gives before it rounds."""
    model = models.modules[name].model
    expected = model.get_per_layer_inputs(torch.tensor([TEXT]))[0].detach()
    assert torch.equal(torch.from_numpy(found).bfloat16(), expected)
    weight = model.embed_tokens_per_layer.weight.detach().float()[TEXT] * np.float32(4)
    assert np.array_equal(found, weight.reshape(found.shape).numpy())


def meki(models, names):
    assert names["layers"] == [0, 2]
    for place, layer in enumerate((0, 2)):
        module = f"layers.{layer}.meki_module."
        for row, token in zip(names["rows"], TEXT):
            slow = expert_tables.meki_row(models.tensors["MeKi"], module, "word_emb.weight", token)
            np.testing.assert_allclose(row[place], slow, rtol=2e-5, atol=2e-5)


def stem(models, names):
    assert names["layers"] == [1, 4, 11]
    tables = [models.tensors["STEM"][f"stem_embeddings.{n}.weight"][TEXT] for n in range(3)]
    assert np.array_equal(names["rows"], torch.stack(tables, 1).float().numpy())


def mole(models, names):
    assert names["rows"].shape == (len(TEXT), 2, 3, 12)
    for row, token in zip(names["rows"], TEXT):
        for layer, expert in ((0, 0), (0, 2), (1, 1)):
            slow = expert_tables.mole_row(models.tensors["MoLE"], layer, expert, token)
            np.testing.assert_allclose(row[layer, expert], slow, rtol=2e-5, atol=2e-4)


def longcat(models, names):
    tensors = models.tensors["LongCat-Flash-Lite"]
    slow = slow_longcat(30, RATIO, 4, 2, 2, TEXT + NEW_IDS)
    tables = [tensors[f"model.ngram_embeddings.embedders.{n}.weight"] for n in range(6)]
    rows = torch.stack([table[[row[n] for row in slow]] for n, table in enumerate(tables)], 1)
    found = np.concatenate([names["rows"], names["new_rows"]])
    assert np.array_equal(found, rows.float().numpy())


def engram_demo(models, names):
    compressed = slow_compressed_ids(TEXTS)
    slow = slow_engram([15, 1], 1, DEMO_BASES, 2, compressed, 2, 5, TEXT)
    name = "model.layers.1.engram.multi_head_embedding.embedding.weight"
    expected = models.tensors["engram-demo"][name][slow]
    assert np.array_equal(names["embedding"], expected.float().flatten(1).numpy())


def deepseek(models, names):
    compressed = slow_compressed_ids(TEXTS)
    slow = slow_engram([1, 14], 14, [ENGRAM_BASE] * 3, 2, compressed, 2, 0, TEXT)
    tensors = models.tensors["DeepSeek-V4.1-Flash"]
    codes = tensors["layers.14.engram.embed.weight"].float()[slow]
    scales = tensors["layers.14.engram.embed.scale"].view(torch.uint8).float()[slow]
    expected = codes * torch.exp2(scales - 127).repeat_interleave(32, -1)
    assert np.array_equal(names["embedding"], expected.flatten(1).numpy())


def qwen(models, names):
    module = models.modules["Qwen3.8-Flash-Next"].model.layers[1].ple.ple_embedding
    expected = module(torch.tensor([TEXT]), None)[0].detach().float().numpy()
    assert np.array_equal(names["embedding"], expected)


def any_tensor(models, names):
    weight = models.modules["gemma-3n-E2B-it"].model.embed_tokens.weight.detach()[TEXT]
    assert np.array_equal(names["embeddings"], weight.float().numpy())


def gguf(models, names):
    expected = gguf_files.dequantize(models.blocks, "Q8_0")[TEXT] * np.float32(16)
    assert np.array_equal(names["per_layer_inputs"], expected.reshape(len(TEXT), 3, 256))


def touched(path):
    """Return the rows that the text reads, (tokens, heads), by the slow hash of a pack's header."""
    with tolpack.open(path) as pack:
        return np.array(slow_rows(pack.ngrams, TEXT))


def mtplx(models, names):
    codes, scales, biases = models.affine
    groups = codes.reshape(400, 5, 32).astype(np.float32)
    table = (groups * scales[:, :, None] + biases[:, :, None]).reshape(400, 160)
    assert np.array_equal(names["rows"], table[touched("qwen-mtplx.tolpack")])


def exl3(models, names):
    rows = touched("qwen-exl3.tolpack")
    for found, row in zip(names["rows"].reshape(-1, 160), rows.ravel()):
        bias = models.bias[int(row >= 8)]
        assert np.array_equal(found, ngram_tables.decode_ring(models.rings[row], 4, 160) + bias)


SECTIONS = {
    "Gemma 3n and Gemma 4": gemma, "MeKi": meki, "STEM": stem, "MoLE": mole,
    "LongCat-Flash-Lite": longcat, "Engram, the demo": engram_demo, "DeepSeek-V4.1": deepseek,
    "Qwen4Exp": qwen, "Any tensor": any_tensor, "GGUF": gguf, "MTPLX": mtplx, "EXL3": exl3,
}  # fmt: skip
ALL = (
    "gemma-3n-E2B-it", "gemma-4-E2B-it", *EXPERTS, "LongCat-Flash-Lite", "engram-demo",
    "DeepSeek-V4.1-Flash", "Qwen3.8-Flash-Next", GGUF, "qwen-mtplx", "qwen-exl3",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """All models; packs of the sections are written beside them."""
    return Models(tmp_path_factory.mktemp("families"))


def blocks(section, language):
    """Return the fenced blocks of one language in a section."""
    body = re.split(rf"^## {re.escape(section)}\n", PAGE, flags=re.M)[1]
    body = re.split(r"^## ", body, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.M | re.S)


def run(line):
    """Run a command line in this process; returns its output."""
    program, *arguments = shlex.split(line)
    assert program == "tolpack"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


def test_every_section_with_code_is_run():
    """No block stands in a section that the tests leave out."""
    headings = re.findall(r"^## (.+)$", PAGE, flags=re.M)
    with_code = {one for one in headings if blocks(one, "python") or blocks(one, "console")}
    assert with_code == {*SECTIONS, "Commands for all families"}


@pytest.mark.parametrize("section", SECTIONS)
def test_rows_are_those_that_the_model_reads(models, monkeypatch, section):
    """A section's command and Python give the rows of the reference, bit for bit where stored."""
    monkeypatch.chdir(models.root)
    for line in blocks(section, "console")[0].splitlines():
        run(line.removeprefix("$ "))
    names = {"token_ids": TEXT, "new_ids": NEW_IDS}
    exec(blocks(section, "python")[0], names)
    SECTIONS[section](models, names)


def test_gemma_4_is_read_as_gemma_3n(models, tmp_path):
    """The other model of the section gives the rows of its own module."""
    name = "gemma-4-E2B-it"
    tolpack.build(models.root / name, tmp_path / "p.tolpack", bits="lossless")
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        check_gemma(models, name, pack.lookup(TEXT))
    tolpack.build(models.root / name, tmp_path / "q.tolpack", bits=8)
    for pack, least, most in (("p", 0, 0), ("q", 1e-4, 0.02)):
        compared = json.loads(
            run(f"tolpack diff {tmp_path}/{pack}.tolpack {models.root / name} --json")
        )
        assert all(least <= layer["relative_error"] <= most for layer in compared["layers"])


def test_a_table_is_compared_with_its_own_in_the_model(models, tmp_path):
    """Tolpack diff takes one of several tables by name, and a single tensor."""
    folder, pack = models.root / "DeepSeek-V4.1-Flash", tmp_path / "p.tolpack"
    tolpack.build(folder, pack, bits="lossless")
    tolpack.build(folder, tmp_path / "q.tolpack", bits=8)
    tensor = "layers.14.engram.embed.weight"
    for reference, equal in (
        (f"{folder} --table layer.14", True),
        (f"{folder} --table layer.14 --tensor {tensor}", True),
        (f"{tmp_path / 'q.tolpack'} --table layer.14", False),
    ):
        assert json.loads(run(f"tolpack diff {pack} {reference} --json"))["equal"] is equal
    result = CliRunner().invoke(main, ["diff", str(pack), str(folder)])
    assert result.exit_code == 1
    assert "choose one by table=NAME, or --table NAME" in result.output


def test_decode_steps_of_the_serving_page(models, tmp_path, monkeypatch):
    """The serving page's lookups by history and by stream give the rows of the whole text."""
    monkeypatch.chdir(tmp_path)
    tolpack.build(models.root / "DeepSeek-V4.1-Flash", "engram.tolpack", bits="lossless")
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n([^`]*engram\.tolpack.*?)^```", page, flags=re.M | re.S)
    names = {"prompt_ids": TEXT[:-1], "next_id": TEXT[-1]}
    exec(block, names)
    with tolpack.open("engram.tolpack", table="layer.14") as pack:
        whole = pack.lookup(TEXT)
    assert np.array_equal(np.concatenate([names["rows"], names["step"]]), whole)
    assert np.array_equal(names["same_step"], whole[-1])


def read_all(path):
    """Return the rows of all tables of a pack, float64 (values,)."""
    with tolpack.pack.open_first_table(path) as first:
        tables = first.tables
    found = []
    for name in tables:
        with tolpack.open(path, table=name) as pack:
            found.append(pack.rows(np.arange(pack.vocab_size)).ravel())
    return np.concatenate(found).astype(np.float64)


@pytest.mark.parametrize("model", ALL)
def test_commands_run_for_every_family(models, tmp_path, monkeypatch, model):
    """Each command of the page, and counts by row, give packs as close and small as they say."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(models.root / "tokenizer.json", tmp_path)
    source, tables = models.root / model, 1
    if source.is_dir():
        shutil.copy(source / "tokenizer.json", tmp_path)
    Path("text.txt").write_text("w1 w2 w3 w1 w2 w4 w1 w2 w3 " * 9, encoding="utf-8")
    commands, rows, compare = blocks("Commands for all families", "console")
    for line in commands.splitlines():
        run(line.removeprefix("$ ").replace("MODEL", str(source)))
    tables = json.loads(run(f"tolpack inspect {source} --json"))["tables"]
    table = f" --table {tables[-1]['name']}" if len(tables) > 1 else ""
    assert "w2" in run(rows.strip().removeprefix("$ ") + table)
    for line in compare.replace("MODEL", str(source)).splitlines():
        line = line.removeprefix("$ ") + table
        run(line.replace(".safetensors", ".gguf") if model == GGUF else line)
    exact = read_all("lossless.tolpack")
    for name, limit in (("int8", 0.02), ("int4", 0.15), ("close", 0.0501)):
        error = np.linalg.norm(read_all(f"{name}.tolpack") - exact) / np.linalg.norm(exact)
        assert 0 < error < limit, name
    assert Path("small.tolpack").stat().st_size <= 0.3 * 2 * len(exact)
    if len(tables) == 1:
        counts = np.random.default_rng(1).integers(0, 99, tables[0]["rows"])
        np.save("counts.npy", counts)
        run(f"tolpack build {source} -o ordered.tolpack --bits lossless --frequencies counts.npy")
        assert np.array_equal(read_all("ordered.tolpack"), exact)
        with tolpack.open("ordered.tolpack") as pack:
            assert counts[pack.most_frequent(1)[0]] == counts.max()
