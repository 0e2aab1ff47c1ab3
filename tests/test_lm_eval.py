"""``tolpack lm-eval``: tasks made of a text, and their scores against slow computations.

The tiny models read words; lm-eval and datasets work without a network.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import tolpack
from tolpack.cli import main
from tolpack.edits.write_edits import write_edits
from tolpack.errors import ConfigError
from tolpack.lm_eval import TEXT_TASKS, passages
from tolpack.lm_eval.task_data import make_questions, write_tasks
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

WORDS = [f"{a}{b}{c}" for a in "bdk" for b in ("ala", "eno") for c in ("mi", "tu", "s", "ra")]
# A passage has up to 100 words, and a mark after every ninth.
SETTINGS = {"vocab_size": 64, "max_position_embeddings": 128}


GEMMA = {
    "vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size": 16, "head_dim": 8,
    "hidden_size_per_layer_input": 8, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16,
    "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    """No test asks the network, or leaves files at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 40 or so passages: sentences of nine random words."""
    source = np.random.default_rng(7)
    sentences = [" ".join(source.choice(WORDS, 9)).capitalize() + "." for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(sentences), encoding="utf-8")
    return path


def save_tokenizer(folder):
    """Save a tokenizer of the words and the full stop, of which both cases are one token."""
    vocab = {"<unk>": 0, ".": 1}
    for n, word in enumerate(WORDS):
        vocab[word] = vocab[word.capitalize()] = n + 2
    tokenizer = Tokenizer(WordLevel({name: n for n, name in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny MemoryLLM with its tokenizer: the file."""
    folder = tmp_path_factory.mktemp("memoryllm")
    save_tokenizer(folder)
    return models.save_model(folder, **SETTINGS)


@pytest.fixture(scope="module")
def packs(model):
    """Packs of it in 16 and in 4 bits."""
    paths = [model.parent / f"{bits}.tolpack" for bits in (16, 4)]
    for bits, path in zip((16, 4), paths):
        tolpack.build(model, path, bits=bits)
    return paths


@pytest.fixture(scope="module")
def scores(model, packs, text):
    """What the command says of the model and both packs on all tasks: results by task, metric."""
    done = run("lm-eval", model, *packs, "--tasks", "tolpack_*", "--text", text, "--dtype",
               "float32", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    return [
        {(one["task"], one["metric"]): one for one in entry["results"]}
        for entry in json.loads(done.stdout)["models"]
    ]


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def slow_answers(decoder, encode, questions, options):
    """Return log-likelihood and greedy match of each option of each question, one at a time."""
    answers = []
    for question in questions:
        context = encode(question["context"])
        row = []
        for option in options(question):
            whole = encode(f"{question['context']} {option}")
            logits = decoder(torch.tensor([whole[:-1]]))[0, len(context) - 1 :].double()
            chosen = torch.tensor(whole[len(context) :])
            each = logits.log_softmax(-1).gather(1, chosen[:, None])
            row.append((float(each.sum()), bool((logits.argmax(-1) == chosen).all())))
        answers.append(row)
    return answers


def standard_error(values):
    """Return the standard error of a mean."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(spread / len(values))


def test_passages_are_runs_of_whole_sentences(text):
    """Cut from the text as it stands, without overlaps, of 50 to 100 words."""
    whole = text.read_text()
    found = passages.passages(whole, 0)
    assert len(found) > 30
    for one in found:
        assert 50 <= len(one.split()) <= 100
        assert one[0].isupper() and one.endswith(".") and one in whole
    counted = Counter(" ".join(found).split())
    assert all(count <= Counter(whole.split())[word] for word, count in counted.items())


def test_order_follows_from_the_seed_and_the_passage(text):
    """The same seed gives the same order, another one another order of the same passages."""
    whole = text.read_text()
    first, again, other = (passages.passages(whole, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other)
    # A text that goes on leaves the passages before it, and their order among themselves.
    longer = passages.passages(f"{whole} Benomi dalatu kalas {'kenora ' * 60}.", 0)
    assert [one for one in longer if one in set(first[:5])] == first[:5]


def test_words_asked_for_are_repeated_or_not(text):
    """A word follows its context in the passage, and stands in the context or does not."""
    questions = make_questions(text.read_text())
    whole = text.read_text()
    for task in ("tolpack_last_word", "tolpack_word_repeated", "tolpack_word_new"):
        assert questions[task] or task == "tolpack_word_new"
        for one in questions[task]:
            assert f"{one['context']} {one['word']}" in whole
            words = one["context"].lower().replace(".", "").split()
            assert one["repeated"] == (one["word"].lower() in words)
            assert task == "tolpack_last_word" or one["repeated"] == task.endswith("repeated")


def test_endings_alone_tell_nothing(text):
    """Each ending is the right one once and a wrong one three times; places are used in turn."""
    found = make_questions(text.read_text())["tolpack_endings"]
    right = Counter(one["endings"][one["label"]] for one in found)
    every = Counter(ending for one in found for ending in one["endings"])
    assert set(right.values()) == {1}
    assert set(every.values()) == {4}
    assert [one["label"] for one in found[:6]] == [0, 1, 2, 3, 0, 1]
    assert all(len(set(one["endings"])) == 4 for one in found)


def check_scores(model, scores, text, tasks):
    """Hold scores of a model against the decoder's log-likelihoods, one question at a time."""
    folder = model if model.is_dir() else model.parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder = Decoder(open_checkpoint(model))
    questions = make_questions(text.read_text())
    for task in tasks:
        choices = task == "tolpack_endings"
        options = (lambda one: one["endings"]) if choices else (lambda one: [one["word"]])
        answers = slow_answers(
            decoder, lambda one: tokenizer.encode(one).ids, questions[task], options
        )
        if choices:
            right = [max(range(4), key=lambda n: row[n][0]) for row in answers]
            values = [float(n == one["label"]) for n, one in zip(right, questions[task])]
        else:
            values = [float(row[0][1]) for row in answers]
            logs = [row[0][0] for row in answers]
            found = scores[task, "perplexity"]
            perplexity = math.exp(-sum(logs) / len(logs))
            assert found["value"] == pytest.approx(perplexity, rel=1e-4)
            assert found["se"] == pytest.approx(perplexity * standard_error(logs), rel=1e-3)
        found = scores[task, "acc"]
        assert found["documents"] == len(questions[task])
        assert found["value"] == pytest.approx(sum(values) / len(values))
        assert found["se"] == pytest.approx(standard_error(values))


def test_scores_are_those_of_the_reference_decoder(model, scores, text):
    """Accuracy, perplexity and their standard errors, of a MemoryLLM in a file."""
    check_scores(model, scores[0], text, TEXT_TASKS)


def test_scores_of_a_flex_memoryllm_in_a_folder(text, tmp_path):
    """They are the reference decoder's too."""
    config = models.make_config("flex_memoryllm", **SETTINGS)
    state = models.prefixed(models.make_state(config))
    folder = models.save_folder(tmp_path / "flex", state, config)
    save_tokenizer(folder)
    task = "tolpack_word_repeated"
    done = run("lm-eval", folder, "--tasks", task, "--text", text, "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["models"]
    scores = {(one["task"], one["metric"]): one for one in found["results"]}
    check_scores(folder, scores, text, [task])


def test_a_lossless_pack_of_a_gemma_scores_as_the_stock_model(text, tmp_path):
    """Every document has the same value; the stock model is lm-eval's own `HFLM`."""
    from lm_eval.models.huggingface import HFLM
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, PreTrainedTokenizerFast

    from tolpack.lm_eval.model import TolpackLM
    from tolpack.lm_eval.task_runner import TaskOptions, TaskRunner
    from tolpack.lm_eval.task_scores import difference

    save_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = Gemma3nTextConfig(**GEMMA)
    stock = Gemma3nForCausalLM(config).eval()
    folder = tmp_path / "gemma"
    stock.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=".", pad_token="."
    )
    tokenizer.save_pretrained(folder)
    pack = tmp_path / "gemma.tolpack"
    tolpack.build(folder, pack, bits="lossless")
    write_tasks(text, tmp_path, TEXT_TASKS)
    options = TaskOptions(("tolpack_last_word", "tolpack_endings"), (tmp_path,), limit=8)
    runner = TaskRunner(options)
    expected = runner.run(HFLM(pretrained=stock, tokenizer=tokenizer))
    found = runner.run(TolpackLM(folder, pack, dtype="float32"))
    assert [one.task for one in found] == ["tolpack_last_word"] * 2 + ["tolpack_endings"] * 2
    assert [difference(*pair) for pair in zip(found, expected)] == [(0.0, 0.0)] * 4


def test_packs_are_compared_document_by_document(scores):
    """A 16-bit pack answers as the model does; differences are those of the values."""
    baseline, exact, coarse = scores
    assert all(one["difference"] is None for one in baseline.values())
    for key, one in baseline.items():
        assert exact[key]["value"] == pytest.approx(one["value"], rel=1e-2)
        change = coarse[key]["value"] - one["value"]
        assert coarse[key]["difference"] == pytest.approx(change)
        assert 0 <= coarse[key]["difference_se"] <= coarse[key]["se"] + one["se"]


def test_paired_errors_are_those_of_the_jackknife():
    """For a mean and for a perplexity, with one document left out at a time."""
    from tolpack.lm_eval.task_scores import TaskScore, difference, shares_of

    source = np.random.default_rng(3)
    first = source.normal(-2, 0.4, 200)
    second = first + source.normal(0.02, 0.05, 200)
    for aggregate in (np.mean, lambda values: np.exp(-np.mean(values))):
        made = []
        for values in (first, second):
            samples = [{"doc_id": n, "metric": value} for n, value in enumerate(values)]
            value = float(aggregate(values))
            shares = shares_of(samples, "metric", value)
            assert shares is not None and shares.mean() == pytest.approx(value)
            made.append(TaskScore("task", "metric", value, None, 200, shares))
        change, se = difference(made[1], made[0])
        left = [
            aggregate(np.delete(second, n)) - aggregate(np.delete(first, n)) for n in range(200)
        ]
        spread = np.square(np.array(left) - np.mean(left)).sum()
        assert change == pytest.approx(aggregate(second) - aggregate(first))
        assert se == pytest.approx(math.sqrt(199 / 200 * spread), rel=0.01)


def test_perplexity_is_the_reference_decoders(model, packs):
    """Over the same windows, through lm-eval's own log-likelihoods of tokens, to 0.01 percent."""
    from tolpack.lm_eval.model import TolpackLM

    ids = models.zipf_ids(700, 64)
    decoder = Decoder(open_checkpoint(model))
    expected = score(decoder, np.asarray(ids, np.int64), 64).ppl
    windows = [
        (None, [int(ids[i])], list(map(int, ids[i + 1 : i + 65]))) for i in range(0, 699, 64)
    ]
    for pack in (None, packs[0]):
        lm = TolpackLM(model, pack, dtype="float32", batch_size=4)
        answers = lm._loglikelihood_tokens(windows, disable_tqdm=True)
        total = -sum(one for one, _ in answers)
        tolerance = 1e-4 if pack is None else 1e-2
        assert math.exp(total / 699) == pytest.approx(expected, rel=tolerance)


def test_lm_evals_own_command_line_knows_the_model_type(model, packs, scores, text, tmp_path):
    """``python -m tolpack.lm_eval`` runs a kept folder of tasks; the scores are the command's."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_tasks(text, folder, ["tolpack_endings"])
    settings = f"pretrained={model},pack={packs[1]},dtype=float32"
    command = [sys.executable, "-m", "tolpack.lm_eval", "run", "--model", "tolpack",
               "--model_args", settings, "--tasks", "tolpack_endings", "--include_path",
               str(folder), "--output_path", str(tmp_path / "out")]  # fmt: skip
    path = os.pathsep.join([str(Path(tolpack.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(written.read_text())["results"]["tolpack_endings"]
    assert found["acc,none"] == scores[2]["tolpack_endings", "acc"]["value"]
    assert found["acc_stderr,none"] == pytest.approx(scores[2]["tolpack_endings", "acc"]["se"])


def test_the_table_begins_with_the_checkpoint(model, packs, text):
    """A line each for the checkpoint and its packs, and differences for the packs alone."""
    done = run("lm-eval", model, packs[1], "--tasks", "tolpack_endings", "--text", text,
               "--limit", "8")  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["task", "metric", "documents", "model", "value", "difference"]
    assert lines[2].split()[:4] == ["tolpack_endings", "acc", "8", "checkpoint"]
    assert lines[3].split()[0] == str(packs[1])
    assert [line.count("±") for line in lines[2:6]] == [1, 2, 1, 2]


def test_edits_go_to_their_pack(model, packs, text, tmp_path):
    """The pack that they belong to is named with them and scores as its merged one does."""
    with tolpack.open(packs[0]) as pack:
        ids = np.arange(pack.vocab_size)
        zeros = np.zeros((len(ids), pack.num_layers, pack.hidden_size), np.float32)
        write_edits(pack, tmp_path / "e", ids, {pack.table: zeros})
    tolpack.merge(packs[0], [tmp_path / "e"], tmp_path / "m")
    found = run(
        "lm-eval", model, packs[0], tmp_path / "m", "--tasks", "tolpack_endings", "--text", text,
        "--limit", 12, "--edits", tmp_path / "e", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    _, edited, merged = json.loads(found.stdout)["models"]
    assert edited["name"] == f"{packs[0]} + {tmp_path / 'e'}"
    assert edited["results"] == merged["results"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--tasks", "tolpack_endings"], "made from a text"),
        (["--tasks", "tolpack_none"], "lm-eval has no task tolpack_none"),
        (["--tasks", "tolpack_endings", "--task-folder", "new"], "--task-folder"),
        (["--tasks", "tolpack_endings", "--text", "SHORT"], "gives 0 questions"),
        (["--tasks", "tolpack_endings", "--text", "absent.txt"], "cannot read text"),
    ],
)
def test_wrong_tasks_and_texts_are_named(model, tmp_path, arguments, said):
    """Before a model is loaded."""
    short = tmp_path / "short.txt"
    short.write_text("Too short. To ask anything.", encoding="utf-8")
    done = run("lm-eval", model, *[str(short) if one == "SHORT" else one for one in arguments])
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.output.split())


def test_models_that_do_not_fit_are_named(model, packs, tmp_path):
    """A pack of another model, a missing tokenizer, and a dense model in a file."""
    from tolpack.lm_eval.loading import load_model, load_tokenizer

    other = models.save_model(tmp_path, **(SETTINGS | {"vocab_size": 65}))
    with pytest.raises(ConfigError, match="of another model"):
        load_model(other, packs[0], model.parent / "tokenizer.json")
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_tokenizer(other)
    (tmp_path / "dense").mkdir()
    dense = models.save_model(tmp_path / "dense", model_type="llama", **SETTINGS)
    with pytest.raises(ConfigError, match="dense model"):
        load_model(dense, None, model.parent / "tokenizer.json")


@pytest.fixture(scope="module")
def studied(model, text, tmp_path_factory):
    """A study with tasks: its JSON, and its report."""
    report = tmp_path_factory.mktemp("study") / "report.html"
    done = run("study", model, "--text", text, "--context", "128", "--only", "precision,alpha",
               "--tasks", "tolpack_endings,tolpack_word_repeated", "--task-limit", "12",
               "--report", report, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), report.read_text(encoding="utf-8")


def test_a_study_scores_every_setting(studied):
    """The checkpoint first, then each pack and each α, on the same documents."""
    results, report = studied
    names = [one["name"] for one in results["tasks"]]
    packs = [one["setting"] for one in results["packs"]]
    alphas = [f"α = {one['alpha']}" for one in results["alpha"]]
    assert names[0] == "checkpoint" and names[1 + len(packs) :] == alphas
    for one in results["tasks"]:
        assert {entry["documents"] for entry in one["results"]} == {12}
    assert "Tasks" in report and "tolpack_word_repeated" in report


def test_a_studys_scores_are_those_of_lm_eval(studied, model, text):
    """The reference decoder's accuracy is that of the model in transformers; so is α = 0's."""
    from tolpack.lm_eval.model import TolpackLM
    from tolpack.lm_eval.task_runner import TaskOptions, TaskRunner

    results, _ = studied
    lm = TolpackLM(model, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(text, Path(folder), TEXT_TASKS)
        names = ("tolpack_endings", "tolpack_word_repeated")
        runner = TaskRunner(TaskOptions(names, (Path(folder),), limit=12))
        plain = runner.run(lm)
        lm.model.set_memory(NoMemory(24))
        without = runner.run(lm)
    for expected, found in ((plain, results["tasks"][0]), (without, results["tasks"][-1])):
        values = [one["value"] for one in found["results"]]
        assert values == pytest.approx([one.value for one in expected], rel=1e-4)


class NoMemory(torch.nn.Module):
    """A memory of zeros."""

    def __init__(self, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, layer, token_ids):
        """Return the rows of a layer."""
        return torch.zeros(*token_ids.shape, self.hidden_size)
